"""What is wrong with annotations and images: counted and named before anything is trained on them, then left out or refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from core.datasets import some
from core.errors import DataError
from core.files import Changed
from core.progress import say, track
from transfer.detection.data import Box, DetectionSplit, of_rows
from transfer.detection.reading import read_image

Bad = Literal["error", "skip"]

HEADERS = 200  # images whose header is read with the annotations
_READERS = 8  # threads: reading from a network's disk is mostly waiting
UNDECODED = "images that cannot be decoded, or not to the size that their annotation states"
SIZE = "images that are unreadable or not of the size that their annotation states"
MISSING = "images that are not in the folder"
NO_AREA = "boxes with no area"
OUTSIDE = "boxes outside their image"
POLYGON = "polygons that are not three points or more, in or near their image"
RUN_LENGTH = "run-length masks that do not fill their image"


class Faults:
    """Faults of a split by kind: how many, and the first names, go into the log.

    With `bad="error"` they are then a DataError. With `skip` whatever holds one is left out: an image that is missing,
    of another size than stated or without a readable annotation; an object without area, outside its image, of an
    unknown class or of an unknown image; a polygon that is none, and its object when it has no other.
    """

    def __init__(self, where: Path, bad: Bad) -> None:
        self.where, self.bad = where, bad
        self.names: dict[str, list[str]] = {}
        self.mended: dict[str, list[str]] = {}

    def add(self, kind: str, name: str) -> None:
        """Something that cannot be used."""
        self.names.setdefault(kind, []).append(name)

    def mend(self, kind: str, name: str) -> None:
        """Something that was put right, or is known of the official files: never an error."""
        self.mended.setdefault(kind, []).append(name)

    def settle(self) -> list[str]:
        """Say everything; what is left out, a sentence for each kind. Raises DataError for faults with `bad="error"`."""
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


def usable(annotation: dict[str, Any], image: dict[str, Any]) -> tuple[dict[str, Any] | None, str | None]:
    """A COCO annotation without what no engine and no metric can use, None when nothing is left; and what that was."""
    box, mask = annotation["bbox"], annotation.get("segmentation")
    if not _are_numbers(box) or len(box) != 4:
        return None, "boxes that are not four numbers"
    x, y, width, height = box
    fault = box_fault((x, y, x + width, y + height), image["width"], image["height"])
    if fault:
        return None, fault
    if not mask:
        return annotation, None
    if isinstance(mask, dict):
        whole = _is_run_length(mask, image["width"], image["height"])
        return (annotation, None) if whole else (None, RUN_LENGTH)
    if not isinstance(mask, list):
        return None, POLYGON
    polygons = [p for p in mask if _is_polygon(p, image["width"], image["height"])]
    if len(polygons) == len(mask):
        return annotation, None
    return ({**annotation, "segmentation": polygons} if polygons else None), POLYGON


def box_fault(box: Box, width: int, height: int) -> str | None:
    """What is wrong with a box, or None."""
    x0, y0, x1, y1 = box
    if not all(math.isfinite(value) for value in box) or x1 <= x0 or y1 <= y0:
        return NO_AREA
    if x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0:
        return OUTSIDE
    return None


def clipped(box: Box, width: int, height: int, name: str, faults: Faults) -> Box:
    """The box within its image; what reached further than rounding does is said."""
    inside = (max(box[0], 0), max(box[1], 0), min(box[2], width), min(box[3], height))
    if max(abs(a - b) for a, b in zip(box, inside, strict=True)) > 1:
        faults.mend("boxes that reached over the image's edge, clipped", name)
    return tuple(float(value) for value in inside)


def pixels_of(image: dict[str, Any]) -> tuple[int, int] | None:
    """Width and height by a COCO file; None where they are no size."""
    width, height = image["width"], image["height"]
    return (width, height) if all(isinstance(side, int) and side > 0 for side in (width, height)) else None


def _is_polygon(points: object, width: int, height: int) -> bool:
    """Three points or more; far outside the image (by its own size) they are no outline, and rendering them takes memory."""
    if not _are_numbers(points) or len(points) < 6 or len(points) % 2:
        return False
    return all(-s <= low and high <= 2 * s for s, low, high in (
        (width, min(points[::2]), max(points[::2])), (height, min(points[1::2]), max(points[1::2]))
    ))  # fmt: skip


def _are_numbers(values: object) -> bool:
    try:
        return isinstance(values, list) and math.isfinite(sum(values))
    except (TypeError, OverflowError):
        return False


def _is_run_length(mask: dict[str, Any], width: int, height: int) -> bool:
    """Whether a mask's size is the image's, and its runs fill it."""
    counts = mask.get("counts")
    if mask.get("size") != [height, width] or not counts:
        return False
    runs = unpacked(counts) if isinstance(counts, str) else counts
    if not _are_numbers(runs) or any(run != int(run) for run in runs):
        return False
    return min(runs) >= 0 and sum(runs) == width * height


def unpacked(counts: str) -> list[int] | None:
    """The runs of a packed run-length mask, None when the string packs none (cocoapi common/maskApi.c, rleFrString).

    A character holds five bits, low ones first, and whether more follow; from the fourth run on, what is packed is the
    difference to the run before the last. pycocotools checks nothing: of another string it makes pixels, or crashes.
    """
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:  # negative
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs if not shift else None


def sound(split: DetectionSplit, faults: Faults) -> DetectionSplit:
    """The split without images of another size than stated, by the headers of a sample. Raises DataError as `read_voc`."""
    sample = np.random.default_rng(0).permutation(len(split))[:HEADERS].tolist()
    misfits = _of_another_size(split, sample)
    if misfits:  # where one is wrong others are
        misfits |= _of_another_size(split, range(len(split)))
    return _without(split, misfits, SIZE, faults)


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
            with Image.open(split.file(row)) as image:
                return image.size == (split.pictures[row].width, split.pictures[row].height)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
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
    return replace(kept, left_out=left_out)
