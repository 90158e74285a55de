"""Your own images and masks: `<root>/images/<split>/**/<name>.jpg` and `<root>/masks/<split>/**/<name>.png`.

`img_dir` and `ann_dir`, MMSegmentation's usual names, may stand for `images` and `masks`. A pixel of a mask holds the number
of its class, 255 is ignored. `<root>/classes.txt` names the classes, one a line, the first for 0; without it they are
numbers, up to the highest in the masks of `train`.
"""

from __future__ import annotations

import functools
from pathlib import Path, PurePosixPath

from backbench.data.listing import Listing
from backbench.data.masks import ENDINGS, IGNORE, Masks, class_names, stored_values
from backbench.data.splits import Files, ImageSplit, state_of
from backbench.errors import DataError
from backbench.printable import some
from backbench.progress import track

LABELS = frozenset({"semantic"})
ALONE = "masks without an image"
_NAMES = (("images", "masks"), ("img_dir", "ann_dir"))
_TEST_SPLITS = ("test", "val", "valid", "validation")


def recognise(root: Path) -> tuple[str, str] | None:
    """Return `train`, and the first of `test`, `val`, `valid` and `validation`, that have images and masks."""
    for images, masks in _NAMES:
        having = [
            split
            for split in ("train", *_TEST_SPLITS)
            if all((Path(root) / kind / split).is_dir() for kind in (images, masks))
        ]
        if having[:1] == ["train"] and len(having) > 1:
            return "train", having[1]
    return None


def read(root: Path, split: str, *, dataset: str = "mask_folders") -> ImageSplit:
    """List the images of a split by path, without labels; masks without an image are counted in `passed_over`.

    Raises:
        DataError: a folder is missing or has no image, two images have one name, or `classes.txt` is faulty.
    """
    folder, beside = _folders(Path(root), split)
    images, there = _images(folder), _masks(beside)
    passed_over: dict[str, tuple[int, str]] = {}
    if alone := sorted(set(there) - {_stem(path) for path in images}):
        passed_over[ALONE] = (len(alone), there[alone[0]])
    return ImageSplit(dataset, split, Files(folder, images), None, _classes(Path(root)), passed_over=passed_over)


def masks(root: Path, split: str) -> Masks:
    """Return the masks of a split, in its order. Raises DataError: an image has no mask, or two."""
    images, folder = _folders(Path(root), split)
    there = _masks(folder)
    names = [_stem(path) for path in _images(images)]
    if absent := [f"{name}.png" for name in names if name not in there]:
        raise DataError(f"{folder}: images without a mask: {some(absent)}; add the masks, or remove the images")
    return Masks(Files(folder, tuple(there[name] for name in names)), _classes(Path(root)))


def _folders(root: Path, split: str) -> tuple[Path, Path]:
    """Return the folders of a split's images and masks."""
    for images, masks in _NAMES:
        if (root / images / split).is_dir():
            if not (root / masks / split).is_dir():
                raise DataError(f"{root / masks / split}: no such folder; each image needs a mask in it")
            return root / images / split, root / masks / split
    raise DataError(f"{root}: no folder images/{split} in it; give images/{split} and masks/{split}")


def _images(folder: Path) -> tuple[str, ...]:
    paths = Listing(folder).images("")
    if not paths:
        raise DataError(f"{folder}: no images in it")
    _one_each(folder, paths)
    return tuple(paths)


def _masks(folder: Path) -> dict[str, str]:
    """Return the masks below a folder by path without ending."""
    paths = Listing(folder).images("")
    if paths and not [path for path in paths if path.lower().endswith(ENDINGS)]:
        raise DataError(f"{folder / paths[0]}: a mask must be stored without loss; save it as a palette or grey PNG")
    paths = [path for path in paths if path.lower().endswith(ENDINGS)]
    _one_each(folder, paths)
    return {_stem(path): path for path in paths}


def _one_each(folder: Path, paths: list[str]) -> None:
    first: dict[str, str] = {}
    for path in paths:
        if (other := first.setdefault(_stem(path), path)) != path:
            raise DataError(f"{folder}: holds {other} and {path}, which differ in their ending only; remove one")


def _stem(path: str) -> str:
    return path.removesuffix(PurePosixPath(path).suffix)


def _classes(root: Path) -> tuple[str, ...]:
    if (names := class_names(root)) is not None:
        return names
    there = _masks(_folders(root, "train")[1])
    files = Files(_folders(root, "train")[1], tuple(there[name] for name in sorted(there)))
    return tuple(str(number) for number in range(_highest(files, state_of(files)) + 1))


@functools.lru_cache(maxsize=8)
def _highest(files: Files, state: str) -> int:
    """Return the highest class in the masks. `state` makes the cached answer one for these files only."""
    highest = 0
    for row in track(range(len(files)), total=len(files), label=f"{files.root}: no classes.txt; classes of masks"):
        values = stored_values(files.stored(row), str(files.root / files.paths[row]))
        highest = max(highest, int(values[values != IGNORE].max(initial=0)))
    return highest
