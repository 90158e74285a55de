"""A test set without a training split: `<root>/<folder>/<class>/<image>`, or the class folders directly in the root.

ImageNet's test sets: v2 numbers its class folders 0 to 999 in the order of the WordNet ids; -A, -R and Sketch name them by
WordNet id, -A and -R 200 of the 1,000.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from backbench.data.listing import Listing, listed
from backbench.data.splits import Files, ImageSplit
from backbench.errors import DataError

LABELS = frozenset({"class"})


def recognise(root: Path) -> tuple[str, str] | None:
    """Return None: there is no split to learn from, so no folder of a user's own is of this layout."""
    return None


def read(root: Path, split: str, *, dataset: str = "class_folders") -> ImageSplit:
    """List `test`; the classes are the folders' names, sorted as numbers if all are.

    Raises:
        DataError: another split, no class folders, or a class without an image.
    """
    if split != "test":
        raise DataError(f"{root}: no split '{split}'; it is a test set and has only 'test'")
    listing = Listing(_folder(Path(root)))
    names = listing.folders()
    classes = sorted(names, key=int) if all(name.isdecimal() for name in names) else names
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = listing.images(name)
        if not found:
            others = f" (passed over: {listed(listing.passed_over)})" if listing.passed_over else ""
            raise DataError(f"{listing.root / name}: no image in it{others}; is the data set whole?")
        paths += found
        labels += [label] * len(found)
    files = Files(listing.root, tuple(paths))
    return ImageSplit(
        dataset, split, files, np.array(labels, np.int64), tuple(classes), passed_over=listing.passed_over
    )


def _folder(root: Path) -> Path:
    """Return the folder that contains the class folders: the root, or the only folder in it."""
    inside = [path for path in sorted(root.iterdir()) if path.is_dir() and not path.name.startswith((".", "__"))]
    if not inside:
        raise DataError(f"{root}: no class folders in it; unpack the published archive there")
    deeper = len(inside) == 1 and any(path.is_dir() for path in inside[0].iterdir())
    return inside[0] if deeper else root
