"""Food-101: `<root>/food-101/images/<class>/<image>.jpg`, lists of the images of each class in `meta/{train,test}.json`."""

from __future__ import annotations

from pathlib import Path

from backbench.data.image_lists import base, contains, split_of
from backbench.data.splits import ImageSplit
from backbench.errors import DataError
from backbench.files import read_json

LABELS = frozenset({"class"})


def recognise(root: Path) -> tuple[str, str] | None:
    """Return `train` and `test` when both lists exist."""
    return ("train", "test") if contains(root, "food-101", "meta/train.json", "meta/test.json") else None


def read(root: Path, split: str, *, dataset: str = "food101") -> ImageSplit:
    """List a split in the order of its file; the classes are the sorted names of the training list.

    Raises:
        DataError: a list is missing or malformed, or names another class.
    """
    folder = base(root, "food-101", "meta")
    classes = sorted(_images(folder / "meta" / "train.json"))
    file = folder / "meta" / f"{split}.json"
    rows = [(f"{image}.jpg", name) for name, images in _images(file).items() for image in images]
    return split_of(dataset, split, folder / "images", file, rows, classes)


def _images(file: Path) -> dict[str, list[str]]:
    found = read_json(file)
    if not isinstance(found, dict) or not all(
        isinstance(images, list) and all(isinstance(image, str) for image in images) for images in found.values()
    ):
        raise DataError(f'{file}: expected {{"<class>": ["<class>/<image>", ...], ...}}; download the data set again')
    return found
