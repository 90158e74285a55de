"""PASCAL VOC: `<root>/VOCdevkit/VOC2007/{JPEGImages,Annotations,ImageSets/Main}`, or the root is one of these two folders.

Labels are the devkit's per-class lists, as they stand: 1 present, 0 only as difficult objects, -1 absent.
"""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath

import numpy as np

from backbench.data.decode import EXTENSIONS
from backbench.data.names import spelled_otherwise
from backbench.data.splits import Files, ImageSplit
from backbench.data.voc_xml import Annotation, Object, annotation, states
from backbench.errors import DataError
from backbench.files import Unreadable, read_lines
from backbench.printable import printable, some

__all__ = ["Annotation", "Object", "annotation", "states"]  # part of the layout's interface

LABELS = frozenset({"classes", "boxes"})
SPLITS = ("train", "val", "trainval", "test")
NOT_OF_A_CLASS = "lists that are not of a class"


def year_folder(root: Path, year: int = 2007) -> Path:
    """Return the folder that contains `ImageSets`: `<root>/VOCdevkit/VOC<year>`, `<root>/VOC<year>` or the root itself.

    Raises:
        DataError: none of the three.
    """
    root = Path(root)
    for folder in (root / "VOCdevkit" / f"VOC{year}", root / f"VOC{year}", root):
        if (folder / "ImageSets" / "Main").is_dir():
            return folder
    raise DataError(f"{root}: no VOCdevkit/VOC{year}/ImageSets/Main in it; unpack the devkit's tar files there")


def recognise(root: Path) -> tuple[str, str] | None:
    """Return `trainval` and `test` when both lists exist, else `train` and `val` (or `test`)."""
    try:
        lists = year_folder(root) / "ImageSets" / "Main"
    except DataError:
        return None
    there = [split for split in SPLITS if (lists / f"{split}.txt").is_file()]
    pairs = [("trainval", "test"), ("train", "test"), ("train", "val")]
    return next((pair for pair in pairs if set(pair) <= set(there)), None)


def read(root: Path, split: str, *, dataset: str = "voc", year: int = 2007) -> ImageSplit:
    """List images in the order of `<split>.txt`, with labels (N, classes) int8; classes are the sorted names of the lists.

    Raises:
        DataError: a list is missing, or names an unknown or missing image, or holds anything but -1, 0, 1.
    """
    folder = year_folder(root, year)
    lists = folder / "ImageSets" / "Main"
    there = image_files(folder / "JPEGImages")
    ids = image_ids(lists / f"{split}.txt", there)
    absent = [name for name in ids if name not in there]
    if absent:
        raise DataError(
            f"{lists / f'{split}.txt'}: names images that are not in {folder / 'JPEGImages'}: {some(absent)}"
            f"{spelled_otherwise(absent, there)}"
        )
    classes = class_names(lists, split, there)
    rows = {name: row for row, name in enumerate(ids)}
    labels = np.stack([_column(lists / f"{name}_{split}.txt", rows) for name in classes], axis=1)
    others = [file.name for file in _lists_of(lists, split) if not _is_of_class(file, there)]
    files = Files(folder / "JPEGImages", tuple(there[name] for name in ids))
    passed_over = {NOT_OF_A_CLASS: (len(others), others[0])} if others else {}
    validation = _validation(lists, ids, there) if split == "trainval" else None
    return ImageSplit(dataset, split, files, labels, classes, passed_over=passed_over, validation=validation)


def _validation(lists: Path, ids: Collection[str], known: Collection[str]) -> np.ndarray | None:
    """Return which images of `trainval` the devkit's `val.txt` names, (N,) bool; None without both parts in it."""
    if not (lists / "val.txt").is_file():
        return None
    named = set(image_ids(lists / "val.txt", known))
    marked = np.array([name in named for name in ids])
    return marked if marked.any() and not marked.all() else None


def image_files(folder: Path) -> dict[str, str]:
    """Return image files by name without extension. VOC's are .jpg; other data sets in its layout may have .png or .jpeg.

    Of several of one name the .jpg counts. Raises DataError: the folder cannot be read, or none of several is a .jpg.
    """
    found: dict[str, str] = {}
    for file in sorted(listing(folder)):
        stem, ending = _parts(file)
        if not ending or file.startswith("."):
            continue
        before = found.get(stem)
        if before is not None and ".jpg" not in (ending, _parts(before)[1]):
            raise DataError(f"{folder}: holds {before} and {file}; which one is image '{stem}'? Remove the other")
        if before is None or ending == ".jpg":
            found[stem] = file
    return found


