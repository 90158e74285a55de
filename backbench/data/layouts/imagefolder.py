"""`<root>/<split>/<class>/**/<image>`: ImageNet and any image folder.

Links are followed, to images and to folders, each folder once; an image and a link to it in the same class are one image.
What is passed over is counted and named, with the reason.
"""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np

from backbench.data.decode import EXTENSIONS
from backbench.data.listing import Listing, listed
from backbench.data.splits import Files, ImageSplit
from backbench.errors import DataError
from backbench.printable import printable

LABELS = frozenset({"class"})
_TEST_SPLITS = ("test", "val", "valid", "validation")  # the first that has class folders


def recognise(root: Path) -> tuple[str, str] | None:
    """`train`, and the first of `test`, `val`, `valid` and `validation` that contains class folders."""
    having = [split for split in ("train", *_TEST_SPLITS) if _has_folders(Path(root) / split)]
    return ("train", having[1]) if having[:1] == ["train"] and len(having) > 1 else None


def _has_folders(folder: Path) -> bool:
    return folder.is_dir() and any(path.is_dir() and not path.name.startswith(".") for path in folder.iterdir())


def read(root: Path, split: str, *, dataset: str = "imagefolder") -> ImageSplit:
    """List a split; classes are the sorted folder names of the *train* split, so that both splits agree on the labels.

    Raises:
        DataError: the split is absent, a class has no image, the splits' classes differ, a link leads nowhere, or
            into another class.
    """
    folder = Path(root) / split
    if not folder.is_dir():
        there = sorted(p.name for p in Path(root).iterdir() if p.is_dir())[:8]
        raise DataError(f"{root}: no folder '{split}' in it (found: {', '.join(there) or 'no folder at all'})")
    listing = Listing(folder)
    classes = listing.folders()
    if not classes:
        raise DataError(f"{folder}: no class folders in it; images are expected as {folder}/<class>/<image>.jpg")
    train = Path(root) / "train"
    if split != "train" and train.is_dir():
        _check_classes(set(Listing(train).folders()), set(classes), Path(root), split)
    paths: list[str] = []
    labels: list[int] = []
    empty = []
    for label, name in enumerate(classes):
        found = listing.images(name)
        paths += found
        labels += [label] * len(found)
        if not found:
            empty.append(name)
    if empty:
        others = f" (passed over: {listed(listing.passed_over)})" if listing.passed_over else ""
        raise DataError(
            f"{folder}: {len(empty)} of {len(classes)} class folders hold no image, e.g. {empty[0]}{others}"
        )
    return ImageSplit(
        dataset,
        split,
        Files(folder, tuple(paths)),
        np.asarray(labels, np.int64),
        tuple(classes),
        passed_over=listing.passed_over,
    )


def _check_classes(train: set[str], own: set[str], root: Path, split: str) -> None:
    """Raise DataError when the splits have different classes: name the differences and the likely cause."""
    if train == own:
        return
    name = min(train ^ own)
    alike = {_folded(other) for other in train - own} & {_folded(other) for other in own - train}
    advice = (
        "some names differ only in capital letters, or in how an accent is written (Unicode's NFC or NFD); rename folders"
        if alike
        else "is one of them incomplete?"
    )
    raise DataError(
        f"{root}: 'train' and '{split}' have different classes; {len(train ^ own)} in one only, e.g. {printable(name)} in "
        f"'{split if name in own else 'train'}': {advice}"
    )


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def read_unlabelled(root: Path, *, dataset: str) -> ImageSplit:
    """List every image below a folder, without labels: enough for pretraining.

    Raises:
        DataError: no image below it.
    """
    listing = Listing(Path(root))
    paths = listing.images("")
    if not paths:
        raise DataError(f"{root}: no images in it ({', '.join(sorted(EXTENSIONS))})")
    return ImageSplit(dataset, "all", Files(Path(root), tuple(paths)), None, (), passed_over=listing.passed_over)
