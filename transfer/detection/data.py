"""Annotated images for both engines: VOC and COCO layouts into one form, and what is wrong with them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import struct
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from core.datasets import Files, coco, some, voc
from core.errors import DataError
from core.images import EXTENSIONS
from core.progress import say, track
from transfer.detection.reading import read_image

Bad = Literal["error", "skip"]
Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels; the image's upper left corner is (0, 0)

HEADERS = 200  # images whose header is read with the annotations
_READERS = 8  # threads: reading from a network's disk is mostly waiting
UNDECODED = "images that cannot be decoded, or not to the size that their annotation states"
SIZE = "images that are unreadable or not of the size that their annotation states"
MISSING = "images that are not in the folder"
NO_AREA = "boxes with no area"
OUTSIDE = "boxes outside their image"
POLYGON = "polygons that are not three points or more, in or near their image"
RUN_LENGTH = "run-length masks that do not fill their image"
BITMAPS = "masks are trained on as bitmaps, since some objects have run-length masks"
_FLAT_IN_TRAIN2017 = (200365, 550395)  # the two images whose official annotations hold a box of no height


@dataclass(frozen=True)
class Instance:
    """One object of an image."""

    label: int  # row of `classes`
    box: Box
    difficult: bool = False
    crowd: bool = False
    mask: Any = None  # COCO's `segmentation`: polygons [[x, y, ...], ...] or RLE {"size", "counts"}
    area: float | None = None  # COCO's, of the mask: its metric calls objects small, medium or large by it


def _row(o: Instance) -> tuple[Any, ...]:
    return o.label, o.box, o.difficult, o.crowd, o.area, None if o.mask is None else _mask_sha256(o.mask)


def _mask_sha256(mask: Any) -> str:
    """Of polygons as packed numbers: as text, those of COCO take minutes."""
    if isinstance(mask, dict):
        return hashlib.sha256(json.dumps(mask, sort_keys=True).encode()).hexdigest()
    return hashlib.sha256(b"".join(struct.pack(f"<q{len(p)}d", len(p), *p) for p in mask)).hexdigest()


@dataclass(frozen=True)
class Picture:
    """One image and its objects."""

    id: str  # VOC's name, or COCO's number
    width: int
    height: int
    instances: tuple[Instance, ...]


@dataclass(frozen=True)
class DetectionSplit:
    """One split of a detection data set; row i of `pictures` is row i of `source`."""

    dataset: str
    split: str  # e.g. trainval07+12, test, train2017
    source: Files
    pictures: tuple[Picture, ...]
    classes: tuple[str, ...]
    official_part: bool = False
    annotations: Path | None = None  # COCO's own file, for pycocotools
    left_out: tuple[str, ...] = ()  # what `bad="skip"` passed over, in sentences; such a split is not the published one
    _manifest: list[str] = field(default_factory=list, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.pictures)

    def file(self, index: int) -> Path:
        """The image file."""
        return self.source.root / self.source.paths[index]

    def manifest_sha256(self) -> str:
        """SHA-256 over the sorted (name, bytes, width, height, objects) of all images, masks and areas included."""
        if not self._manifest:
            rows = sorted(
                f"{self.source.name(i)}\t{self.source.size(i)}\t{p.width}x{p.height}\t{[_row(o) for o in p.instances]}"
                for i, p in enumerate(self.pictures)
            )
            self._manifest.append(hashlib.sha256("\n".join(rows).encode()).hexdigest())
        return self._manifest[0]


@dataclass(frozen=True)
class Detections:
    """What a detector found in one image, best score first."""

    boxes: Any  # (D, 4) float32 numpy, x0 y0 x1 y1 in the original image's pixels
    scores: Any  # (D,) float32
    labels: Any  # (D,) int64
    masks: Any = None  # list of D COCO RLEs, where the detector segments


def trainable(split: DetectionSplit) -> DetectionSplit:
    """Without the images that have no object but crowds, as both engines' defaults train.

    Raises:
        DataError: none is left.
    """
    empty = {i for i, picture in enumerate(split.pictures) if all(o.crowd for o in picture.instances)}
    if len(empty) == len(split):
        raise DataError(
            f"{split.dataset} {split.split}: no image has an object to train on; are its annotations whole?"
        )
    if not empty:
        return split
    names = [split.source.name(row) for row in sorted(empty)]
    say(f"{split.dataset} {split.split}: images without an object, left out of training: {some(names)}")
    return of_rows(split, [row for row in range(len(split)) if row not in empty])


def mask_format(split: DetectionSplit) -> Literal["polygon", "bitmask"]:
    """`polygon`, the engines' default, or `bitmask` where an object that is trained on has a run-length mask."""
    runs = any(isinstance(o.mask, dict) and not o.crowd for picture in split.pictures for o in picture.instances)
    return "bitmask" if runs else "polygon"


