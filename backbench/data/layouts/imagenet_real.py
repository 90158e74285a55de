"""ImageNet ReaL: ImageNet's validation images, `<root>/val/<class>/<image>`, with the labels of `<root>/real.json`.

The list has an entry for each image in the order of their numbers: the classes that people saw in it, none for 3,163 images
(Beyer et al. 2020, "Are we done with ImageNet?", google-research/reassessed-imagenet). An answer is right if it is one of them;
images without a class do not count. Put `real.json` beside `val` and give ImageNet's folder.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from backbench.data.layouts import imagefolder
from backbench.data.splits import ImageSplit
from backbench.errors import DataError
from backbench.files import read_json

LABELS = frozenset({"classes"})


def recognise(root: Path) -> tuple[str, str] | None:
    """Return None: there is no split to learn from, so no folder of a user's own is of this layout."""
    return None


def read(root: Path, split: str, *, dataset: str = "imagenet_real") -> ImageSplit:
    """List `val` with labels (N, classes) int8, 1 for each class of `real.json` and -1 for the others.

    Raises:
        DataError: another split, no `real.json`, an image whose number it does not have, or a class that does not exist.
    """
    if split != "val":
        raise DataError(f"{root}: no split '{split}'; ReaL has only 'val'")
    file = Path(root) / "real.json"
    if not file.exists():
        raise DataError(f"{file}: no such file; put google-research/reassessed-imagenet's real.json beside 'val'")
    real = read_json(file)
    found = imagefolder.read(root, "val", dataset=dataset)
    if not isinstance(real, list) or not all(isinstance(each, list) for each in real):
        raise DataError(f"{file}: expected a list of lists of class numbers; download it again")
    labels = np.full((len(found), len(found.classes)), -1, np.int8)
    for row in range(len(found)):
        number = re.search(r"_(\d{8})\.[A-Za-z]+$", found.source.name(row))
        if number is None or not 1 <= int(number[1]) <= len(real):
            raise DataError(f"{file}: has {len(real)} entries, none for {found.source.name(row)}")
        for label in real[int(number[1]) - 1]:
            if not isinstance(label, int) or not 0 <= label < len(found.classes):
                raise DataError(f"{file}: entry {int(number[1])} has class {label!r} of {len(found.classes)}")
            labels[row, label] = 1
    return ImageSplit(dataset, split, found.source, labels, found.classes, passed_over=found.passed_over)
