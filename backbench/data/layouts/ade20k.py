"""ADE20K's scene parsing: `<root>/ADEChallengeData2016/{images,annotations}/{training,validation}`.

A mask's 0 stands for none of the classes and is ignored; 1 to 150 are the classes 0 to 149 (MMSegmentation's
`reduce_zero_label`). Their names come from the archive's `objectInfo150.txt`; without it they are numbers.
"""

from __future__ import annotations

from pathlib import Path

from backbench.data import image_lists
from backbench.data.decode import EXTENSIONS
from backbench.data.masks import Masks, by_stem, mapped
from backbench.data.splits import Files, ImageSplit
from backbench.errors import DataError
from backbench.printable import some

LABELS = frozenset({"semantic"})
SPLITS = ("training", "validation")
CLASSES = 150
_TABLE = mapped({value: value - 1 for value in range(1, CLASSES + 1)}, range(1))
_FOLDER, _NAMES = "ADEChallengeData2016", "objectInfo150.txt"


def recognise(root: Path) -> tuple[str, str] | None:
    """Return `training` and `validation` when both have images and annotations."""
    needed = [f"{kind}/{split}" for kind in ("images", "annotations") for split in SPLITS]
    return SPLITS if image_lists.contains(root, _FOLDER, *needed) else None


def read(root: Path, split: str, *, dataset: str = "ade20k") -> ImageSplit:
    """List the images of a split by name, without labels.

    Raises:
        DataError: a folder is missing or has no image, or `objectInfo150.txt` does not name 150 classes.
    """
    folder = image_lists.base(root, _FOLDER, "images")
    pictures = by_stem(folder / "images" / split, EXTENSIONS)
    if not pictures:
        raise DataError(f"{folder / 'images' / split}: no image in it; unpack ADEChallengeData2016.zip there")
    paths = tuple(pictures[name] for name in sorted(pictures))
    return ImageSplit(dataset, split, Files(folder / "images" / split, paths), None, _classes(folder))


def masks(root: Path, split: str) -> Masks:
    """Return the masks of a split, in its order. Raises DataError: some are missing."""
    folder = image_lists.base(root, _FOLDER, "images")
    names, place = sorted(by_stem(folder / "images" / split, EXTENSIONS)), folder / "annotations" / split
    there = by_stem(place)
    if absent := [f"{name}.png" for name in names if name not in there]:
        raise DataError(f"{place}: masks that are not there: {some(absent)}; unpack ADEChallengeData2016.zip again")
    return Masks(Files(place, tuple(there[name] for name in names)), _classes(folder), _TABLE)


def _classes(folder: Path) -> tuple[str, ...]:
    """Return the 150 names: the first one of each line's last column, in the order of the lines."""
    file = folder / _NAMES
    if not file.is_file():
        return tuple(str(number) for number in range(1, CLASSES + 1))
    names = tuple(line.split("\t")[-1].partition(",")[0].strip() for line in image_lists.lines(file)[1:])
    if len(names) != CLASSES:
        raise DataError(f"{file}: names {len(names)} classes, not {CLASSES}; unpack ADEChallengeData2016.zip again")
    return names
