"""EuroSAT (RGB): `<root>/2750/<Class>/<Class>_<number>.jpg`, with the lists `eurosat-{train,val,test}.txt` beside it.

The data set has no official split; the lists are those of Neumann et al. 2019 (In-domain representation learning for remote
sensing), which TorchGeo uses. `trainval` is both parts together, the images of `val` marked.
"""

from __future__ import annotations

from pathlib import Path

from backbench.data.image_lists import base, contains, joined, lines, split_of
from backbench.data.splits import ImageSplit
from backbench.errors import DataError

LABELS = frozenset({"class"})
_SPLITS = ("train", "val", "test")
_LISTS = "https://huggingface.co/datasets/torchgeo/eurosat"


def recognise(root: Path) -> tuple[str, str] | None:
    """Return `trainval` and `test` when the folder of images and the three lists exist."""
    there = contains(root, "eurosat", "2750", *(f"eurosat-{split}.txt" for split in _SPLITS))
    return ("trainval", "test") if there else None


def read(root: Path, split: str, *, dataset: str = "eurosat") -> ImageSplit:
    """List `train`, `val`, `trainval` or `test` in the order of its list; the classes are the sorted ones of `train`.

    Raises:
        DataError: the images or a list are missing, or it names another class.
    """
    if split == "trainval":
        return joined(read(root, "train", dataset=dataset), read(root, "val", dataset=dataset), split)
    folder = base(root, "eurosat", "2750")
    classes = sorted({name for _, name in _rows(folder, "train")})
    file = folder / f"eurosat-{split}.txt"
    return split_of(dataset, split, folder / "2750", file, _rows(folder, split), classes)


def _rows(folder: Path, split: str) -> list[tuple[str, str]]:
    """Return (path, class): an image's name begins with its class."""
    file = folder / f"eurosat-{split}.txt"
    if not file.exists():
        raise DataError(f"{file}: no such file; EuroSAT has no official split: put TorchGeo's lists there, {_LISTS}")
    names = [(line, line.rpartition("_")[0]) for line in lines(file)]
    return [(f"{name}/{image}", name) for image, name in names]
