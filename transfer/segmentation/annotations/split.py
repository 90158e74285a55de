"""Images with a mask each, as every protocol of semantic segmentation reads them."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from backbench.data.masks import IGNORE, label_of
from backbench.data.splits import Files, state_of

__all__ = ["IGNORE", "SegmentationSplit", "of_rows"]


@dataclass(frozen=True)
class SegmentationSplit:
    """One split of a segmentation data set. Row i of `masks` is the mask of image i."""

    dataset: str
    split: str  # e.g. train, train_aug, val
    source: Files
    masks: Files
    classes: tuple[str, ...]  # row = label; background is a class where the data set counts it (VOC: 21)
    # 256 entries: the label of a stored value, IGNORE, or -1 where the value must not occur; None: values are labels
    values: tuple[int, ...] | None = None
    official_part: bool = False
    left_out: tuple[str, ...] = ()
    repaired: Mapping[str, int] = field(default_factory=dict)
    passed_over: Mapping[str, tuple[int, str]] = field(default_factory=dict)  # reason -> number of files, an example

    def __len__(self) -> int:
        return len(self.source)

    def file(self, index: int) -> Path:
        """Return the path of an image."""
        return self.source.root / self.source.paths[index]

    def mask_file(self, index: int) -> Path:
        """Return the path of an image's mask."""
        return self.masks.root / self.masks.paths[index]

    def label(self, index: int) -> np.ndarray:
        """Return the labels (H, W) uint8 of an image's pixels, IGNORE where none counts.

        Raises:
            CorruptImage: the image or the mask cannot be read.
            DataError: the mask has another size than the image, colours, or a value that is none of the classes.
            Changed: the mask changed after it was listed.
        """
        return label_of(self.source, self.masks, index, len(self.classes), self.values)

    def manifest_sha256(self) -> str:
        """Return the SHA-256 over the sorted (image, its bytes, mask, its bytes) of all rows and the table of values.

        Reading an image or a mask that changes afterwards is an error.
        """
        return self._manifest

    def state_sha256(self) -> str:
        """Return the SHA-256 over (name, size, modification time) of all images and masks in order."""
        return hashlib.sha256(f"{state_of(self.source)}\n{state_of(self.masks)}".encode()).hexdigest()

    @functools.cached_property
    def _manifest(self) -> str:
        images, masks = self.source, self.masks
        rows = sorted(f"{images.name(i)}\t{images.size(i)}\t{masks.name(i)}\t{masks.size(i)}" for i in range(len(self)))
        text = "\n".join([f"{len(self.classes)}\t{self.values}", *rows])
        return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def of_rows(split: SegmentationSplit, rows: Sequence[int]) -> SegmentationSplit:
    """Return the split with only these rows."""
    images, masks = (
        Files(files.root, tuple(files.paths[row] for row in rows)) for files in (split.source, split.masks)
    )
    return replace(split, source=images, masks=masks)
