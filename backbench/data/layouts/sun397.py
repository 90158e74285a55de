"""SUN397: `<root>/SUN397/<letter>/<class>/.../<image>.jpg`, `ClassName.txt`, lists `{Training,Testing}_01.txt`.

The archive of images has `ClassName.txt`; the lists are in `Partitions.zip`. Of the ten partitions the first one is read, as
ssl-transfer does.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from backbench.data.image_lists import base, contains, lines, split_of
from backbench.data.splits import ImageSplit
from backbench.errors import DataError

LABELS = frozenset({"class"})
_LISTS = {"train": "Training_01.txt", "test": "Testing_01.txt"}


def recognise(root: Path) -> tuple[str, str] | None:
    """Return `train` and `test` when the first partition's lists exist."""
    return ("train", "test") if contains(root, "SUN397", "ClassName.txt", *_LISTS.values()) else None


def read(root: Path, split: str, *, dataset: str = "sun397") -> ImageSplit:
    """List a split in the order of its list; classes are numbered as `ClassName.txt` lists them.

    Raises:
        DataError: a list is missing (`Partitions.zip` has them), an unknown split, or an image of no class.
    """
    if split not in _LISTS:
        raise DataError(f"{root}: no split '{split}'; SUN397 has train and test")
    folder = base(root, "SUN397", "ClassName.txt")
    file = folder / _LISTS[split]
    if not file.exists():
        raise DataError(f"{file}: no such file; unpack Partitions.zip of SUN397's page there")
    classes = [line.lstrip("/").partition("/")[2] for line in lines(folder / "ClassName.txt")]  # without the letter
    paths = [line.lstrip("/") for line in lines(file)]
    rows = [(path, str(PurePosixPath(path).parent).partition("/")[2]) for path in paths]
    return split_of(dataset, split, folder, file, rows, classes)
