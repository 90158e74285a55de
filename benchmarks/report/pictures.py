"""The pictures that runs left in their folders, made small enough for the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from markupsafe import Markup
from PIL import Image

from backbench.files import read_bytes
from benchmarks.records.store import run_folder
from benchmarks.report import plots
from benchmarks.report.table import Column, Row

FILE = "pictures.png"
_LARGEST = 64 * 2**20  # bytes of a file
_WIDEST = 1200  # pixels
_BYTES = 150_000  # of a picture in the page, where shrinking it to less than half reaches that
_SCALES = (1.0, 0.8, 0.64, 0.5, 0.4)
_MOST = 4  # backbones of a cell
_DETECTION = "Test images with their objects (green) next to the detections"
_MASKS = "Test images with their true masks next to the predictions"
_ABOUT = {
    "knn": "Test images, the same ones for every backbone, and their nearest training images; a solid frame and a tick: of the "
    "same class; a dashed frame and a cross: of another one",
    "voc_detection": _DETECTION,
    "coco_instance_segmentation": _DETECTION,
    "semantic_segmentation": _MASKS,
    "linear_segmentation": _MASKS,
}


@dataclass(frozen=True)
class Picture:
    """A picture of one run."""

    title: str  # backbone, cell, seed
    url: Markup  # a JPEG as a data URL


@dataclass(frozen=True)
class Pictures:
    """The pictures of a cell, one for each backbone."""

    shown: tuple[Picture, ...] = ()
    about: str = ""  # what they show
    left_out: int = 0  # backbones with a picture that is not shown


def pictures(rows: Sequence[Row], column: Column | None, out: Path | None) -> Pictures:
    """Return the pictures of a cell; none without a headline or a folder of results.

    Args:
        rows: the best first; the last one is shown in any case (a random baseline).
    """
    if column is None or out is None:
        return Pictures()
    files = [found for row in rows if (found := _of_row(row, column, out))]
    chosen = files if len(files) <= _MOST else [*files[: _MOST - 1], files[-1]]
    made = []
    for title, file in chosen:
        if url := plots.attempt(partial(data_url, file), file):
            made.append(Picture(title, url))
    return Pictures(tuple(made), _ABOUT.get(column.task, "Pictures of the runs"), len(files) - len(chosen))


def _of_row(row: Row, column: Column, out: Path) -> tuple[str, Path] | None:
    """Return title and file of the first run with a picture."""
    for record in row.values[column].records:
        file = run_folder(out, record) / FILE
        if file.exists():
            return f"{record.backbone.name}, {record.cell}, seed {record.seed}", file
    return None


def data_url(picture: Path) -> Markup:
    """Return a picture as a JPEG data URL, so that the page stays one file; a large one is shrunk.

    Raises:
        DataError: it is not a regular file, or larger than any run's.
    """
    with Image.open(io.BytesIO(read_bytes(picture, limit=_LARGEST))) as opened:
        image = opened.convert("RGB")
    image.thumbnail((_WIDEST, 4 * _WIDEST))
    for scale in _SCALES:
        width, height = (max(1, round(side * scale)) for side in image.size)
        buffer = io.BytesIO()
        image.resize((width, height), Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=75)
        if buffer.tell() <= _BYTES:
            break
    return Markup("data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii"))
