"""Stanford Cars: `<root>/cars_{train,test}/<image>.jpg`, `devkit/{cars_meta,cars_train_annos}.mat`.

The classes of the test images are in `cars_test_annos_withlabels.mat`, beside or in the devkit. All may also lie in
`<root>/stanford_cars`, where torchvision expects them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from backbench.data.image_lists import base, contains, matlab, split_of
from backbench.data.splits import ImageSplit
from backbench.errors import DataError

LABELS = frozenset({"class"})
_TEST = "cars_test_annos_withlabels.mat"


def recognise(root: Path) -> tuple[str, str] | None:
    """Return `train` and `test` when both folders of images and the devkit exist."""
    there = contains(root, "stanford_cars", "cars_train", "cars_test", "devkit/cars_train_annos.mat")
    return ("train", "test") if there else None


def read(root: Path, split: str, *, dataset: str = "stanford_cars") -> ImageSplit:
    """List a split in the order of its annotations.

    Raises:
        DataError: an unknown split, or a MATLAB file is missing or is not the published one.
    """
    if split not in ("train", "test"):
        raise DataError(f"{root}: no split '{split}'; the cars have train and test")
    folder = base(root, "stanford_cars", "devkit")
    names = [str(name) for name in _variable(folder / "devkit" / "cars_meta.mat", "class_names")]
    tests = [place for place in (folder / _TEST, folder / "devkit" / _TEST) if place.exists()]
    file = folder / "devkit" / "cars_train_annos.mat" if split == "train" else next(iter(tests), folder / _TEST)
    try:
        images = [(str(row["fname"]), int(row["class"])) for row in _variable(file, "annotations")]
    except (ValueError, IndexError, KeyError, TypeError):
        raise DataError(f"{file}: its annotations lack 'fname' or 'class'; download it again") from None
    if outside := [label for _, label in images if not 1 <= label <= len(names)]:
        raise DataError(f"{file}: class {outside[0]} is not one of 1 to {len(names)}; download it again")
    rows = [(image, names[label - 1]) for image, label in images]
    return split_of(dataset, split, folder / f"cars_{split}", file, rows, names)


def _variable(file: Path, name: str) -> list[Any]:
    found = matlab(file).get(name)
    if found is None or not hasattr(found, "__len__") or getattr(found, "ndim", 1) != 1 or not len(found):
        raise DataError(f"{file}: has no list named '{name}'; download it again")
    return list(found)
