"""`<root>/<split>/<class>/**/<image>`: ImageNet and any image folder."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from core.datasets import Files, ImageSplit
from core.errors import DataError
from core.images import EXTENSIONS


def read(root: Path, split: str, *, dataset: str = "imagefolder") -> ImageSplit:
    """List a split; classes are the sorted folder names of the *train* split, so that both splits agree on the labels.

    Raises:
        DataError: the split is absent, a class has no image, or the splits' classes differ.
    """
    folder = Path(root) / split
    if not folder.is_dir():
        there = sorted(p.name for p in Path(root).iterdir() if p.is_dir())[:8]
        raise DataError(f"{root}: no folder '{split}' in it (found: {', '.join(there) or 'no folder at all'})")
    classes = _folders(folder)
    if not classes:
        raise DataError(f"{folder}: no class folders in it; images are expected as {folder}/<class>/<image>.jpg")
    train = Path(root) / "train"
    if split != "train" and train.is_dir():
        extra = set(classes) ^ set(_folders(train))
        if extra:
            raise DataError(
                f"{root}: 'train' and '{split}' have different classes; {len(extra)} in one only, e.g. {min(extra)}: "
                "is one of them half there?"
            )
    paths: list[str] = []
    labels: list[int] = []
    empty = []
    for label, name in enumerate(classes):
        found = sorted(_images(folder, name))
        paths += found
        labels += [label] * len(found)
        if not found:
            empty.append(name)
    if empty:
        raise DataError(f"{folder}: {len(empty)} of {len(classes)} class folders hold no image, e.g. {empty[0]}")
    return ImageSplit(dataset, split, Files(folder, tuple(paths)), np.asarray(labels, np.int64), tuple(classes))


def read_unlabelled(root: Path, *, dataset: str) -> ImageSplit:
    """Every image below a folder, without labels: enough to pretrain on.

    Raises:
        DataError: no image below it.
    """
    paths = sorted(path.removeprefix("./") for path in _images(Path(root), "."))
    if not paths:
        raise DataError(f"{root}: no images in it ({', '.join(sorted(EXTENSIONS))})")
    return ImageSplit(dataset, "all", Files(Path(root), tuple(paths)), None, ())


def _folders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def _images(folder: Path, name: str) -> list[str]:
    found = []
    for parent, folders, files in os.walk(folder / name):
        folders[:] = [f for f in folders if not f.startswith(".")]
        relative = Path(parent).relative_to(folder).as_posix()
        found += [f"{relative}/{f}" for f in files if Path(f).suffix.lower() in EXTENSIONS and not f.startswith(".")]
    return found
