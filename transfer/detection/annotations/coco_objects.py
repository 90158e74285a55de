"""Turn COCO's annotations into objects. Check every number for type and range, and report repairs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

from backbench.data.layouts.coco import crowd_of, is_number
from transfer.detection.annotations.faults import NO_AREA, Faults, box_fault, clipped
from transfer.detection.annotations.split import Box, Instance

NUMBERS = "boxes that are not four numbers"
POLYGON = "polygons with fewer than three points, or with points far outside their image"
RUN_LENGTH = "run-length masks that do not fill their image"
CROWD = "objects whose iscrowd is neither 0 nor 1"
NO_CROWD = "objects whose iscrowd is null, read as 0"
NO_MASK = "objects without a mask"
_FLAT_IN_TRAIN2017 = (200365, 550395)  # two images with a box of height 0 in the official annotations
_LONGEST = 1_000_000  # pixels of a side; no decoder reads a longer one, and its masks would fill the memory
_MOST = 178_956_970  # pixels; Pillow decodes no larger image (twice its MAX_IMAGE_PIXELS)


@dataclass(frozen=True)
class Sized:
    """An image as listed in its annotation file."""

    id: int | str
    name: str
    width: int
    height: int


def pixels_of(image: dict[str, Any]) -> tuple[int, int] | None:
    """Return width and height from a COCO file, or None if they cannot be an image's size."""
    width, height = image["width"], image["height"]
    if not all(type(side) is int and 0 < side <= _LONGEST for side in (width, height)):
        return None
    return (width, height) if width * height <= _MOST else None


def instance(annotation: dict[str, Any], image: Sized, label: int, faults: Faults, *, masks: bool) -> Instance | None:
    """Return the object, or None if no engine and no metric can use it. `faults` collects faults and repairs.

    Args:
        label: row of its category.
        masks: every object needs a mask.
    """
    name = f"annotation {annotation['id']} of {image.name}"
    mask, fault = usable_mask(annotation.get("segmentation"), image)
    box = annotation["bbox"]
    if wrong := _box_fault(box, image) or (fault if fault and mask is None else None):
        official = wrong == NO_AREA and image.id in _FLAT_IN_TRAIN2017
        (faults.mend if official else faults.add)(wrong, name)
        return None
    if fault:
        faults.add(fault, name)
    crowd = crowd_of(annotation)
    if crowd is None:
        faults.add(CROWD, name)
        return None
    if masks and mask is None:
        faults.add(NO_MASK, name)
        return None
    if "iscrowd" in annotation and annotation["iscrowd"] is None:
        faults.mend(NO_CROWD, name)
    area, source = _area(annotation, mask, image, name, faults)
    x, y, width, height = box
    inside = clipped((x, y, x + width, y + height), image.width, image.height, name, faults)
    return Instance(label, inside, crowd=crowd, mask=mask, area=area, area_of=source, stated=(x, y, width, height))


def _box_fault(box: object, image: Sized) -> str | None:
    if not _are_numbers(box) or len(box) != 4:
        return NUMBERS
    x, y, width, height = box
    return box_fault((x, y, x + width, y + height), image.width, image.height)


# ---------------------------------------------------------------- areas


def _area(
    annotation: dict[str, Any], mask: Any, image: Sized, name: str, faults: Faults
) -> tuple[float, Literal["stated", "mask", "box"]]:
    """Return the area by which the metric counts an object as small, medium or large, and its source.

    This is the stated area. If that is impossible, it is the mask's, or the box's without a mask (as detectron2
    evaluation/coco_evaluation.py does). pycocotools ignores an object with an area below 0.
    """
    stated: Any = annotation.get("area")
    wrong = _area_fault(stated, image)
    if wrong is None:
        return stated, "stated"
    pixels = mask_area(mask, image)
    faults.mend(f"{wrong}, taken from their {'masks' if pixels else 'boxes'}", name)
    _, _, width, height = annotation["bbox"]
    return (pixels, "mask") if pixels else (width * height, "box")


def _area_fault(area: Any, image: Sized) -> str | None:
    """Return the fault of a stated area, or None. Like boxes, masks may reach one pixel over the edge."""
    if area is None:
        return "areas that are missing"
    if not is_number(area):
        return "areas that are not numbers"
    if not math.isfinite(area):
        return "areas that are not finite"
    if area <= 0:
        return "areas of 0 or less"
    return "areas larger than their image" if area > (image.width + 1) * (image.height + 1) else None


def mask_area(mask: Any, image: Sized) -> float:
    """Return the pixels of a mask that `usable_mask` accepted, as pycocotools counts them; 0 without a mask."""
    if not mask:
        return 0.0
    from pycocotools import mask as coco_mask

    if isinstance(mask, dict) and isinstance(mask["counts"], str):
        return float(coco_mask.area(mask))
    packed = coco_mask.frPyObjects(mask, image.height, image.width)
    return float(coco_mask.area(coco_mask.merge(packed) if isinstance(packed, list) else packed))


# ---------------------------------------------------------------- masks


def usable_mask(mask: Any, image: Sized) -> tuple[Any, str | None]:
    """Return the usable part of a `segmentation`, or None, and the fault of the rest, or None."""
    if not mask:
        return None, None
    if isinstance(mask, dict):
        whole = _is_run_length(mask, image.width, image.height)
        return ({**mask, "size": [image.height, image.width]}, None) if whole else (None, RUN_LENGTH)
    if not isinstance(mask, list):
        return None, POLYGON
    polygons = [p for p in mask if _is_polygon(p, image.width, image.height)]
    if len(polygons) == len(mask):
        return mask, None
    return polygons or None, POLYGON


def _is_polygon(points: object, width: int, height: int) -> bool:
    """True for at least three points within one image size of the image; rendering points farther away takes memory."""
    if not _are_numbers(points) or len(points) < 6 or len(points) % 2:
        return False
    return all(-s <= low and high <= 2 * s for s, low, high in (
        (width, min(points[::2]), max(points[::2])), (height, min(points[1::2]), max(points[1::2]))
    ))  # fmt: skip


def _are_numbers(values: object) -> TypeGuard[list[float]]:
    """True for a list of finite numbers with a finite sum."""
    if not isinstance(values, list):
        return False
    kinds = set(map(type, values))
    try:
        return kinds <= {int, float} and math.isfinite(sum(values))
    except OverflowError:
        return False


def _is_run_length(mask: dict[str, Any], width: int, height: int) -> bool:
    """True if a mask has the image's size and its runs fill it."""
    counts = mask.get("counts")
    if not _are_numbers(mask.get("size")) or mask["size"] != [height, width] or not counts:
        return False
    runs = unpacked(counts) if isinstance(counts, str) else counts
    if not _are_numbers(runs) or any(run != int(run) for run in runs):
        return False
    return min(runs) >= 0 and sum(runs) == width * height


def unpacked(counts: str) -> list[int] | None:
    """Return the runs of a packed run-length mask, or None if the string is invalid (cocoapi common/maskApi.c, rleFrString).

    A character has five bits, low ones first, and a flag if more follow. From the fourth run on, the packed value is the
    difference to the run two places before. pycocotools checks nothing: on other strings it makes up pixels or crashes.
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


def whole_box(item: Instance) -> Box:
    """Return x, y, width and height as stated in the file, not clipped. COCO's metric uses this box."""
    if item.stated is not None:
        return item.stated
    x0, y0, x1, y1 = item.box
    return x0, y0, x1 - x0, y1 - y0
