"""PASCAL VOC 2012's segmentation: `<root>/VOCdevkit/VOC2012/{JPEGImages,SegmentationClass,ImageSets/Segmentation}`.

`train_aug` is `train` and the images that SBD annotated beside it (Hariharan et al. 2011), 10,582 in all: the names of
`trainaug.txt` (DeepLab's and MMSegmentation's; or `train_aug.txt`, `aug.txt`) with masks in `SegmentationClassAug`. The
images of `train` keep VOC's own masks, as in MMSegmentation's pascal_voc12_aug.py. Classes are VOC's 21, or for other data in
this layout those of `classes.txt` beside `ImageSets`, one a line.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from backbench.data import image_lists
from backbench.data.layouts import voc
from backbench.data.masks import Masks, by_stem, class_names
from backbench.data.names import spelled_otherwise
from backbench.data.splits import Files, ImageSplit
from backbench.errors import DataError
from backbench.printable import some

LABELS = frozenset({"semantic"})
GIVES_WAY_TO = frozenset({"voc"})  # a whole devkit, named by `--data NAME=DIR`, is one of boxes unless told otherwise
CLASSES = ("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
           "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
           "tvmonitor")  # fmt: skip
AUG = "train_aug"
_AUG_LISTS = ("trainaug.txt", "train_aug.txt", "aug.txt")
_LISTS, _OWN, _ADDED = Path("ImageSets") / "Segmentation", "SegmentationClass", "SegmentationClassAug"


def recognise(root: Path) -> tuple[str, str] | None:
    """Return `train_aug`, or `train` without SBD's list, and `val`, when both lists and SegmentationClass exist."""
    folder = _folder(Path(root))
    if folder is None or not (folder / _OWN).is_dir():
        return None
    if not all((folder / _LISTS / f"{split}.txt").is_file() for split in ("train", "val")):
        return None
    return (AUG if _aug_list(folder) else "train"), "val"


def read(root: Path, split: str, *, dataset: str = "voc12") -> ImageSplit:
    """List the images of `train`, `val`, `trainval` or `train_aug` in the order of their list, without labels.

    `train_aug` is `train`, then the added images by name.

    Raises:
        DataError: a list is missing, or names an image twice or one that is not in JPEGImages.
    """
    folder = _found(root)
    pictures = voc.image_files(folder / "JPEGImages")
    names = [name for name, _ in _rows(folder, split)]
    if absent := [name for name in names if name not in pictures]:
        raise DataError(
            f"{folder / _LISTS}: the lists of {split} name images that are not in {folder / 'JPEGImages'}: {some(absent)}"
            f"{spelled_otherwise(absent, pictures)}"
        )
    files = Files(folder / "JPEGImages", tuple(pictures[name] for name in names))
    return ImageSplit(dataset, split, files, None, class_names(folder) or CLASSES)


def masks(root: Path, split: str) -> Masks:
    """Return the masks of a split, in its order. Raises DataError: a list or a mask is missing."""
    folder = _found(root)
    rows = _rows(folder, split)
    there = {place: by_stem(folder / place) for place in sorted({place for _, place in rows})}
    if absent := [f"{place}/{name}.png" for name, place in rows if name not in there[place]]:
        raise DataError(f"{folder}: masks of {split} that are not there: {some(absent)}; is the archive whole?")
    paths = tuple(f"{place}/{there[place][name]}" for name, place in rows)
    return Masks(Files(folder, paths), class_names(folder) or CLASSES)


def _rows(folder: Path, split: str) -> list[tuple[str, str]]:
    """Return (name of the image, folder of its mask) in the split's order."""
    if split != AUG:
        own = folder / _LISTS / f"{split}.txt"
        return [(name, _OWN) for name in _without_repetition(own, image_lists.lines(own))]
    file = _aug_list(folder)
    if file is None:
        raise DataError(
            f"{folder / _LISTS}: no {_AUG_LISTS[0]}, SBD's additions to train; add it and {_ADDED} (MMSegmentation's "
            "voc_aug.py writes both), or train on VOC's own images: set <cell>.train=train"
        )
    train = [name for name, _ in _rows(folder, "train")]
    names = _without_repetition(file, [_name(line) for line in image_lists.lines(file)])
    if both := sorted(set(names) & {name for name, _ in _rows(folder, "val")}):
        raise DataError(f"{file}: names images of val: {some(both)}; take the list without them")
    return [(name, _OWN) for name in train] + [(name, _ADDED) for name in sorted(set(names) - set(train))]


def _name(line: str) -> str:
    """Return the image of a line: its name, or `/JPEGImages/<name>.jpg /SegmentationClassAug/<name>.png`."""
    return PurePosixPath(line.split()[0]).stem if "/" in line else line


def _without_repetition(file: Path, names: Sequence[str]) -> Sequence[str]:
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise DataError(f"{file}: names images twice: {some(twice)}")
    return names


def _aug_list(folder: Path) -> Path | None:
    return next((folder / _LISTS / name for name in _AUG_LISTS if (folder / _LISTS / name).is_file()), None)


def _folder(root: Path) -> Path | None:
    places = (root / "VOCdevkit" / "VOC2012", root / "VOC2012", root)
    return next((place for place in places if (place / _LISTS).is_dir()), None)


def _found(root: Path) -> Path:
    folder = _folder(Path(root))
    if folder is None:
        raise DataError(f"{root}: no VOCdevkit/VOC2012/{_LISTS.as_posix()} in it; unpack VOC 2012's archive there")
    return folder