def read_voc(
    root: Path,
    split: str,
    *,
    bad: Bad = "error",
    dataset: str = "voc",
) -> DetectionSplit:
    """A split of VOC 2007's layout (any classes), or `trainval07+12`: 2007's trainval, then 2012's.

    Boxes are (xmin - 1, ymin - 1, xmax, ymax) (detectron2 data/datasets/pascal_voc.py). Difficult objects are kept.
    Classes are those of the lists `<class>_<split>.txt`, or, where a year has none, of its annotations.

    Args:
        bad: what follows from a fault in the annotations once it was counted and said; see `_Faults`.

    Raises:
        DataError: half a devkit, faults with `bad="error"`, or nothing left.
    """
    folders, own = _voc_folders(root, split)
    lists = [folder / "ImageSets" / "Main" for folder in folders]
    classes = _voc_classes(folders[0], own)
    for other in lists[1:]:
        if voc.class_names(other, own) != classes:
            raise DataError(f"{other}: its classes are not those of {lists[0]}; both years need the same lists")
    base = folders[0] / "JPEGImages" if len(folders) == 1 else folders[0].parent
    faults = _Faults(base, bad)
    paths, pictures = [], []
    for folder, listed in zip(folders, lists, strict=True):
        ids = voc.image_ids(listed / f"{own}.txt")
        there = _images(folder / "JPEGImages")
        for name in track(ids, total=len(ids), label=f"annotations of {folder.name} {own}"):
            image = folder / "JPEGImages" / there.get(name, f"{name}.jpg")
            if name not in there:
                faults.add(MISSING, image.name)
            elif (picture := _voc_picture(folder, name, classes, faults)) is not None:
                paths.append(image.relative_to(base).as_posix())
                pictures.append(picture)
    found = DetectionSplit(dataset, split, Files(base, tuple(paths)), tuple(pictures), classes)
    return _sound(found, faults)


def read_coco(
    root: Path,
    split: str,
    *,
    bad: Bad = "error",
    masks: bool = False,
    dataset: str = "coco",
) -> DetectionSplit:
    """A split of COCO's layout: images by id, categories by id without gaps, crowds marked, masks as they stand.

    Images without objects are kept: an evaluation counts what is found in them.

    Args:
        bad: what follows from a fault in the annotations once it was counted and said; see `_Faults`.
        masks: every object needs one.

    Raises:
        DataError: not COCO's format, faults with `bad="error"`, or nothing left.
    """
    file, folder = coco.annotation_file(root, split), Path(root) / split
    known = coco.instances(file, strict=False)
    faults = _Faults(file, bad)
    for number, key in known.stray:
        faults.add(f"annotations whose {key} is unknown", f"annotation {number}")
    labels = {category["id"]: row for row, category in enumerate(known.categories)}
    of_image: dict[Any, list[dict[str, Any]]] = {}
    for annotation in known.annotations:
        of_image.setdefault(annotation["image_id"], []).append(annotation)
    there = voc.listing(folder)
    paths, pictures = [], []
    for image in track(known.images, total=len(known.images), label=f"annotations of {dataset} {split}"):
        name = image["file_name"]
        if name not in there and not ("/" in name and (folder / name).is_file()):
            faults.add(MISSING, name)
            continue
        size = _pixels(image)
        if size is None:
            faults.add(SIZE, name)
            continue
        items = [_coco_instance(a, image, labels, faults, masks=masks) for a in of_image.get(image["id"], [])]
        paths.append(name)
        instances = tuple(item for item in items if item is not None)
        pictures.append(Picture(str(image["id"]), *size, instances))
    classes = tuple(category["name"] for category in known.categories)
    found = DetectionSplit(dataset, split, Files(folder, tuple(paths)), tuple(pictures), classes, annotations=file)
    return _sound(found, faults)


