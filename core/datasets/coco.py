"""COCO 2017: `<root>/annotations/instances_<split>.json`, images in `<root>/<split>`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.datasets import Files, ImageSplit, read_json, some
from core.errors import DataError

_FIELDS = {
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("id", "image_id", "category_id", "bbox"),
    "categories": ("id", "name"),
}
_TYPES = {"id": int | str, "image_id": int | str, "category_id": int | str, "file_name": str, "name": str}


@dataclass(frozen=True)
class Instances:
    """An annotation file whose records have their fields and refer to each other."""

    images: tuple[dict[str, Any], ...]  # sorted by id
    annotations: tuple[dict[str, Any], ...]
    categories: tuple[dict[str, Any], ...]  # sorted by id; the real ids run from 1 to 90, with gaps
    stray: tuple[tuple[int, str], ...] = ()  # (annotation id, "image_id" or "category_id" that is unknown): left out


def annotation_file(root: Path, split: str) -> Path:
    """`<root>/annotations/instances_<split>.json`."""
    return Path(root) / "annotations" / f"instances_{split}.json"


def instances(file: Path, *, strict: bool = True) -> Instances:
    """Read and check an `instances_*.json`.

    Args:
        strict: annotations of unknown images or categories are an error; else they are `stray`.

    Raises:
        DataError: not JSON, a field is missing, ids are there twice, or stray annotations when `strict`.
    """
    record = read_json(file, tuple(_FIELDS))
    ids = {kind: _checked_ids(record[kind], kind, file) for kind in _FIELDS}
    stray = {}
    for key, kind in (("image_id", "images"), ("category_id", "categories")):
        unknown = [a["id"] for a in record["annotations"] if a[key] not in ids[kind]]
        if unknown and strict:
            raise DataError(f"{file}: annotations whose {key} is unknown: {some(unknown)} (annotation ids)")
        stray |= {number: key for number in unknown if number not in stray}
    if not record["images"] or not record["categories"]:
        raise DataError(f"{file}: no images or no categories in it")
    by_id = {kind: tuple(sorted(record[kind], key=lambda item: item["id"])) for kind in ("images", "categories")}
    known = tuple(a for a in record["annotations"] if a["id"] not in stray)
    return Instances(by_id["images"], known, by_id["categories"], tuple(stray.items()))


def read(root: Path, split: str, *, dataset: str = "coco") -> ImageSplit:
    """Images by id; labels (N, classes) int8 say which categories occur: 1 present, 0 only as a crowd, -1 absent.

    Raises:
        DataError: as `instances`, or an image of the file is not in the folder.
    """
    file = annotation_file(root, split)
    known = instances(file)
    folder = Path(root) / split
    names = tuple(image["file_name"] for image in known.images)
    try:
        absent = sorted(set(names) - set(os.listdir(folder)))  # noqa: PTH208 (names only, for 118,287 files)
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror}); is the data set whole?") from None
    if absent:
        raise DataError(f"{file}: images that are not in {folder}: {some(absent)}")
    row = {image["id"]: i for i, image in enumerate(known.images)}
    column = {category["id"]: i for i, category in enumerate(known.categories)}
    labels = np.full((len(row), len(column)), -1, np.int8)
    for a in known.annotations:
        cell = row[a["image_id"]], column[a["category_id"]]
        labels[cell] = max(labels[cell], 0 if a.get("iscrowd") else 1)
    classes = tuple(category["name"] for category in known.categories)
    return ImageSplit(dataset, split, Files(folder, names), labels, classes)


def _checked_ids(records: list[dict[str, Any]], kind: str, file: Path) -> set[int]:
    for item in records:
        lacking = [key for key in _FIELDS[kind] if not isinstance(item, dict) or key not in item]
        if lacking:
            raise DataError(f"{file}: a record of '{kind}' without '{lacking[0]}': {str(item)[:80]}")
        odd = [key for key in _FIELDS[kind] if not isinstance(item[key], _TYPES.get(key, object))]
        if odd:
            raise DataError(f"{file}: a record of '{kind}' whose '{odd[0]}' is {item[odd[0]]!r}: {str(item)[:80]}")
        for side in {"width", "height"} & item.keys():
            if isinstance(item[side], float) and item[side].is_integer():  # as some tools write them
                item[side] = int(item[side])
    ids = {item["id"] for item in records}
    if len({isinstance(i, str) for i in ids}) > 1:
        raise DataError(f"{file}: some ids of '{kind}' are numbers and some are words; make them alike")
    if len(ids) != len(records):
        raise DataError(f"{file}: {len(records) - len(ids)} ids of '{kind}' are there twice")
    return ids
