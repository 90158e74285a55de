"""A data set's split: the source of its images, their labels, and hashes that identify them."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from backbench.data.decode import Reduction, decode_rgb, open_rgb, read_bytes
from backbench.files import Status, status_of


class ImageSource(Protocol):
    """The source of a split's images."""

    def __len__(self) -> int: ...
    def name(self, index: int) -> str: ...
    def size(self, index: int) -> int: ...
    def status(self, index: int) -> Status: ...
    def stored(self, index: int) -> bytes: ...
    def pil(self, index: int) -> Image.Image: ...
    def rgb(self, index: int, reduction: Reduction | None = None) -> np.ndarray: ...  # as `decode_rgb`


@dataclass(frozen=True)
class Files:
    """Image files below a folder."""

    root: Path
    paths: tuple[str, ...]  # relative to root, with forward slashes
    _listed: np.ndarray = field(init=False, repr=False, compare=False)  # (N, 3) int64 statuses, -1 until asked for

    def __post_init__(self) -> None:
        object.__setattr__(self, "_listed", np.full((len(self.paths), 3), -1, np.int64))

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """The path relative to the root."""
        return self.paths[index]

    def size(self, index: int) -> int:
        """Return the bytes on disk. Raises DataError when the file is gone."""
        return self.status(index)[0]

    def status(self, index: int) -> Status:
        """Return size and times, noted at the first call; reading a file that changed afterwards is an error."""
        if self._listed[index, 0] < 0:
            self._listed[index] = status_of(self.root / self.paths[index])
        size, contents, entry = self._listed[index].tolist()
        return size, contents, entry

    def stored(self, index: int) -> bytes:
        """Return the file's bytes, not decoded. Raises CorruptImage, and Changed."""
        listed = self._listed[index]
        return read_bytes(self.root / self.paths[index], None if listed[0] < 0 else listed.tolist())

    def pil(self, index: int) -> Image.Image:
        """Pillow image in mode RGB, for evaluation. Raises CorruptImage, and Changed."""
        return open_rgb(self.stored(index), str(self.root / self.paths[index]))

    def rgb(self, index: int, reduction: Reduction | None = None) -> np.ndarray:
        """(H, W, 3) uint8, decoded fast, for pretraining. Raises CorruptImage, and Changed."""
        return decode_rgb(self.stored(index), str(self.root / self.paths[index]), reduction)


@dataclass(frozen=True)
class Subset:
    """Some images of another source, in a given order."""

    source: ImageSource
    chosen: np.ndarray  # (N,) indices into the source

    def __len__(self) -> int:
        return len(self.chosen)

    def name(self, index: int) -> str:
        """The name in the whole source."""
        return self.source.name(int(self.chosen[index]))

    def size(self, index: int) -> int:
        """Bytes on disk."""
        return self.source.size(int(self.chosen[index]))

    def status(self, index: int) -> Status:
        """Size and times of its file."""
        return self.source.status(int(self.chosen[index]))

    def stored(self, index: int) -> bytes:
        """The image's bytes, not decoded. Raises CorruptImage."""
        return self.source.stored(int(self.chosen[index]))

    def pil(self, index: int) -> Image.Image:
        """Pillow image in mode RGB. Raises CorruptImage."""
        return self.source.pil(int(self.chosen[index]))

    def rgb(self, index: int, reduction: Reduction | None = None) -> np.ndarray:
        """(H, W, 3) uint8. Raises CorruptImage."""
        return self.source.rgb(int(self.chosen[index]), reduction)


class Split(Protocol):
    """One split of a data set with any kind of annotation."""

    @property
    def dataset(self) -> str: ...
    @property
    def split(self) -> str: ...
    @property
    def source(self) -> ImageSource: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def official_part(self) -> bool: ...
    @property
    def passed_over(self) -> Mapping[str, tuple[int, str]]: ...
    @property
    def repaired(self) -> Mapping[str, int]: ...
    @property
    def left_out(self) -> tuple[str, ...]: ...
    def __len__(self) -> int: ...
    def manifest_sha256(self) -> str: ...
    def state_sha256(self) -> str: ...


def state_of(source: ImageSource) -> str:
    """SHA-256 over (name, size, time of last change) of all images in their order."""
    state = hashlib.sha256()
    for index in range(len(source)):
        size, contents, _ = source.status(index)
        state.update(f"{source.name(index)}\t{size}\t{contents}\n".encode(errors="surrogateescape"))
    return state.hexdigest()


@dataclass(frozen=True)
class ImageSplit:
    """One split of a labelled (or unlabelled) image data set."""

    dataset: str
    split: str
    source: ImageSource
    # (N,) int64, -1 for an image without a label; or (N, classes) int8 for multi-label: 1 present, 0 present only as
    # difficult objects, -1 absent
    labels: np.ndarray | None
    classes: tuple[str, ...]
    official_part: bool = False  # a published list chose these images: ImageNet's 1% and 10%
    passed_over: Mapping[str, tuple[int, str]] = field(default_factory=dict)  # reason -> how many files, e.g. which
    repaired: Mapping[str, int] = field(default_factory=dict)  # corrections made to the labels, and how often
    left_out: tuple[str, ...] = ()  # sentences on images that were left out: such a split is not the published one
    validation: np.ndarray | None = None  # (N,) bool: the published validation part of a training split, if it has one

    def __len__(self) -> int:
        return len(self.source)

    def part(self, rows: np.ndarray) -> ImageSplit:
        """Return a split of the (N,) rows in the given order; `passed_over` still describes the whole split."""
        labels = None if self.labels is None else self.labels[rows]
        validation = None if self.validation is None else self.validation[rows]
        source = Subset(self.source, rows)
        return replace(self, source=source, labels=labels, official_part=False, validation=validation)

    def manifest_sha256(self) -> str:
        """SHA-256 over the sorted (name, size, label) of all items: cheap and independent of the data's folder."""
        return self._manifest

    @functools.cached_property
    def _manifest(self) -> str:
        labels = [-1] * len(self) if self.labels is None else self.labels.tolist()  # of a multi-label row: "[1, 0, -1]"
        rows = sorted(f"{self.source.name(i)}\t{self.source.size(i)}\t{labels[i]}" for i in range(len(self)))
        return hashlib.sha256("\n".join(rows).encode(errors="surrogateescape")).hexdigest()

    def state_sha256(self) -> str:
        """SHA-256 over (name, size, time of last change) of all items in their order, the key of cached features.

        The manifest does not change when another image of the same size replaces one between two runs.
        """
        return state_of(self.source)