def usable(annotation: dict[str, Any], image: dict[str, Any]) -> tuple[dict[str, Any] | None, str | None]:
    """A COCO annotation without what no engine and no metric can use, None when nothing is left; and what that was."""
    box, mask = annotation["bbox"], annotation.get("segmentation")
    if not _are_numbers(box) or len(box) != 4:
        return None, "boxes that are not four numbers"
    x, y, width, height = box
    fault = _box_fault((x, y, x + width, y + height), image["width"], image["height"])
    if fault:
        return None, fault
    if not mask:
        return annotation, None
    if isinstance(mask, dict):
        whole = _is_run_length(mask, image["width"], image["height"])
        return (annotation, None) if whole else (None, RUN_LENGTH)
    if not isinstance(mask, list):
        return None, POLYGON
    polygons = [p for p in mask if _is_polygon(p, image["width"], image["height"])]
    if len(polygons) == len(mask):
        return annotation, None
    return ({**annotation, "segmentation": polygons} if polygons else None), POLYGON


class _Faults:
    """Faults of a split by kind: how many, and the first names, go into the log.

    With `bad="error"` they are then a DataError. With `skip` whatever holds one is left out: an image that is missing,
    of another size than stated or without a readable annotation; an object without area, outside its image, of an
    unknown class or of an unknown image; a polygon that is none, and its object when it has no other.
    """

    def __init__(self, where: Path, bad: Bad) -> None:
        self.where, self.bad = where, bad
        self.names: dict[str, list[str]] = {}
        self.mended: dict[str, list[str]] = {}

    def add(self, kind: str, name: str) -> None:
        """Something that cannot be used."""
        self.names.setdefault(kind, []).append(name)

    def mend(self, kind: str, name: str) -> None:
        """Something that was put right, or is known of the official files: never an error."""
        self.mended.setdefault(kind, []).append(name)

    def settle(self) -> list[str]:
        """Say everything; what is left out, a sentence for each kind. Raises DataError for faults with `bad="error"`."""
        for kind, names in self.mended.items():
            say(f"{self.where}: {kind}: {some(names)}")
        if not self.names:
            return []
        sentences = [f"{kind}: {some(names)}" for kind, names in self.names.items()]
        if self.bad == "error":
            raise DataError(f"{self.where}: {'; '.join(sentences)}. Correct them, or leave them out with bad=skip")
        for sentence in sentences:
            say(f"{self.where}: left out: {sentence}")
        return sentences


def _voc_folders(root: Path, split: str) -> tuple[list[Path], str]:
    """The years' folders and the name of their list."""
    if split != "trainval07+12":
        return [voc.year_folder(root)], split
    folders = [voc.year_folder(root, year) for year in (2007, 2012)]
    if folders[0] == folders[1] or folders[0].parent != folders[1].parent:
        raise DataError(f"{root}: {split} needs VOC2007 and VOC2012 side by side in one folder (VOCdevkit)")
    return folders, "trainval"


def _images(folder: Path) -> dict[str, str]:
    """Image files by name without ending: VOC's own are .jpg, other data sets' in its layout may be .png or .jpeg."""
    files = [name for name in sorted(voc.listing(folder)) if Path(name).suffix.lower() in EXTENSIONS]
    return {Path(name).stem: name for name in sorted(files, key=lambda name: name.endswith(".jpg"))}


