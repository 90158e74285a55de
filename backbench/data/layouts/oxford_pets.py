"""Oxford-IIIT Pet: `<root>/images/<Breed>_<number>.jpg`, lists `annotations/{trainval,test}.txt` (`image class ...`).

Both folders may also lie in `<root>/oxford-iiit-pet`, where torchvision puts them.
"""

from __future__ import annotations

from pathlib import Path

from backbench.data.image_lists import base, contains, fields, split_of
from backbench.data.splits import ImageSplit
from backbench.errors import DataError

LABELS = frozenset({"class"})


def recognise(root: Path) -> tuple[str, str] | None:
    """Return `trainval` and `test` when both lists exist."""
    there = contains(root, "oxford-iiit-pet", "annotations/trainval.txt", "annotations/test.txt", "images")
    return ("trainval", "test") if there else None


def read(root: Path, split: str, *, dataset: str = "oxford_pets") -> ImageSplit:
    """List a split in the order of its list; the classes are the breeds of `trainval`, in the order of their numbers.

    Raises:
        DataError: a list is missing or malformed, or gives a breed two numbers.
    """
    folder = base(root, "oxford-iiit-pet", "annotations")
    file = folder / "annotations" / f"{split}.txt"
    numbers: dict[str, int] = {}
    for breed, number in _rows(folder / "annotations" / "trainval.txt").values():
        if numbers.setdefault(breed, number) != number:
            raise DataError(f"{folder / 'annotations' / 'trainval.txt'}: breed '{breed}' has two numbers")
    rows = _rows(file)
    for image, (breed, number) in rows.items():
        if numbers.get(breed, number) != number:
            raise DataError(f"{file}: '{image}' has number {number}, its breed {numbers[breed]} in trainval.txt")
    classes = sorted(numbers, key=lambda breed: numbers[breed])
    named = [(f"{image}.jpg", breed) for image, (breed, _) in rows.items()]
    return split_of(dataset, split, folder / "images", file, named, classes)


def _rows(file: Path) -> dict[str, tuple[str, int]]:
    """Return (breed, its number) by image."""
    found = {}
    for number, (image, label, *_) in enumerate(fields(file, count=4), start=1):
        if not label.isdecimal() or image in found:
            what = "is there twice" if image in found else f"has '{label}' for the number of its class"
            raise DataError(f"{file}:{number}: '{image}' {what}; download the data set again")
        found[image] = (image.rpartition("_")[0], int(label))
    return found
