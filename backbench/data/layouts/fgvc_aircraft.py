"""FGVC-Aircraft: `<root>/fgvc-aircraft-2013b/data/images/<image>.jpg`, lists `images_variant_{train,val,trainval,test}.txt`.

The classes are the 100 variants, numbered as `variants.txt` lists them.
"""

from __future__ import annotations

from pathlib import Path

from backbench.data.image_lists import base, contains, fields, lines, split_of, with_validation
from backbench.data.splits import ImageSplit

LABELS = frozenset({"class"})


def recognise(root: Path) -> tuple[str, str] | None:
    """Return `trainval` and `test` when the lists of variants exist."""
    needed = ["variants.txt", *(f"images_variant_{split}.txt" for split in ("val", "trainval", "test"))]
    there = contains(root, "fgvc-aircraft-2013b", *(f"data/{name}" for name in needed))
    return ("trainval", "test") if there else None


def read(root: Path, split: str, *, dataset: str = "fgvc_aircraft") -> ImageSplit:
    """List `train`, `val`, `trainval` or `test` in the order of its list; `trainval` has the images of `val` marked.

    Raises:
        DataError: a list is missing or malformed, or names another variant.
    """
    folder = base(root, "fgvc-aircraft-2013b", "data") / "data"
    file = folder / f"images_variant_{split}.txt"
    rows = [(f"{image}.jpg", name) for image, name in fields(file, count=2)]
    found = split_of(dataset, split, folder / "images", file, rows, lines(folder / "variants.txt"))
    return with_validation(found, read(root, "val", dataset=dataset)) if split == "trainval" else found
