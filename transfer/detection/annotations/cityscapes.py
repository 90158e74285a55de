"""Read the objects of Cityscapes: `<root>/gtFine/<split>/<city>/*_gtFine_instanceIds.png`.

A pixel of an instance has the value 1000 * label + number, a pixel of a group that nobody separated the label alone
(cityscapesscripts/preparation/json2instanceImg.py). Eight labels have instances. As in both engines' readers, an instance
is trained on as a bitmap and a group is a crowd (detectron2 data/datasets/cityscapes.py, mmdet
tools/dataset_converters/cityscapes.py).
"""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from backbench.data.decode import CorruptImage, read_bytes
from backbench.data.layouts import cityscapes
from backbench.data.splits import Files
from backbench.progress import track
from transfer.detection.annotations.faults import MISSING, Bad, Faults, sound
from transfer.detection.annotations.split import DetectionSplit, Instance, Picture

CLASSES = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
IDS = (24, 25, 26, 27, 28, 31, 32, 33)  # of CLASSES (cityscapesscripts/helpers/labels.py)
_IMAGE, _OBJECTS = "_leftImg8bit.png", "_gtFine_instanceIds.png"
_UNREADABLE = "instanceIds that are not whole images of whole numbers"
_READERS = 4  # threads: decoding and comparing let others run


def read_cityscapes(
    root: Path, split: str, *, bad: Bad = "error", masks: bool = False, dataset: str = "cityscapes"
) -> DetectionSplit:
    """Read `train` or `val`: images by city and name, the objects of each by label and number, all with masks.

    Args:
        bad: whether faults in the annotations raise an error or are left out; see `Faults`.

    Raises:
        DataError: another split, faults with `bad="error"`, or no image is left.
    """
    images = cityscapes.read(root, split).source
    names, folder = [images.name(row) for row in range(len(images))], Path(root) / "gtFine" / split
    faults = Faults(folder, bad)
    paths, pictures = [], []
    with ThreadPoolExecutor(_READERS) as pool:
        found = pool.map(lambda name: _picture(folder / _objects_of(name)), names)
        for name, picture in zip(
            names, track(found, total=len(names), label=f"objects of {dataset} {split}"), strict=True
        ):
            if isinstance(picture, str):
                faults.add(picture, _objects_of(name))
                continue
            paths.append(name)
            pictures.append(picture)
    base = Path(root) / "leftImg8bit" / split
    whole = DetectionSplit(dataset, split, Files(base, tuple(paths)), tuple(pictures), CLASSES, annotations=folder)
    return sound(whole, faults)


def _objects_of(name: str) -> str:
    """Return the name of an image's instanceIds."""
    return name.removesuffix(_IMAGE) + _OBJECTS


def _picture(file: Path) -> Picture | str:
    """Return the objects of an image, or the fault of its file."""
    if not file.is_file():
        return MISSING
    try:
        image = Image.open(io.BytesIO(read_bytes(file)), formats=("PNG",))
        values = np.asarray(image)
    except (CorruptImage, OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return _UNREADABLE
    if values.ndim != 2 or values.dtype.kind not in "iu":
        return _UNREADABLE
    height, width = values.shape
    return Picture(
        file.name.removesuffix(_OBJECTS), width, height, tuple(_instances(np.asfortranarray(values, np.int32)))
    )


def _instances(values: np.ndarray) -> list[Instance]:
    """Return the objects of an image of values (H, W) int32, by value: groups first."""
    found = []
    for value in np.unique(values).tolist():
        label = value if value < 1000 else value // 1000
        if label in IDS:
            found.append(_instance(IDS.index(label), values == value, crowd=value < 1000))
    return found


def _instance(label: int, inside: np.ndarray, *, crowd: bool) -> Instance:
    from pycocotools import mask as coco_mask

    mask: dict[str, Any] = coco_mask.encode(inside.view(np.uint8))  # column by column, as `inside` lies in memory
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    x0, y0, x1, y1 = (float(v) for v in (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
    return Instance(
        label,
        (x0, y0, x1, y1),
        crowd=crowd,
        mask={"size": [int(n) for n in mask["size"]], "counts": mask["counts"].decode("ascii")},
        area=float(np.count_nonzero(inside)),
        stated=(x0, y0, x1 - x0, y1 - y0),
    )
