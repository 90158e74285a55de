"""Cityscapes: `<root>/leftImg8bit/<split>/<city>/*_leftImg8bit.png`, masks in `<root>/gtFine/<split>/<city>`.

The masks are `*_gtFine_labelTrainIds.png` where every image has one (cityscapesScripts makes them), else the published
`*_gtFine_labelIds.png`, mapped to the same 19 classes (cityscapesscripts/helpers/labels.py); other labels are ignored.
Detection reads the `*_gtFine_instanceIds.png` beside them.
"""

from __future__ import annotations

from pathlib import Path

from backbench.data.masks import Masks, mapped, names_in
from backbench.data.splits import Files, ImageSplit
from backbench.errors import DataError
from backbench.printable import some

LABELS = frozenset({"semantic", "boxes"})
CLASSES = ("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation",
           "terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")  # fmt: skip
IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)  # of CLASSES in labelIds
SPLITS = ("train", "val")  # the masks of the test images are not public
_IMAGE, _KINDS = "_leftImg8bit.png", ("labelTrainIds", "labelIds")


def recognise(root: Path) -> tuple[str, str] | None:
    """Return `train` and `val` when both have images and masks."""
    there = all((Path(root) / kind / split).is_dir() for kind in ("leftImg8bit", "gtFine") for split in SPLITS)
    return SPLITS if there else None


def read(root: Path, split: str, *, dataset: str = "cityscapes") -> ImageSplit:
    """List the images of a split by city and name, without labels.

    Raises:
        DataError: the split is not train or val, a folder is missing, or it has no image.
    """
    return ImageSplit(dataset, split, Files(_images(root, split), _names(root, split)), None, CLASSES)


def masks(root: Path, split: str) -> Masks:
    """Return the masks of a split, in its order. Raises DataError: some are missing."""
    folder, stems = Path(root) / "gtFine" / split, [name.removesuffix(_IMAGE) for name in _names(root, split)]
    cities = sorted({stem.partition("/")[0] for stem in stems})
    there = {f"{city}/{name}" for city in cities for name in names_in(folder / city)}
    paths = {kind: [f"{stem}_gtFine_{kind}.png" for stem in stems] for kind in _KINDS}
    absent = {kind: [path for path in paths[kind] if path not in there] for kind in _KINDS}
    kind = next((kind for kind in _KINDS if not absent[kind]), None)
    if kind is None:
        fewest = min(_KINDS, key=lambda kind: len(absent[kind]))
        raise DataError(f"{folder}: masks that are not there: {some(absent[fewest])}; unpack gtFine_trainvaltest.zip")
    table = mapped(dict(zip(IDS, range(len(IDS)), strict=True)), range(34)) if kind == "labelIds" else None
    return Masks(Files(folder, tuple(paths[kind])), CLASSES, table)


def _images(root: Path, split: str) -> Path:
    if split not in SPLITS:
        raise DataError(f"{root}: no split '{split}' with public masks; Cityscapes has train and val")
    folder = Path(root) / "leftImg8bit" / split
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; unpack leftImg8bit_trainvaltest.zip there")
    return folder


def _names(root: Path, split: str) -> tuple[str, ...]:
    folder = _images(root, split)
    cities = [name for name in names_in(folder) if (folder / name).is_dir()]
    found = [f"{city}/{name}" for city in cities for name in names_in(folder / city) if name.endswith(_IMAGE)]
    if not found:
        raise DataError(f"{folder}: no <city>/*{_IMAGE} in it; unpack leftImg8bit_trainvaltest.zip there")
    return tuple(found)
