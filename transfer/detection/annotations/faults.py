"""Faults of annotations and images: counted and named before training, then left out or refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from backbench.data.decode import CorruptImage, header_size
from backbench.errors import DataError
from backbench.files import Changed
from backbench.printable import printable, some
from backbench.progress import say, track
from transfer.detection.annotations.pixels import read_image
from transfer.detection.annotations.split import Box, DetectionSplit, of_rows

Bad = Literal["error", "skip"]

HEADERS = 200  # images whose header is read with the annotations
_READERS = 8  # threads: reading from a network's disk is mostly waiting
UNDECODED = "images that cannot be decoded, or not to the size that their annotation states"
SIZE = "images that are unreadable or not of the size that their annotation states"
MISSING = "images that are not in the folder"
NO_AREA = "boxes with no area"
OUTSIDE = "boxes outside their image"
LEADS_OUT = "file names that lead out of the folder"
TWICE = "images that are listed twice"


class Faults:
    """Faults of a split by kind: how many, and the first names, go into the log.

    With `bad="error"` they are then a DataError. With `skip` whatever holds one is left out: an image that is missing,
    of another size than stated, listed twice or without a readable annotation; an object without area, outside its
    image, of an unknown class, of an unknown image or of no crowd or object that is known; a polygon that is none, and
    its object when it has no other.
    """

    def __init__(self, where: Path, bad: Bad) -> None:
        self.where, self.bad = where, bad
        self.names: dict[str, list[str]] = {}
        self.mended: dict[str, list[str]] = {}

    def add(self, kind: str, name: str) -> None:
        """Something that cannot be used."""
        self.names.setdefault(kind, []).append(printable(name))

    def mend(self, kind: str, name: str) -> None:
        """Something that was put right, or is known of the official files: never an error."""
        self.mended.setdefault(kind, []).append(printable(name))

    def settle(self) -> list[str]:
        """Print a sentence for each kind of fault and object left out. Raises DataError for faults with `bad="error"`."""
        for kind, names in self.mended.items():
            say(f"{self.where}: {kind}: {some(names)}")
        if not self.names:
            return []
        sentences = [f"{kind}: {some(names)}" for kind, names in self.names.items()]
        if self.bad == "error":
            raise DataError(f"{self.where}: {'; '.join(sentences)}. Correct them, or leave them out with bad=skip")
        for sentence in sentences:
            say(f"{self.where}: left out: {sentence}")
        return sentences


def box_fault(box: Box, width: int, height: int) -> str | None:
    """The fault of a box, or None."""
    x0, y0, x1, y1 = box
    if not all(math.isfinite(value) for value in box) or x1 <= x0 or y1 <= y0:
        return NO_AREA
    if x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0:
        return OUTSIDE
    return None


def clipped(box: Box, width: int, height: int, name: str, faults: Faults) -> Box:
    """The box clipped to its image; a fault is noted when it reached further than rounding does."""
    x0, y0, x1, y1 = inside = (max(box[0], 0), max(box[1], 0), min(box[2], width), min(box[3], height))
    if max(abs(a - b) for a, b in zip(box, inside, strict=True)) > 1:
        faults.mend("boxes that reached over the image's edge, clipped", name)
    return float(x0), float(y0), float(x1), float(y1)


def sound(split: DetectionSplit, faults: Faults) -> DetectionSplit:
    """The split without images of another size than stated, by the headers of a sample. Raises DataError as `read_voc`."""
    _refuse_other_boxes(split, faults.where)
    sample = np.random.default_rng(0).permutation(len(split))[:HEADERS].tolist()
    misfits = _of_another_size(split, sample)
    if misfits:  # where one is wrong others are
        misfits |= _of_another_size(split, range(len(split)))
    return _without(split, misfits, SIZE, faults)


def _refuse_other_boxes(split: DetectionSplit, where: Path) -> None:
    """DataError where the boxes of a whole split are in another form than the layout's, which a detector would learn."""
    objects = [(o, p) for p in split.pictures for o in p.instances]
    if objects and all(max(o.box[2:]) <= 1 < min(p.width, p.height) for o, p in objects):
        raise DataError(
            f"{where}: all {len(objects)} boxes lie in the first pixel of their image: they are shares of its sides, are they "
            "not? Multiply them by its width and height"
        )
    stated = [(o.stated, p) for o, p in objects if o.stated is not None]  # x, y, width, height
    over = sum(x + w > p.width + 1 or y + h > p.height + 1 for (x, y, w, h), p in stated)
    if 2 * over > len(stated) and all(x < w <= p.width + 1 and y < h <= p.height + 1 for (x, y, w, h), p in stated):
        raise DataError(
            f"{where}: {over} of {len(stated)} boxes reach over their image's edge, and all would fit as two corners: COCO's "
            "boxes are x, y, width, height; convert them"
        )


def whole_images(split: DetectionSplit, *, bad: Bad) -> DetectionSplit:
    """The split once every image of it was decoded: an engine would come upon a broken one hours into its course.

    Raises:
        DataError: broken images with `bad="error"`, or nothing left.
    """
    broken = undecodable(split, range(len(split)))
    return _without(split, broken, UNDECODED, Faults(split.source.root, bad))


def undecodable(split: DetectionSplit, rows: Collection[int]) -> set[int]:
    """Those rows whose image an engine would stop at."""

    def decodes(row: int) -> bool:
        picture = split.pictures[row]
        try:
            read_image(split.file(row), picture.width, picture.height)
        except Changed:
            raise
        except DataError:
            return False
        return True

    return _failing(decodes, rows, label=f"images of {split.dataset} {split.split}")


def _of_another_size(split: DetectionSplit, rows: Collection[int]) -> set[int]:
    """Rows whose image's header is unreadable or gives another size than the annotation."""

    def fits(row: int) -> bool:
        try:
            return header_size(split.file(row)) == (split.pictures[row].width, split.pictures[row].height)
        except CorruptImage:
            return False

    return _failing(fits, rows, label=f"headers of {split.dataset} {split.split}")


def _failing(test: Callable[[int], bool], rows: Collection[int], *, label: str) -> set[int]:
    with ThreadPoolExecutor(_READERS) as pool:
        told = track(pool.map(test, rows), total=len(rows), label=label)
        return {row for row, passed in zip(rows, told, strict=True) if not passed}


def _without(split: DetectionSplit, rows: set[int], kind: str, faults: Faults) -> DetectionSplit:
    """The split without some images, and with all faults said. Raises DataError as `read_voc`."""
    for row in sorted(rows):
        faults.add(kind, split.source.name(row))
    left_out = (*split.left_out, *faults.settle())
    if len(rows) == len(split):
        raise DataError(f"{faults.where}: no image of it can be used; is the data set whole?")
    kept = of_rows(split, [row for row in range(len(split)) if row not in rows]) if rows else split
    repaired = {kind: len(names) for kind, names in faults.mended.items()}
    return replace(kept, left_out=left_out, repaired={**split.repaired, **repaired})
