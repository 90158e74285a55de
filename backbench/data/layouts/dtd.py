"""Describable Textures: `<root>/dtd/images/<class>/<image>.jpg`, the first partition's lists `labels/{train,val,test}1.txt`.

`trainval` is both parts together, the images of `val` marked.
"""

from __future__ import annotations

from pathlib import Path

from backbench.data.image_lists import base, contains, joined, lines, split_of
from backbench.data.splits import ImageSplit

LABELS = frozenset({"class"})


def recognise(root: Path) -> tuple[str, str] | None:
    """Return `trainval` and `test` when the lists of the first partition exist."""
    needed = [f"labels/{split}1.txt" for split in ("train", "val", "test")]
    return ("trainval", "test") if contains(root, "dtd", *needed) else None


def read(root: Path, split: str, *, dataset: str = "dtd") -> ImageSplit:
    """List `train`, `val`, `trainval` or `test` in the order of its list; classes are the sorted folders of `train`'s.

    Raises:
        DataError: a list is missing, or names another class.
    """
    if split == "trainval":
        return joined(read(root, "train", dataset=dataset), read(root, "val", dataset=dataset), split)
    folder = base(root, "dtd", "labels")
    classes = sorted({name for _, name in _rows(folder / "labels" / "train1.txt")})
    file = folder / "labels" / f"{split}1.txt"
    return split_of(dataset, split, folder / "images", file, _rows(file), classes)


def _rows(file: Path) -> list[tuple[str, str]]:
    return [(line, line.partition("/")[0]) for line in lines(file)]
