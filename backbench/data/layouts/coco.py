"""COCO 2017: `<root>/annotations/instances_<split>.json`, images in `<root>/<split>`."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from backbench.data.coco_json import read_json
from backbench.data.names import spelled_otherwise
from backbench.data.splits import Files, ImageSplit
from backbench.errors import DataError
from backbench.printable import printable, some

_FIELDS = {
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("id", "image_id", "category_id", "bbox"),
    "categories": ("id", "name"),
}
_TYPES = {"id": int | str, "image_id": int | str, "category_id": int | str, "file_name": str, "name": str}
_IDS = {"id", "image_id", "category_id"}


LABELS = frozenset({"classes", "boxes", "masks"})


def recognise(root: Path) -> tuple[str, str] | None:
    """Return the splits of `annotations/instances_<split>.json`: one named train*, and one named test* or else val*."""
    files = sorted((Path(root) / "annotations").glob("instances_*.json"))
    there = [file.stem.removeprefix("instances_") for file in files]
    first = [next((name for name in there if name.startswith(word)), None) for word in ("train", "test", "val")]
    train, test = first[0], first[1] or first[2]
    return (train, test) if train and test else None


@dataclass(frozen=True)
class Instances:
    """A checked annotation file: records have all fields, and every reference between them is valid."""

    images: tuple[dict[str, Any], ...]  # sorted by id
    annotations: tuple[dict[str, Any], ...]
    categories: tuple[dict[str, Any], ...]  # sorted by id; the real ids run from 1 to 90, with gaps
    stray: tuple[
        tuple[int, str], ...
    ] = ()  # left out: (annotation id, which of "image_id" and "category_id" is unknown)
    order: tuple[int | str, ...] = ()  # ids of all images, in the order of the file


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
    return checked(read_json(file, tuple(_FIELDS)), file, strict=strict)


def checked(record: dict[str, list[dict[str, Any]]], file: Path, *, strict: bool = True) -> Instances:
    """Return the checked records of an annotation file; arguments and errors as `instances`."""
    ids = {kind: _checked_ids(record[kind], kind, file) for kind in _FIELDS}
    stray: dict[int, str] = {}
    for key, kind in (("image_id", "images"), ("category_id", "categories")):
        unknown = [a["id"] for a in record["annotations"] if a[key] not in ids[kind]]
        if unknown and strict:
            raise DataError(f"{file}: annotations whose {key} is unknown: {some(unknown)} (annotation ids)")
        stray |= {number: key for number in unknown if number not in stray}
    if not record["images"] or not record["categories"]:
        raise DataError(f"{file}: no images or no categories in it")
    by_id = {kind: tuple(sorted(record[kind], key=lambda item: item["id"])) for kind in ("images", "categories")}
    known = tuple(a for a in record["annotations"] if a["id"] not in stray)
    order = tuple(image["id"] for image in record["images"])
    return Instances(by_id["images"], known, by_id["categories"], tuple(stray.items()), order)


def read(root: Path, split: str, *, dataset: str = "coco") -> ImageSplit:
    """Images by id; labels (N, classes) int8 say which categories occur: 1 present, 0 only as a crowd, -1 absent.

    Raises:
        DataError: as `instances`, an image of the file is not in the folder or is listed twice, or an `iscrowd` is odd.
    """
    file = annotation_file(root, split)
    known = instances(file)
    folder = Path(root) / split
    names = tuple(image["file_name"] for image in known.images)
    try:
        there = set(os.listdir(folder))  # noqa: PTH208 (names only, for 118,287 files)
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror}); is the data set whole?") from None
    absent = sorted(name for name in set(names) - there if not is_below(name, folder))
    if absent:
        raise DataError(f"{file}: images that are not in {folder}: {some(absent)}{spelled_otherwise(absent, there)}")
    if twice := sorted(listed_twice(known.images)):
        raise DataError(f"{file}: images that are listed twice: {some([printable(name) for name in twice])}")
    row = {image["id"]: i for i, image in enumerate(known.images)}
    column = {category["id"]: i for i, category in enumerate(known.categories)}
    labels = np.full((len(row), len(column)), -1, np.int8)
    for a in known.annotations:
        cell, crowd = (row[a["image_id"]], column[a["category_id"]]), crowd_of(a)
        if crowd is None:
            raise DataError(f"{file}: iscrowd of annotation {a['id']} is {_shown(a['iscrowd'])}, neither 0 nor 1")
        labels[cell] = max(labels[cell], 0 if crowd else 1)
    classes = tuple(category["name"] for category in known.categories)
    return ImageSplit(dataset, split, Files(folder, names), labels, classes)


def is_below(name: str, folder: Path) -> bool:
    """Return whether a name with several parts is a file below the folder. Paths that lead outside are not looked at."""
    path = PurePosixPath(name)
    inside = not path.is_absolute() and ".." not in path.parts
    return inside and "/" in name and os.path.isfile(folder / name)  # noqa: PTH113 (Path's raises for long names)


def crowd_of(annotation: dict[str, Any]) -> bool | None:
    """Return whether an annotation marks a crowd: False without `iscrowd`, None when it is not 0, 1 or null."""
    stated = annotation.get("iscrowd")
    if stated is None:
        return False
    return bool(stated) if isinstance(stated, bool | int | float) and stated in (0, 1) else None


def is_number(value: object) -> bool:
    """Return whether a JSON value is a number: booleans and integers too large for a float are not."""
    return isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**1023)


def listed_twice(images: Sequence[dict[str, Any]]) -> set[str]:
    """Return file names that two images share; `./1.jpg` equals `1.jpg`."""
    of_file: dict[str, list[str]] = {}
    for image in images:
        of_file.setdefault(posixpath.normpath(image["file_name"]), []).append(image["file_name"])
    return {name for names in of_file.values() if len(names) > 1 for name in names}


def names_alike(categories: Sequence[dict[str, Any]]) -> list[str]:
    """Return `'cup' (ids 3, 7)` for every name that several categories share."""
    of_name: dict[str, list[str]] = {}
    for category in categories:
        of_name.setdefault(category["name"], []).append(str(category["id"]))
    return [f"'{name}' (ids {', '.join(ids)})" for name, ids in of_name.items() if len(ids) > 1]


def _checked_ids(records: list[dict[str, Any]], kind: str, file: Path) -> set[int]:
    for item in records:
        lacking = [key for key in _FIELDS[kind] if not isinstance(item, dict) or key not in item]
        if lacking:
            raise DataError(f"{file}: a record of '{kind}' without '{lacking[0]}': {_shown(item)}")
        odd = [key for key in _FIELDS[kind] if not _is_of_its_type(key, item[key])]
        if odd:
            raise DataError(f"{file}: a record of '{kind}' whose '{odd[0]}' is {_shown(item[odd[0]])}: {_shown(item)}")
        for side in {"width", "height"} & item.keys():
            if isinstance(item[side], float) and item[side].is_integer():  # some tools write 3.0 for 3
                item[side] = int(item[side])
    ids = {item["id"] for item in records}
    if len({isinstance(i, str) for i in ids}) > 1:
        raise DataError(f"{file}: some ids of '{kind}' are numbers and some are words; make them alike")
    if len(ids) != len(records):
        raise DataError(f"{file}: {len(records) - len(ids)} ids of '{kind}' are there twice")
    return ids


def _shown(value: object) -> str:
    return printable(repr(value), 80)


def _is_of_its_type(key: str, value: object) -> bool:
    """Return whether a value has its key's type. Booleans are not ids; a lone UTF-16 surrogate is not a name."""
    if isinstance(value, bool) and key in _IDS:
        return False
    if key == "name" and isinstance(value, str) and not value.isprintable() and not _is_utf8(value):
        return False
    return isinstance(value, _TYPES.get(key, object))


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
