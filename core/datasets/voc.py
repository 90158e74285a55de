"""PASCAL VOC: `<root>/VOCdevkit/VOC2007/{JPEGImages,Annotations,ImageSets/Main}`, or the root is one of these two folders.

Labels are the devkit's per-class lists, as they stand: 1 present, 0 only as difficult objects, -1 absent.
"""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from core.datasets import Files, ImageSplit, some
from core.errors import DataError

T = TypeVar("T")
SPLITS = ("train", "val", "trainval", "test")


@dataclass(frozen=True)
class Object:
    """One annotated object."""

    name: str
    box: tuple[float, float, float, float]  # xmin, ymin, xmax, ymax as printed: pixels from 1, the last one included
    difficult: bool
    truncated: bool


@dataclass(frozen=True)
class Annotation:
    """What an XML file says of an image."""

    width: int
    height: int
    objects: tuple[Object, ...]


def year_folder(root: Path, year: int = 2007) -> Path:
    """The folder that holds `ImageSets`: `<root>/VOCdevkit/VOC<year>`, `<root>/VOC<year>` or the root itself.

    Raises:
        DataError: none of the three.
    """
    root = Path(root)
    for folder in (root / "VOCdevkit" / f"VOC{year}", root / f"VOC{year}", root):
        if (folder / "ImageSets" / "Main").is_dir():
            return folder
    raise DataError(f"{root}: no VOCdevkit/VOC{year}/ImageSets/Main in it; unpack the devkit's tar files there")


def read(root: Path, split: str, *, dataset: str = "voc", year: int = 2007) -> ImageSplit:
    """Images in the order of `<split>.txt`; labels (N, classes) int8, classes are the sorted names of the lists.

    Raises:
        DataError: a list is missing, or names an unknown or missing image, or holds anything but -1, 0, 1.
    """
    folder = year_folder(root, year)
    lists = folder / "ImageSets" / "Main"
    ids = image_ids(lists / f"{split}.txt")
    there = listing(folder / "JPEGImages")
    absent = [name for name in ids if f"{name}.jpg" not in there]
    if absent:
        raise DataError(
            f"{lists / f'{split}.txt'}: names images that are not in {folder / 'JPEGImages'}: {some(absent)}"
        )
    classes = class_names(lists, split)
    rows = {name: row for row, name in enumerate(ids)}
    labels = np.stack([_column(lists / f"{name}_{split}.txt", rows) for name in classes], axis=1)
    return ImageSplit(dataset, split, Files(folder / "JPEGImages", tuple(f"{i}.jpg" for i in ids)), labels, classes)


def annotation(path: Path) -> Annotation:
    """Read an XML file of `Annotations`; only the image's own objects, not their parts.

    Raises:
        DataError: it does not parse, or lacks a field.
    """
    try:
        tree = ET.parse(path).getroot()
    except (ET.ParseError, OSError, ValueError, LookupError) as error:  # the last two: encodings that expat cannot read
        raise DataError(f"{path}: not readable as XML ({error})") from None
    objects = []
    for number, node in enumerate(tree.findall("object"), start=1):
        where = f"{path}: object {number}"
        corners = (_value(node, f"bndbox/{key}", float, where) for key in ("xmin", "ymin", "xmax", "ymax"))
        truncated = node.findtext("truncated") == "1"  # attributes that not every file has
        difficult = node.find("difficult") is not None and bool(_value(node, "difficult", int, where))
        objects.append(Object(_value(node, "name", str, where), tuple(corners), difficult, truncated))
    width, height = (_value(tree, f"size/{key}", int, str(path)) for key in ("width", "height"))
    return Annotation(width, height, tuple(objects))


def states(objects: tuple[Object, ...]) -> dict[str, int]:
    """What the per-class lists should say of an image: 1 for a class with a plain object, 0 with difficult ones only."""
    found: dict[str, int] = {}
    for item in objects:
        found[item.name] = max(found.get(item.name, 0), int(not item.difficult))
    return found


def image_ids(file: Path) -> list[str]:
    """The images that a split's list names, in its order. Raises DataError: none, one twice, or no such list."""
    ids = [row[0] for row in _rows(file) if row]
    if not ids:
        raise DataError(f"{file}: names no image")
    if len(set(ids)) != len(ids):
        raise DataError(f"{file}: names images twice: {some([i for i in dict.fromkeys(ids) if ids.count(i) > 1])}")
    return ids


def listing(folder: Path) -> set[str]:
    """Names of the files in a folder. Raises DataError when it cannot be read."""
    try:
        return set(os.listdir(folder))  # noqa: PTH208 (names only, for 17,125 files)
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror}); is the devkit whole?") from None


def class_names(lists: Path, split: str) -> tuple[str, ...]:
    """Sorted classes of the lists `<class>_<split>.txt`; every other split that has lists must have the same ones.

    Raises:
        DataError: no lists, or a class that another split lacks.
    """
    by_split = {s: {p.name.removesuffix(f"_{s}.txt") for p in lists.glob(f"*_{s}.txt")} for s in {*SPLITS, split}}
    own = by_split[split]
    if not own:
        raise DataError(f"{lists}: no lists <class>_{split}.txt in it; is the devkit whole?")
    for other, names in sorted(by_split.items()):
        if names and names != own:
            name = min(names ^ own)
            lacking = split if name in names else other
            raise DataError(f"{lists / f'{name}_{lacking}.txt'}: no such list, though other splits have class '{name}'")
    return tuple(sorted(own))


def _value(node: ET.Element, key: str, kind: Callable[[str], T], where: str) -> T:
    text = (node.findtext(key) or "").strip()
    if not text:
        raise DataError(f"{where} has no <{key.replace('/', '><')}>")
    try:
        return kind(text)
    except ValueError:
        raise DataError(f"{where}: <{key.replace('/', '><')}> is '{text}', not a number") from None


def _rows(file: Path) -> list[list[str]]:
    try:
        return [line.split() for line in file.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({error}); is the devkit whole?") from None


def _column(file: Path, rows: dict[str, int]) -> np.ndarray:
    """(N,) int8 labels of one class, in the split's order."""
    column = np.full(len(rows), -2, np.int8)
    for number, row in enumerate(_rows(file), start=1):
        if not row:
            continue
        if len(row) != 2 or row[1] not in ("-1", "0", "1"):
            raise DataError(f"{file}:{number}: '{' '.join(row)}' is not an image and one of -1, 0, 1")
        if row[0] not in rows:
            raise DataError(f"{file}:{number}: image '{row[0]}' is not in the split's own list")
        if column[rows[row[0]]] != -2:
            raise DataError(f"{file}:{number}: image '{row[0]}' is there twice")
        column[rows[row[0]]] = int(row[1])
    unsaid = [name for name, row in rows.items() if column[row] == -2]
    if unsaid:
        raise DataError(f"{file}: {len(rows) - len(unsaid)} rows for {len(rows)} images, nothing of {some(unsaid)}")
    return column