def _voc_classes(folder: Path, split: str) -> tuple[str, ...]:
    """Those of the devkit's lists; of a data set that has no lists of classes, the names in all its annotations."""
    lists = folder / "ImageSets" / "Main"
    if any(lists.glob(f"*_{split}.txt")) or (split in voc.SPLITS and any(lists.glob("*_*.txt"))):
        return voc.class_names(lists, split)
    found: set[str] = set()
    for name in sorted({name for file in lists.glob("*.txt") for name in voc.image_ids(file)}):
        with contextlib.suppress(DataError):  # counted where the split is read
            found |= {item.name for item in voc.annotation(folder / "Annotations" / f"{name}.xml").objects}
    if not found:
        raise DataError(f"{lists}: no lists <class>_{split}.txt in it, and no class in the annotations")
    say(f"{lists}: no lists <class>_{split}.txt in it; classes by the annotations: {', '.join(sorted(found))}")
    return tuple(sorted(found))


def _voc_picture(folder: Path, name: str, classes: tuple[str, ...], faults: _Faults) -> Picture | None:
    try:
        stated = voc.annotation(folder / "Annotations" / f"{name}.xml")
    except DataError as error:
        faults.add("annotations that cannot be read", str(error))
        return None
    if stated.width <= 0 or stated.height <= 0:
        faults.add(SIZE, f"{name}.jpg")
        return None
    instances = []
    for item in stated.objects:
        if item.name not in classes:
            faults.add("objects of a class that has no list", f"'{item.name}' in {name}.xml")
            continue
        x0, y0, x1, y1 = item.box
        box = (x0 - 1, y0 - 1, x1, y1)
        fault = _box_fault(box, stated.width, stated.height)
        if fault:
            faults.add(fault, f"{name}.xml")
        else:
            box = _clipped(box, stated.width, stated.height, f"{name}.xml", faults)
            instances.append(Instance(classes.index(item.name), box, difficult=item.difficult))
    return Picture(name, stated.width, stated.height, tuple(instances))


def _coco_instance(
    annotation: dict[str, Any], image: dict[str, Any], labels: dict[Any, int], faults: _Faults, *, masks: bool
) -> Instance | None:
    name = f"annotation {annotation['id']} of {image['file_name']}"
    kept, fault = usable(annotation, image)
    if fault:
        official = fault == NO_AREA and image["id"] in _FLAT_IN_TRAIN2017
        (faults.mend if official else faults.add)(fault, name)
    if kept is None:
        return None
    mask = kept.get("segmentation") or None
    if masks and mask is None:
        faults.add("objects without a mask", name)
        return None
    x, y, width, height = kept["bbox"]
    box = _clipped((x, y, x + width, y + height), image["width"], image["height"], name, faults)
    return Instance(
        labels[annotation["category_id"]],
        box,
        crowd=bool(annotation.get("iscrowd")),
        mask=mask,
        area=annotation.get("area"),
    )


def _box_fault(box: Box, width: int, height: int) -> str | None:
    x0, y0, x1, y1 = box
    if not all(math.isfinite(value) for value in box) or x1 <= x0 or y1 <= y0:
        return NO_AREA
    if x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0:
        return OUTSIDE
    return None


def _clipped(box: Box, width: int, height: int, name: str, faults: _Faults) -> Box:
    inside = (max(box[0], 0), max(box[1], 0), min(box[2], width), min(box[3], height))
    if max(abs(a - b) for a, b in zip(box, inside, strict=True)) > 1:  # less is rounding
        faults.mend("boxes that reached over the image's edge, clipped", name)
    return tuple(float(value) for value in inside)


def _pixels(image: dict[str, Any]) -> tuple[int, int] | None:
    """Width and height by a COCO file; None where they are no size."""
    width, height = image["width"], image["height"]
    return (width, height) if all(isinstance(side, int) and side > 0 for side in (width, height)) else None


def _is_polygon(points: object, width: int, height: int) -> bool:
    """Three points or more; far outside the image (by its own size) they are no outline, and rendering them takes memory."""
    if not _are_numbers(points) or len(points) < 6 or len(points) % 2:
        return False
    return all(-s <= low and high <= 2 * s for s, low, high in (
        (width, min(points[::2]), max(points[::2])), (height, min(points[1::2]), max(points[1::2]))
    ))  # fmt: skip


