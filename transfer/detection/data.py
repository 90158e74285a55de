"""Annotated images for both engines: VOC and COCO layouts into one form, and what is wrong with them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.datasets import Files


@dataclass(frozen=True)
class Instance:
    """One object of an image."""

    label: int  # row of `classes`
    box: tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels; the image's upper left corner is (0, 0)
    difficult: bool = False
    crowd: bool = False
    mask: Any = None  # COCO's `segmentation`: polygons [[x, y, ...], ...] or RLE {"size", "counts"}


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
    _manifest: list[str] = field(default_factory=list, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.pictures)

    def file(self, index: int) -> Path:
        """The image file."""
        return self.source.root / self.source.paths[index]

    def manifest_sha256(self) -> str:
        """SHA-256 over the sorted (name, size, objects) of all images."""
        if not self._manifest:
            rows = sorted(
                f"{self.source.name(i)}\t{self.source.size(i)}\t{[(o.label, o.box) for o in p.instances]}"
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