def image_ids(file: Path, known: Collection[str]) -> list[str]:
    """Return the images in a split's list, in its order. A line is one name and may contain spaces.

    Args:
        known: names of the images that are there, without their endings; a line may say the ending all the same.

    Raises:
        DataError: none, one twice, or no such list.
    """
    lines = [line for line in _lines(file) if line]
    ids = [name if (name := _known(line, known)) in known else _known(_labelled(line)[0], known) for line in lines]
    ids = [name if name in known else line for name, line in zip(ids, lines, strict=True)]
    if not ids:
        raise DataError(f"{file}: names no image")
    if len(set(ids)) != len(ids):
        twice = [name for name, count in Counter(ids).items() if count > 1]
        raise DataError(f"{file}: names images twice: {some(twice)}")
    return ids


def listing(folder: Path) -> set[str]:
    """Return the names of the files in a folder. Raises DataError when it cannot be read."""
    try:
        return set(os.listdir(folder))  # noqa: PTH208 (names only, for 17,125 files)
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror}); is the devkit whole?") from None


def has_classes(lists: Path, split: str, known: Collection[str]) -> bool:
    """Return whether lists `<class>_<split>.txt` exist; for a devkit split, those of any devkit split count."""
    splits = {*SPLITS} if split in SPLITS else {split}
    return any(_is_of_class(file, known) for own in sorted(splits) for file in _lists_of(lists, own))


def class_names(lists: Path, split: str, known: Collection[str]) -> tuple[str, ...]:
    """Return the sorted classes of the lists `<class>_<split>.txt`. All splits with lists must have the same classes.

    A list of images whose name has an underscore (`small_train.txt`) is not one of a class.

    Raises:
        DataError: no lists, or a class that another split lacks.
    """
    by_split = {
        s: {file.name.removesuffix(f"_{s}.txt") for file in _lists_of(lists, s) if _is_of_class(file, known)}
        for s in {*SPLITS, split}
    }
    own = by_split[split]
    if not own:
        raise DataError(f"{lists}: no lists <class>_{split}.txt in it; is the devkit whole?")
    for other, names in sorted(by_split.items()):
        if names and names != own:
            name = min(names ^ own)
            lacking = split if name in names else other
            raise DataError(f"{lists / f'{name}_{lacking}.txt'}: no such list, though other splits have class '{name}'")
    return tuple(sorted(own))


# ---------------------------------------------------------------- lists


def _lines(file: Path) -> list[str]:
    try:
        return read_lines(file)
    except Unreadable as error:
        raise DataError(f"{error}; is the devkit whole?") from None


def _lists_of(lists: Path, split: str) -> list[Path]:
    return sorted(file for file in lists.glob(f"*_{glob.escape(split)}.txt") if not file.name.startswith("."))


def _is_of_class(file: Path, known: Collection[str]) -> bool:
    """Return whether a list has, or should have, a label beside each image."""
    lines = [line for line in _lines(file) if line]
    return not lines or any(_labelled(line)[1] and _known(line, known) not in known for line in lines)


def _labelled(line: str) -> tuple[str, str]:
    """Split a line into the image's name and -1, 0 or 1; return the line and '' when it ends in none of these."""
    name, *label = line.rsplit(None, 1)
    return (name, label[0]) if label and label[0] in ("-1", "0", "1") else (line, "")


def _parts(file: str) -> tuple[str, str]:
    """Split a file name into stem and image extension."""
    ending = PurePosixPath(file).suffix
    return (file.removesuffix(ending), ending) if ending.lower() in EXTENSIONS else (file, "")


def _known(name: str, known: Collection[str]) -> str:
    """Return the image of a name, with or without extension."""
    return name if name in known else _parts(name)[0]


def _column(file: Path, rows: Mapping[str, int]) -> np.ndarray:
    """Return labels (N,) int8 of one class, in the split's order."""
    column = np.full(len(rows), -2, np.int8)
    for number, line in enumerate(_lines(file), start=1):
        if not line:
            continue
        name, label = _labelled(line)
        image = _known(name, rows)
        if not label or (image not in rows and len(name.split()) > 1):
            raise DataError(f"{file}:{number}: '{printable(line)}' is not an image and one of -1, 0, 1")
        if image not in rows:
            raise DataError(f"{file}:{number}: image '{printable(name)}' is not in the split's own list")
        if column[rows[image]] != -2:
            raise DataError(f"{file}:{number}: image '{printable(name)}' is there twice")
        column[rows[image]] = int(label)
    unsaid = [name for name, row in rows.items() if column[row] == -2]
    if unsaid:
        raise DataError(f"{file}: {len(rows) - len(unsaid)} rows for {len(rows)} images, nothing of {some(unsaid)}")
    return column
