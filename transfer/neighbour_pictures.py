"""A few test images beside their nearest training images: names, classes and a picture for the reader of a kNN number.

The test images are drawn with a fixed seed, whatever the backbone answers, so all backbones show the same ones. No number
depends on these files.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from backbench.data.splits import ImageSplit
from backbench.files.atomic import atomic_write, atomic_write_text
from backbench.printable import printable

_QUERIES, _NEAREST, _SEED = 6, 6, 0
_SIDE, _GAP, _TEXT, _FRAME, _BADGE = 96, 10, 15, 3, 20  # pixels
_FONT = 11
_SAME, _OTHER, _INK = (0, 114, 178), (213, 94, 0), (51, 51, 51)  # blue and orange of Okabe and Ito 2008
RULE = f"the first {_QUERIES} of a permutation of the test images (seed {_SEED})"


@dataclass(frozen=True)
class Neighbour:
    """A training image near a test image."""

    row: int
    image: str  # its name in the data set
    label: str
    similarity: float  # cosine, or minus the squared Euclidean distance
    is_same: bool  # of the test image's class


@dataclass(frozen=True)
class Query:
    """A test image with its nearest training images, nearest first."""

    row: int
    image: str
    label: str
    nearest: tuple[Neighbour, ...]


def queries(train: ImageSplit, test: ImageSplit, similarity_NK: Tensor, index_NK: Tensor) -> list[Query]:
    """Return the test images to show.

    Args:
        similarity_NK: of every test image to its K nearest training images, nearest first.
        index_NK: the rows of those in `train`.
    """
    assert train.labels is not None and test.labels is not None
    known, true = train.labels.tolist(), test.labels.tolist()
    rows = torch.randperm(len(test), generator=torch.Generator().manual_seed(_SEED))[:_QUERIES].tolist()
    made = []
    for row in rows:
        near = zip(index_NK[row, :_NEAREST].tolist(), similarity_NK[row, :_NEAREST].tolist(), strict=True)
        nearest = (
            Neighbour(i, train.source.name(i), train.classes[known[i]], round(s, 4), known[i] == true[row])
            for i, s in near
        )
        made.append(Query(row, test.source.name(row), test.classes[true[row]], tuple(nearest)))
    return made


def keep(train: ImageSplit, test: ImageSplit, shown: Sequence[Query], folder: Path) -> None:
    """Write `neighbours.json` and `pictures.png`.

    Raises:
        BackbenchError: an image cannot be read, or a file cannot be written.
    """
    told: dict[str, Any] = {"test images": RULE, "queries": [asdict(query) for query in shown]}
    atomic_write_text(folder / "neighbours.json", json.dumps(told, indent=1) + "\n")
    page = grid(train, test, shown)
    atomic_write(folder / "pictures.png", lambda file: page.save(file, format="PNG"))


def grid(train: ImageSplit, test: ImageSplit, shown: Sequence[Query]) -> Image.Image:
    """Return a row for each test image: it, then its nearest training images, each with its class below.

    A neighbour of the same class has a solid frame and a tick, one of another class a dashed frame and a cross. Images are
    cut to squares.
    """
    across, down = _SIDE + _GAP, _SIDE + _TEXT + _GAP
    columns = max(len(query.nearest) for query in shown)
    size = (_GAP + across * (1 + columns) + _GAP, _TEXT + _GAP + down * len(shown))
    page = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(_FONT)
    pen.text((_GAP, 2), "test image", fill=_INK, font=font)
    pen.text((2 * _GAP + across, 2), "nearest training images, the nearest first", fill=_INK, font=font)
    for line, query in enumerate(shown):
        top = _TEXT + _GAP // 2 + line * down
        _thumb(page, (_GAP, top), test, query.row, query.label)
        for place, near in enumerate(query.nearest):
            corner = (2 * _GAP + across * (1 + place), top)
            _thumb(page, corner, train, near.row, near.label)
            _mark(pen, corner, is_same=near.is_same)
    return page


def _thumb(page: Image.Image, corner: tuple[int, int], split: ImageSplit, row: int, label: str) -> None:
    """Paste an image with the name of its class below."""
    page.paste(ImageOps.fit(split.source.pil(row), (_SIDE, _SIDE), Image.Resampling.BILINEAR), corner)
    font = ImageFont.load_default(_FONT)
    words = printable(label, 60)
    while len(words) > 1 and font.getlength(words) > _SIDE:
        words = words[:-2] + "…"
    ImageDraw.Draw(page).text((corner[0], corner[1] + _SIDE + 1), words, fill=_INK, font=font)


def _mark(pen: ImageDraw.ImageDraw, corner: tuple[int, int], *, is_same: bool) -> None:
    """Draw the frame of a neighbour, and a tick or a cross in its corner."""
    x, y = corner
    if is_same:
        pen.rectangle((x, y, x + _SIDE - 1, y + _SIDE - 1), outline=_SAME, width=_FRAME)
    else:
        for start in range(0, _SIDE, 12):
            end = min(start + 6, _SIDE - 1)
            for fixed in (0, _SIDE - _FRAME):
                pen.rectangle((x + start, y + fixed, x + end, y + fixed + _FRAME - 1), fill=_OTHER)
                pen.rectangle((x + fixed, y + start, x + fixed + _FRAME - 1, y + end), fill=_OTHER)
    left, top = x + _SIDE - _BADGE, y + _SIDE - _BADGE
    pen.rectangle((left, top, left + _BADGE - 1, top + _BADGE - 1), fill=_SAME if is_same else _OTHER)
    strokes = [((4, 10), (8, 15), (15, 5))] if is_same else [((5, 5), (14, 14)), ((5, 14), (14, 5))]
    for stroke in strokes:
        pen.line([(left + dx, top + dy) for dx, dy in stroke], fill="white", width=2)