def _are_numbers(values: object) -> bool:
    try:
        return isinstance(values, list) and math.isfinite(sum(values))
    except (TypeError, OverflowError):
        return False


def _is_run_length(mask: dict[str, Any], width: int, height: int) -> bool:
    """Whether a mask's size is the image's, and its runs fill it."""
    counts = mask.get("counts")
    if mask.get("size") != [height, width] or not counts:
        return False
    runs = unpacked(counts) if isinstance(counts, str) else counts
    if not _are_numbers(runs) or any(run != int(run) for run in runs):
        return False
    return min(runs) >= 0 and sum(runs) == width * height


def unpacked(counts: str) -> list[int] | None:
    """The runs of a packed run-length mask, None when the string packs none (cocoapi common/maskApi.c, rleFrString).

    A character holds five bits, low ones first, and whether more follow; from the fourth run on, what is packed is the
    difference to the run before the last. pycocotools checks nothing: of another string it makes pixels, or crashes.
    """
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:  # negative
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs if not shift else None


def whole_images(split: DetectionSplit, *, bad: Bad) -> DetectionSplit:
    """The split once every image of it was decoded: an engine would come upon a broken one hours into its course.

    Raises:
        DataError: broken images with `bad="error"`, or nothing left.
    """
    broken = undecodable(split, range(len(split)))
    return _without(split, broken, UNDECODED, _Faults(split.source.root, bad))


def undecodable(split: DetectionSplit, rows: Collection[int]) -> set[int]:
    """Those rows whose image an engine would stop at."""

    def decodes(row: int) -> bool:
        picture = split.pictures[row]
        try:
            read_image(split.file(row), picture.width, picture.height)
        except DataError:
            return False
        return True

    return _failing(decodes, rows, label=f"images of {split.dataset} {split.split}")


def _sound(split: DetectionSplit, faults: _Faults) -> DetectionSplit:
    """The split without images of another size than stated, by the headers of a sample. Raises DataError as `read_voc`."""
    sample = np.random.default_rng(0).permutation(len(split))[:HEADERS].tolist()
    misfits = _of_another_size(split, sample)
    if misfits:  # where one is wrong others are
        misfits |= _of_another_size(split, range(len(split)))
    return _without(split, misfits, SIZE, faults)


def _of_another_size(split: DetectionSplit, rows: Collection[int]) -> set[int]:
    """Rows whose image's header is unreadable or gives another size than the annotation."""

    def fits(row: int) -> bool:
        try:
            with Image.open(split.file(row)) as image:
                return image.size == (split.pictures[row].width, split.pictures[row].height)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            return False

    return _failing(fits, rows, label=f"headers of {split.dataset} {split.split}")


def _failing(test: Callable[[int], bool], rows: Collection[int], *, label: str) -> set[int]:
    with ThreadPoolExecutor(_READERS) as pool:
        told = track(pool.map(test, rows), total=len(rows), label=label)
        return {row for row, passed in zip(rows, told, strict=True) if not passed}


def _without(split: DetectionSplit, rows: set[int], kind: str, faults: _Faults) -> DetectionSplit:
    """The split without some images, and with all faults said. Raises DataError as `read_voc`."""
    for row in sorted(rows):
        faults.add(kind, split.source.name(row))
    left_out = (*split.left_out, *faults.settle())
    if len(rows) == len(split):
        raise DataError(f"{faults.where}: no image of it can be used; is the data set whole?")
    kept = of_rows(split, [row for row in range(len(split)) if row not in rows]) if rows else split
    return replace(kept, left_out=left_out)


def of_rows(split: DetectionSplit, rows: Sequence[int]) -> DetectionSplit:
    """The split with these rows only."""
    source = Files(split.source.root, tuple(split.source.paths[row] for row in rows))
    return replace(split, source=source, pictures=tuple(split.pictures[row] for row in rows), _manifest=[])
