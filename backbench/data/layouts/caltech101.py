"""Caltech-101: `<root>/101_ObjectCategories/<class>/<image>.jpg`, with ssl-transfer's lists `{train,test}.txt` beside it.

The data set has no official split. Its papers draw 30 training images of each class; these lists are the ones that
ssl-transfer published its numbers on (`caltech101-splits/`), with 2,416 different training images and 102 classes: the
background is one. Lines are `<class>/<image>.jpg number`.
"""

from __future__ import annotations

from pathlib import Path

from backbench.data.image_lists import base, contains, fields, split_of
from backbench.data.splits import ImageSplit
from backbench.errors import DataError

LABELS = frozenset({"class"})
_LISTS = "https://github.com/linusericsson/ssl-transfer/tree/416913f/caltech101-splits"


def recognise(root: Path) -> tuple[str, str] | None:
    """Return `train` and `test` when the folder of images and both lists exist."""
    there = contains(root, "caltech101", "101_ObjectCategories", "train.txt", "test.txt")
    return ("train", "test") if there else None


def read(root: Path, split: str, *, dataset: str = "caltech101") -> ImageSplit:
    """List a split in the order of its list; the classes are the sorted folders of the training list.

    Raises:
        DataError: the images or a list are missing, or an image's number is not that of its class.
    """
    folder = base(root, "caltech101", "101_ObjectCategories")
    classes = sorted({path.partition("/")[0] for path, _ in _rows(folder / "train.txt")})
    rows = [(path, path.partition("/")[0]) for path, _ in _rows(folder / f"{split}.txt")]
    found = split_of(dataset, split, folder / "101_ObjectCategories", folder / f"{split}.txt", rows, classes)
    assert found.labels is not None
    for (path, number), label in zip(_rows(folder / f"{split}.txt"), found.labels.tolist(), strict=True):
        if number != str(label):
            raise DataError(f"{folder / f'{split}.txt'}: '{path}' has number {number}, its class {label}; get {_LISTS}")
    return found


def _rows(file: Path) -> list[list[str]]:
    if not file.exists():
        raise DataError(
            f"{file}: no such file; Caltech-101 has no official split: put ssl-transfer's lists there, {_LISTS}"
        )
    return fields(file, count=2)
