"""iNaturalist 2018: `<root>/{train,val}2018.json` in COCO's format, one annotation per image, files below `<root>`."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from backbench.data.coco_json import read_json
from backbench.data.names import check_paths
from backbench.data.splits import Files, ImageSplit
from backbench.errors import DataError
from backbench.printable import printable, some

LABELS = frozenset({"class"})


def recognise(root: Path) -> tuple[str, str] | None:
    """Return `train` and `val` when both json files exist."""
    whole = all((Path(root) / f"{split}2018.json").is_file() for split in ("train", "val"))
    return ("train", "val") if whole else None


def read(root: Path, split: str, *, dataset: str = "inat18") -> ImageSplit:
    """List a split; the train file defines the classes, numbered in the order of their ids.

    Files are not looked at: that is left to the doctor.

    Raises:
        DataError: a file is missing or not JSON; images and annotations do not pair; a class without a training image.
    """
    root = Path(root)
    train_file, file = root / "train2018.json", root / f"{split}2018.json"
    train = read_json(train_file, ("images", "annotations"))
    category_ids, names = _categories(train, train_file)
    record = train if split == "train" else read_json(file, ("images", "annotations"))
    _check_names(record, file, dict(zip(category_ids, names, strict=True)), train_file)
    category_of = _pairs(record, file)
    paths = tuple(_field(image, "file_name", file) for image in record["images"])
    check_paths(file, paths)
    number = {category: label for label, category in enumerate(category_ids)}
    chosen = [category_of[image["id"]] for image in record["images"]]
    unknown = _ordered(set(chosen) - set(number))
    if unknown:
        raise DataError(f"{file}: category ids that {train_file.name} does not have: {some(unknown)}")
    labels = np.asarray([number[category] for category in chosen], np.int64)
    if split == "train":
        empty = _ordered(set(category_ids) - set(chosen))
        if empty:
            raise DataError(f"{file}: categories without an image: {some(empty)}; is the file whole?")
    if not paths:
        raise DataError(f"{file}: no images in it")
    return ImageSplit(dataset, split, Files(root, paths), labels, names)


def _categories(train: dict[str, list[dict[str, Any]]], file: Path) -> tuple[list[int | str], tuple[str, ...]]:
    """Return sorted category ids and their names, from `categories` or else from the annotations."""
    if not train.get("categories"):
        ids = _ordered({_field(a, "category_id", file) for a in train["annotations"]})
        return ids, tuple(str(i) for i in ids)
    named = {_field(c, "id", file): printable(c.get("name", c["id"])) for c in train["categories"]}
    ids = _ordered(named)
    if len(ids) != len(train["categories"]):
        raise DataError(f"{file}: category ids are there twice")
    names = tuple(named[i] for i in ids)
    return ids, names if len(set(names)) == len(names) else tuple(str(i) for i in ids)


def _check_names(
    record: dict[str, list[dict[str, Any]]], file: Path, names: dict[int | str, str], train_file: Path
) -> None:
    """Raise DataError when a category's name differs from the training file's: labels would mean other classes."""
    for category in record.get("categories") or ():
        number = _field(category, "id", file)
        own, theirs = printable(category.get("name", number)), names.get(number)
        if theirs not in (None, own, str(number)):
            raise DataError(
                f"{file}: category {number} is '{own}' here and '{theirs}' in {train_file.name}, so that their labels do "
                "not mean the same; make both files of the same list of categories"
            )


def _pairs(record: dict[str, list[dict[str, Any]]], file: Path) -> dict[int, int]:
    """Return category ids by image id. Raises DataError unless every image has exactly one annotation."""
    images = {_field(image, "id", file) for image in record["images"]}
    if len(images) != len(record["images"]):
        raise DataError(f"{file}: {len(record['images']) - len(images)} image ids are there twice")
    category_of: dict[int, int] = {}
    twice, strangers = [], []
    for a in record["annotations"]:
        image = _field(a, "image_id", file)
        if image in category_of:
            twice.append(image)
        if image not in images:
            strangers.append(image)
        category_of[image] = _field(a, "category_id", file)
    bare = _ordered(images - set(category_of))
    for ids, words in ((strangers, "annotations of unknown images"), (twice, "images with two annotations")):
        if ids:
            raise DataError(f"{file}: {words}: {some(ids)} (image ids)")
    if bare:
        raise DataError(f"{file}: images without an annotation: {some(bare)} (image ids); test files have no labels")
    return category_of


def _field(record: dict[str, Any], key: str, file: Path) -> Any:
    """Return a record's file name or id (an integer or a word). Raises DataError when it is absent or of another type."""
    try:
        value = record[key]
    except (KeyError, TypeError):
        raise DataError(f"{file}: a record without '{key}': {_shown(record)}") from None
    whole = type(value) is int or (isinstance(value, float) and value.is_integer())
    if not isinstance(value, str) and (key == "file_name" or not whole):
        raise DataError(f"{file}: a record whose '{key}' is {printable(value)}: {_shown(record)}")
    return value


def _shown(record: object) -> str:
    fields = record.items() if isinstance(record, dict) else ()
    return ", ".join(f"{printable(key)} {printable(value, 40)}" for key, value in islice(fields, 4)) or printable(
        record
    )


def _ordered(ids: Iterable[int | str]) -> list[int | str]:
    """Sort numbers before words. An id of the wrong kind fails later, where it is looked up."""
    return sorted(ids, key=lambda i: (isinstance(i, str), i))
