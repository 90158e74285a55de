"""Places205: `<root>/{train,val}_places205.csv` with lines `path label`, images below `<root>/images`."""

from __future__ import annotations

import posixpath
from pathlib import Path, PurePosixPath

import numpy as np

from backbench.data.decode import EXTENSIONS
from backbench.data.names import check_paths
from backbench.data.splits import Files, ImageSplit
from backbench.errors import DataError
from backbench.files import Unreadable, read_lines
from backbench.printable import printable

_DIGITS = 18  # the longest label that is read: it fits 64 bits


LABELS = frozenset({"class"})


def recognise(root: Path) -> tuple[str, str] | None:
    """Return `train` and `val` when both csv files exist."""
    whole = all((Path(root) / f"{split}_places205.csv").is_file() for split in ("train", "val"))
    return ("train", "val") if whole else None


def read(root: Path, split: str, *, dataset: str = "places205") -> ImageSplit:
    """List a split; the train file defines the classes, each named by the folder of its first image.

    Files are not looked at: 2.4 million would take minutes.

    Raises:
        DataError: a file is missing or incomplete, a line is malformed, or has a label that no training image has.
    """
    root = Path(root)
    if not (root / "images").is_dir():
        raise DataError(f"{root}: no folder 'images' in it; the csv's paths are looked for below it")
    train_file = root / "train_places205.csv"
    paths, labels = _rows(train_file)
    names, first = np.unique(labels, return_index=True)
    gaps = np.flatnonzero(names != np.arange(len(names)))
    if len(gaps):  # only some: a label of 10^17 would leave as many gaps
        raise DataError(
            f"{train_file}: labels without an image: {names[-1] + 1 - len(names)}, e.g. {gaps[0]}; is the file whole?"
        )
    classes = _class_names([paths[i] for i in first])
    if split != "train":
        of_folder = _labels_of_folders(paths, labels)
        file = root / f"{split}_places205.csv"
        paths, labels = _rows(file)
        outside = np.flatnonzero(labels >= len(classes))
        if len(outside):
            row = int(outside[0])
            raise DataError(
                f"{file}:{row + 1}: label {labels[row]} is out of range: the training images have 0 to {len(classes) - 1}"
            )
        _check_folders(file, paths, labels, of_folder)
    return ImageSplit(dataset, split, Files(root / "images", tuple(paths)), labels, classes)


def _rows(file: Path) -> tuple[list[str], np.ndarray]:
    """Return paths and labels (N,) int64 of a csv file."""
    try:
        lines = read_lines(file)
    except Unreadable as error:
        raise DataError(f"{error}; is the data set whole?") from None
    paths, labels = [], []
    for number, line in enumerate(lines, start=1):
        path, _, label = line.rpartition(" ")  # names may contain spaces
        spaced = (
            " " in path and PurePosixPath(path).suffix.lower() not in EXTENSIONS
        )  # a third column, not a name with spaces
        if not path.strip() or spaced or not (label.isascii() and label.isdigit() and len(label) < _DIGITS):
            raise DataError(
                f"{file}:{number}: '{printable(line)}' is not a path and a label from 0, with one space between them"
            )
        paths.append(path)
        labels.append(int(label))
    if not paths:
        raise DataError(f"{file}: the file is empty")
    check_paths(file, paths, lines=True)
    return paths, np.asarray(labels, np.int64)


def _labels_of_folders(paths: list[str], labels: np.ndarray) -> dict[str, int]:
    """Return the label of each training folder; empty when a folder has several labels."""
    of_folder: dict[str, int] = {}
    for path, label in zip(paths, labels.tolist(), strict=True):
        if of_folder.setdefault(_folder(path), label) != label:
            return {}
    return of_folder


def _check_folders(file: Path, paths: list[str], labels: np.ndarray, of_folder: dict[str, int]) -> None:
    """Raise DataError when an image's label differs from its training folder's: one of the files may count from 1."""
    for row, (path, label) in enumerate(zip(paths, labels.tolist(), strict=True), start=1):
        theirs = of_folder.get(_folder(path), label)
        if theirs != label:
            raise DataError(
                f"{file}:{row}: '{printable(path)}' has label {label}, the training images of its folder have {theirs}: does "
                "one of the two files count from 1? Number the classes of both alike, from 0"
            )


def _folder(path: str) -> str:
    return posixpath.normpath(path).rpartition("/")[0]


def _class_names(paths: list[str]) -> tuple[str, ...]:
    """Name each class by the folder of its first image, or by its number when two classes share a folder."""
    folders = [path.rpartition("/")[0].lstrip("/") for path in paths]
    return tuple(folders) if len(set(folders)) == len(folders) else tuple(str(i) for i in range(len(folders)))
