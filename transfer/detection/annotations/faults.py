"""Count and name faults of annotations and images before training, then leave them out or refuse them."""

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
_READERS = 8  # threads: reading from a network disk is mostly waiting
UNDECODED = "images that cannot be decoded, or not to the size in their annotation"
SIZE = "images that are unreadable or not of the size in their annotation"
MISSING = "images that are not in the folder"
NO_AREA = "boxes with no area"
OUTSIDE = "boxes outside their image"
LEADS_OUT = "file names that lead out of the folder"
TWICE = "images that are listed twice"


class Faults:
    """Faults of a split by kind. Their number and first names go into the log.

    With `bad="error"` they raise a DataError. With `skip` the faulty part is left out: an image that is missing, has another
    size than stated, is listed twice or has no readable annotation; an object without area, outside its image, of an unknown
    class or image, or with an invalid iscrowd; an invalid polygon, and its object if it has no other.
    """

    def __init__(self, where: Path, bad: Bad) -> None:
        self.where, self.bad = where, bad
        self.names: dict[str, list[str]] = {}
        self.mended: dict[str, list[str]] = {}

    def add(self, kind: str, name: str) -> None:
        """Add something that cannot be used."""
        self.names.setdefault(kind, []).append(printable(name))

    def mend(self, kind: str, name: str) -> None:
        """Add something that was repaired or is a known fault of the official files. It is never an error."""
        self.mended.setdefault(kind, []).append(printable(name))

    def settle(self) -> list[str]:
        """Print and return a sentence for each kind of fault. Raises DataError for faults with `bad="error"`."""
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
    """Return the fault of a box, or None."""
    x0, y0, x1, y1 = box
    if not all(math.isfinite(value) for value in box) or x1 <= x0 or y1 <= y0:
        return NO_AREA
    if x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0:
        return OUTSIDE
    return None


def clipped(box: Box, width: int, height: int, name: str, faults: Faults) -> Box:
    """Return the box clipped to its image. A box that reached more than one pixel over the edge is noted."""
    x0, y0, x1, y1 = inside = (max(box[0], 0), max(box[1], 0), min(box[2], width), min(box[3], height))
    if max(abs(a - b) for a, b in zip(box, inside, strict=True)) > 1:
        faults.mend("boxes that reached over the image's edge, clipped", name)
    return float(x0), float(y0), float(x1), float(y1)


def sound(split: DetectionSplit, faults: Faults) -> DetectionSplit:
    """Return the split without images of another size than stated. Raises DataError like `read_voc`.

    It reads the headers of a sample, and those of all images if one of the sample is wrong.
    """
    _refuse_other_boxes(split, faults.where)
    sample = np.random.default_rng(0).permutation(len(split))[:HEADERS].tolist()
    misfits = _of_another_size(split, sample)
    if misfits:  # then others may be wrong too
        misfits |= _of_another_size(split, range(len(split)))
    return _without(split, misfits, SIZE, faults)


def _refuse_other_boxes(split: DetectionSplit, where: Path) -> None:
    """Raise DataError if all boxes of a split have another form than the layout's: a detector would learn wrong boxes."""
    objects = [(o, p) for p in split.pictures for o in p.instances]
    if objects and all(max(o.box[2:]) <= 1 < min(p.width, p.height) for o, p in objects):
        raise DataError(
            f"{where}: all {len(objects)} boxes lie in the first pixel of their image, so they seem to be fractions of its "
            "sides: multiply them by its width and height"
        )
    stated = [(o.stated, p) for o, p in objects if o.stated is not None]  # x, y, width, height
    over = sum(x + w > p.width + 1 or y + h > p.height + 1 for (x, y, w, h), p in stated)
    if 2 * over > len(stated) and all(x < w <= p.width + 1 and y < h <= p.height + 1 for (x, y, w, h), p in stated):
        raise DataError(
            f"{where}: {over} of {len(stated)} boxes reach over the edge of their image, and all would fit as two corners: "
            "COCO's boxes are x, y, width, height; convert them"
        )


def whole_images(split: DetectionSplit, *, bad: Bad) -> DetectionSplit:
    """Decode every image and return the split without broken ones. An engine would meet them hours into its training.

    Raises:
        DataError: broken images with `bad="error"`, or no image is left.
    """
    broken = undecodable(split, range(len(split)))
    return _without(split, broken, UNDECODED, Faults(split.source.root, bad))


def undecodable(split: DetectionSplit, rows: Collection[int]) -> set[int]:
    """Return those rows with an image that would stop an engine."""

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
    """Return rows with an image header that is unreadable or has another size than the annotation."""

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
    """Return the split without some images, and report all faults. Raises DataError like `read_voc`."""
    for row in sorted(rows):
        faults.add(kind, split.source.name(row))
    left_out = (*split.left_out, *faults.settle())
    if len(rows) == len(split):
        raise DataError(f"{faults.where}: none of its images can be used; is the data set complete?")
    kept = of_rows(split, [row for row in range(len(split)) if row not in rows]) if rows else split
    repaired = {kind: len(names) for kind, names in faults.mended.items()}
    return replace(kept, left_out=left_out, repaired={**split.repaired, **repaired})
