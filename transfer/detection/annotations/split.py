"""Annotated images in one form for both engines: splits, pictures, objects and detections."""

from __future__ import annotations

import functools
import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from backbench.data.splits import Files, state_of
from backbench.errors import DataError
from backbench.printable import some
from backbench.progress import say
from transfer.detection.annotations.pixels import hold

Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels; the image's upper left corner is (0, 0)
BITMAPS = "masks are trained as bitmaps, because some objects have run-length masks"


@dataclass(frozen=True)
class Instance:
    """One object of an image."""

    label: int  # row of `classes`
    box: Box
    difficult: bool = False
    crowd: bool = False
    mask: Any = None  # COCO's `segmentation`: polygons [[x, y, ...], ...] or RLE {"size", "counts"}
    area: float | None = None  # COCO's area of the mask: its metric sorts objects into small, medium and large by it
    area_of: Literal["stated", "mask", "box"] = "stated"  # mask or box: the stated area was impossible
    stated: Box | None = None  # COCO's x, y, width, height, not clipped; its metric uses this box


def _row(o: Instance) -> tuple[Any, ...]:
    area = {"stated": o.area, "mask": "of the mask", "box": None}[
        o.area_of
    ]  # an area computed from mask or box adds nothing
    return o.label, o.box, o.difficult, o.crowd, area, None if o.mask is None else _mask_sha256(o.mask)


def _mask_sha256(mask: Any) -> str:
    """Hash polygons as packed numbers: as text, COCO's take minutes."""
    if isinstance(mask, dict):
        return hashlib.sha256(json.dumps(mask, sort_keys=True).encode()).hexdigest()
    return hashlib.sha256(b"".join(struct.pack(f"<q{len(p)}d", len(p), *p) for p in mask)).hexdigest()


@dataclass(frozen=True)
class Picture:
    """One image and its objects."""

    id: str  # VOC's name or COCO's number
    width: int
    height: int
    instances: tuple[Instance, ...]
    absent: tuple[int, ...] | None = None  # LVIS: classes looked for and not found; None: all the others
    partly: tuple[int, ...] = ()  # LVIS: classes whose objects are not all annotated


@dataclass(frozen=True)
class DetectionSplit:
    """One split of a detection data set. Row i of `pictures` is row i of `source`."""

    dataset: str
    split: str  # e.g. trainval07+12, test, train2017
    source: Files
    pictures: tuple[Picture, ...]
    classes: tuple[str, ...]
    official_part: bool = False
    annotations: Path | None = None  # COCO's own file, for pycocotools
    part_of: tuple[str, int] | None = None  # name and number of images of the split that this is a drawn part of
    frequencies: tuple[str, ...] = ()  # LVIS: r, c or f for each class; such a split is federated
    left_out: tuple[str, ...] = ()  # sentences about what `bad="skip"` left out; such a split is not the published one
    repaired: Mapping[str, int] = field(default_factory=dict)  # repairs of the annotations -> how many
    passed_over: Mapping[str, tuple[int, str]] = field(default_factory=dict)  # reason -> number of files, an example

    def __len__(self) -> int:
        return len(self.pictures)

    def file(self, index: int) -> Path:
        """Return the path of an image."""
        return self.source.root / self.source.paths[index]

    def manifest_sha256(self) -> str:
        """Return the SHA-256 over the sorted (name, bytes, width, height, objects) of all images, masks and areas included.

        Of federated annotations, the classes looked for and the frequencies count too.

        Reading an image that changes afterwards is an error.
        """
        return self._manifest

    def state_sha256(self) -> str:
        """Return the SHA-256 over (name, size, modification time) of all images in order."""
        return state_of(self.source)

    @functools.cached_property
    def _manifest(self) -> str:
        hold(self.source)
        rows = sorted(
            f"{self.source.name(i)}\t{self.source.size(i)}\t{p.width}x{p.height}\t{[_row(o) for o in p.instances]}"
            f"{_looked_for(p)}"
            for i, p in enumerate(self.pictures)
        )
        rows += [str(self.frequencies)] if self.frequencies else []
        return hashlib.sha256("\n".join(rows).encode(errors="surrogateescape")).hexdigest()


def _looked_for(picture: Picture) -> str:
    """Return what federated annotations add to a manifest's row."""
    return "" if picture.absent is None else f"\t{picture.absent}\t{picture.partly}"


@dataclass(frozen=True)
class Detections:
    """Detections in one image, best score first."""

    boxes: Any  # (D, 4) float32 numpy, x0 y0 x1 y1 in the original image's pixels
    scores: Any  # (D,) float32
    labels: Any  # (D,) int64
    masks: Any = None  # list of D COCO RLEs if the detector segments


def check_measurable(split: DetectionSplit, *, masks: bool) -> None:
    """Raise DataError before training if no object counts in the metric.

    Crowds and difficult objects count in no metric; with `masks`, objects without a mask do not count either.
    """
    objects = [o for picture in split.pictures for o in picture.instances]
    counting = sum(1 for o in objects if not o.crowd and not o.difficult and (o.mask is not None or not masks))
    if counting:
        return
    rest = {
        "crowds": sum(o.crowd for o in objects),
        "difficult": sum(o.difficult and not o.crowd for o in objects),
        "without a mask": sum(masks and o.mask is None and not o.crowd and not o.difficult for o in objects),
    }
    have = ", ".join(f"{count} {words}" for words, count in rest.items() if count)
    where = split.annotations or split.source.root
    raise DataError(
        f"{where}: no object counts in the {len(split)} test images of {split.split}"
        f"{f' (objects: {have})' if have else ''}, so nothing can be measured; give a test split with objects"
    )


def check_learnable(split: DetectionSplit) -> None:
    """Raise DataError if no image has an object other than crowds."""
    if all(o.crowd for picture in split.pictures for o in picture.instances):
        raise DataError(
            f"{split.dataset} {split.split}: no image has an object to train on; are its annotations complete?"
        )


def trainable(split: DetectionSplit) -> DetectionSplit:
    """Return the split without images that have only crowds or no object, as in both engines' defaults.

    Raises:
        DataError: no image is left.
    """
    check_learnable(split)
    empty = {i for i, picture in enumerate(split.pictures) if all(o.crowd for o in picture.instances)}
    if not empty:
        return split
    names = [split.source.name(row) for row in sorted(empty)]
    say(f"{split.dataset} {split.split}: left out of training, images without an object: {some(names)}")
    return of_rows(split, [row for row in range(len(split)) if row not in empty])


def mask_format(split: DetectionSplit) -> Literal["polygon", "bitmask"]:
    """Return `polygon`, the engines' default, or `bitmask` if a training object has a run-length mask."""
    runs = any(isinstance(o.mask, dict) and not o.crowd for picture in split.pictures for o in picture.instances)
    return "bitmask" if runs else "polygon"


def of_rows(split: DetectionSplit, rows: Sequence[int]) -> DetectionSplit:
    """Return the split with only these rows."""
    source = Files(split.source.root, tuple(split.source.paths[row] for row in rows))
    return replace(split, source=source, pictures=tuple(split.pictures[row] for row in rows))
