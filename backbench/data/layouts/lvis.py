"""LVIS v1: `<root>/annotations/lvis_v1_<split>.json` or `<root>/lvis_v1_<split>.json`, images in COCO's folders below the root.

An image's file is the end of its `coco_url`, `train2017/000000391895.jpg`; the validation images come from both of COCO's
folders. The annotations are federated (Gupta et al. 2019): each image names the categories that were looked for and not
found (`neg_category_ids`) and those whose objects are not all annotated (`not_exhaustive_category_ids`). About all other
categories without an object nothing is known. Each category has a frequency: `r`are, `c`ommon or `f`requent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backbench.data.coco_json import read_json
from backbench.data.layouts import coco
from backbench.data.splits import Files, ImageSplit
from backbench.errors import DataError
from backbench.printable import printable, some

LABELS = frozenset({"boxes", "masks"})
FREQUENCIES = ("r", "c", "f")
_SPLITS = ("train", "val")  # the annotations of the test images are not public
_ABSENT, _PARTLY = "neg_category_ids", "not_exhaustive_category_ids"


@dataclass(frozen=True)
class Federated:
    """A checked annotation file."""

    instances: coco.Instances
    absent: Mapping[int, tuple[int, ...]]  # image id -> categories that were looked for and are not in the image
    partly: Mapping[int, tuple[int, ...]]  # image id -> categories whose objects are not all annotated
    frequencies: tuple[str, ...]  # of each category by id


def recognise(root: Path) -> tuple[str, str] | None:
    """Return `train` and `val` when both have annotations."""
    return _SPLITS if all(annotation_file(root, split).is_file() for split in _SPLITS) else None


def annotation_file(root: Path, split: str) -> Path:
    """Return `lvis_v1_<split>.json` in `annotations` or, where it is there, in the root itself."""
    name = f"lvis_v1_{split}.json"
    return Path(root) / name if (Path(root) / name).is_file() else Path(root) / "annotations" / name


def federated(file: Path) -> Federated:
    """Read and check an annotation file.

    Raises:
        DataError: not LVIS v1's format, a category of an image is unknown, or an annotation's image or category is.
    """
    record = read_json(file, ("images", "annotations", "categories"))
    for image in record["images"]:
        if isinstance(image, dict):
            image["file_name"] = _path(image, file)
    known = coco.checked(record, file)
    categories = {category["id"] for category in known.categories}
    odd = [str(c["id"]) for c in known.categories if c.get("frequency") not in FREQUENCIES]
    if odd:
        raise DataError(f"{file}: categories whose frequency is not r, c or f: {some(odd)}; LVIS v1 states it")
    lists = {key: {image["id"]: _listed(image, key, categories, file) for image in known.images}
             for key in (_ABSENT, _PARTLY)}  # fmt: skip
    return Federated(known, lists[_ABSENT], lists[_PARTLY], tuple(c["frequency"] for c in known.categories))


def read(root: Path, split: str, *, dataset: str = "lvis") -> ImageSplit:
    """List the images of a split by id, without labels: nothing is known about most categories of an image.

    Raises:
        DataError: as `federated`, or images are not in their folder.
    """
    file = annotation_file(root, split)
    known = federated(file).instances
    names = tuple(image["file_name"] for image in known.images)
    if absent := [name for name in names if not coco.is_below(name, Path(root))]:
        raise DataError(f"{file}: images that are not below {root}: {some(absent)}; link COCO's folders there")
    return ImageSplit(dataset, split, Files(Path(root), names), None, tuple(c["name"] for c in known.categories))


def _path(image: dict[str, Any], file: Path) -> str:
    address = image.get("coco_url")
    parts = address.split("/")[-2:] if isinstance(address, str) else []
    if len(parts) != 2 or not all(parts):
        shown = printable(repr(address), 80)
        raise DataError(f"{file}: an image's coco_url is {shown}; LVIS v1 states COCO's address of every image")
    return "/".join(parts)


def _listed(image: dict[str, Any], key: str, categories: set[Any], file: Path) -> tuple[int, ...]:
    stated = image.get(key)
    if not isinstance(stated, list) or not all(type(c) in (int, str) and c in categories for c in stated):
        raise DataError(
            f"{file}: image {image['id']} has no list {key} of known categories, so false detections in it cannot be told "
            "from missing annotations; give LVIS v1's own file"
        )
    return tuple(sorted(stated))
