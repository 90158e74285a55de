"""Oxford Flowers 102: `<root>/jpg/image_<number>.jpg`, classes in `imagelabels.mat`, splits in `setid.mat`.

The three may also lie in `<root>/flowers-102`, where torchvision puts them. `trainval` is both parts together, the images of
`val` marked. The classes are numbered and have no names in the published files.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from backbench.data.image_lists import base, contains, joined, matlab, split_of
from backbench.data.splits import ImageSplit
from backbench.errors import DataError

LABELS = frozenset({"class"})
_VARIABLES = {"train": "trnid", "val": "valid", "test": "tstid"}


def recognise(root: Path) -> tuple[str, str] | None:
    """Return `trainval` and `test` when the images' folder and both MATLAB files exist."""
    return ("trainval", "test") if contains(root, "flowers-102", "jpg", "imagelabels.mat", "setid.mat") else None


def read(root: Path, split: str, *, dataset: str = "oxford_flowers") -> ImageSplit:
    """List `train`, `val`, `trainval` or `test` in the order of `setid.mat`.

    Raises:
        DataError: a file is missing or damaged, an unknown split, or an image without a label.
    """
    if split == "trainval":
        return joined(read(root, "train", dataset=dataset), read(root, "val", dataset=dataset), split)
    if split not in _VARIABLES:
        raise DataError(f"{root}: no split '{split}'; the flowers have {', '.join(_VARIABLES)} and trainval")
    folder = base(root, "flowers-102", "setid.mat")
    labels = _numbers(folder / "imagelabels.mat", "labels")
    file = folder / "setid.mat"
    chosen = _numbers(file, _VARIABLES[split])
    if not len(chosen) or chosen.min() < 1 or chosen.max() > len(labels):
        raise DataError(f"{file}: its {split} images are not numbers from 1 to {len(labels)}; download it again")
    classes = [str(number) for number in range(1, int(labels.max()) + 1)]
    rows = [(f"image_{image:05d}.jpg", str(labels[image - 1])) for image in chosen.tolist()]
    return split_of(dataset, split, folder / "jpg", file, rows, classes)


def _numbers(file: Path, variable: str) -> np.ndarray:
    """Return a variable (N,) of whole numbers."""
    found = np.atleast_1d(matlab(file).get(variable, np.empty(0, np.int64)))
    if found.ndim != 1 or found.dtype.kind not in "iu" or not len(found):
        raise DataError(f"{file}: has no list of whole numbers named '{variable}'; download it again")
    return found.astype(np.int64)
