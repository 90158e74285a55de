"""Data sets by name: which layout a name has, where it lies below the data root, how many images are published.

One module per layout (`imagefolder`, `voc`, ...), each with `read(root, split) -> ImageSplit`. Paths never enter an
identity; the manifest hash over (name, size, label) does.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from core import files
from core.errors import ConfigError, DataError, nearest
from core.files import Status, status_of
from core.images import decode_rgb, open_rgb, read_bytes
from core.printable import printable


class ImageSource(Protocol):
    """Where the pixels of a split come from."""

    def __len__(self) -> int: ...
    def name(self, index: int) -> str: ...
    def size(self, index: int) -> int: ...
    def status(self, index: int) -> Status: ...
    def stored(self, index: int) -> bytes: ...
    def pil(self, index: int) -> Image.Image: ...
    def rgb(self, index: int) -> np.ndarray: ...


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
        """Bytes on disk. Raises DataError when the file is gone."""
        return self.status(index)[0]

    def status(self, index: int) -> Status:
        """Size and times, noted when first asked for: from then on a file that changed is an error when it is read."""
        if self._listed[index, 0] < 0:
            self._listed[index] = status_of(self.root / self.paths[index])
        size, contents, entry = self._listed[index].tolist()
        return size, contents, entry

    def stored(self, index: int) -> bytes:
        """The file's bytes, not decoded. Raises CorruptImage, and Changed."""
        listed = self._listed[index]
        return read_bytes(self.root / self.paths[index], None if listed[0] < 0 else listed.tolist())

    def pil(self, index: int) -> Image.Image:
        """Pillow image in mode RGB, for evaluation. Raises CorruptImage, and Changed."""
        return open_rgb(self.stored(index), str(self.root / self.paths[index]))

    def rgb(self, index: int) -> np.ndarray:
        """(H, W, 3) uint8, decoded fast, for pretraining. Raises CorruptImage, and Changed."""
        return decode_rgb(self.stored(index), str(self.root / self.paths[index]))


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

    def rgb(self, index: int) -> np.ndarray:
        """(H, W, 3) uint8. Raises CorruptImage."""
        return self.source.rgb(int(self.chosen[index]))


@dataclass(frozen=True)
class ImageSplit:
    """One split of a labelled (or unlabelled) image data set."""

    dataset: str
    split: str
    source: ImageSource
    # (N,) int64, -1 of an image without one; or (N, classes) int8 for multi-label: 1 present, 0 present as difficult
    # objects only, -1 absent
    labels: np.ndarray | None
    classes: tuple[str, ...]
    official_part: bool = False  # a published list's part of the published images: ImageNet's 1% and 10%
    passed_over: Mapping[str, tuple[int, str]] = field(default_factory=dict)  # reason -> how many files, e.g. which
    _manifest: list[str] = field(default_factory=list, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.source)

    def part(self, rows: np.ndarray) -> ImageSplit:
        """Some of its images, (N,) rows in the given order; what was passed over in the whole split stays said."""
        labels = None if self.labels is None else self.labels[rows]
        return replace(self, source=Subset(self.source, rows), labels=labels, official_part=False, _manifest=[])

    def manifest_sha256(self) -> str:
        """SHA-256 over the sorted (name, size, label) of all items: cheap, and blind to where the data lie."""
        if not self._manifest:
            labels = [-1] * len(self) if self.labels is None else self.labels.tolist()  # a row of many: "[1, 0, -1]"
            rows = sorted(f"{self.source.name(i)}\t{self.source.size(i)}\t{labels[i]}" for i in range(len(self)))
            self._manifest.append(hashlib.sha256("\n".join(rows).encode(errors="surrogateescape")).hexdigest())
        return self._manifest[0]

    def state_sha256(self) -> str:
        """SHA-256 over (name, size, time of last change) of all items in their order: what is kept of their pixels needs it.

        The manifest cannot tell an image from another one of the same size that took its place between two runs.
        """
        state = hashlib.sha256()
        for index in range(len(self)):
            size, contents, _ = self.source.status(index)
            state.update(f"{self.source.name(index)}\t{size}\t{contents}\n".encode(errors="surrogateescape"))
        return state.hexdigest()


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set by its name."""

    layout: str
    train: str
    test: str
    counts: Mapping[str, int]  # published numbers of images and classes; `fold` is that of fold0, fold1, ...
    source: str


KNOWN: dict[str, DatasetInfo] = {
    "imagenet": DatasetInfo(
        "imagefolder",
        "train",
        "val",
        {"train": 1_281_167, "val": 50_000, "classes": 1000},
        "ILSVRC 2012, https://image-net.org",
    ),
    "imagenet100": DatasetInfo(
        "imagefolder",
        "train",
        "val",
        {"train": 126_689, "val": 5_000, "classes": 100},
        "100 classes of ILSVRC 2012: CMC's list",
    ),
    "stl10": DatasetInfo(
        "stl10",
        "train",
        "test",
        {"train": 5_000, "test": 8_000, "unlabeled": 100_000, "fold": 1_000, "classes": 10},
        "STL-10 binary files, https://cs.stanford.edu/~acoates/stl10",
    ),
    "voc": DatasetInfo(
        "voc",
        "trainval",
        "test",
        {"trainval": 5_011, "test": 4_952, "trainval07+12": 16_551, "classes": 20},  # 07+12: detection's training set
        "PASCAL VOC 2007 trainval and test, http://host.robots.ox.ac.uk/pascal/VOC/voc2007",
    ),
    "places205": DatasetInfo(
        "places205",
        "train",
        "val",
        {"train": 2_448_873, "val": 20_500, "classes": 205},
        "Places205, images resized to 256x256 and trainvalsplit_places205, http://places.csail.mit.edu",
    ),
    "inat18": DatasetInfo(
        "inat18",
        "train",
        "val",
        {"train": 437_513, "val": 24_426, "classes": 8_142},
        "iNaturalist 2018 train_val, https://github.com/visipedia/inat_comp/tree/master/2018",
    ),
    "coco": DatasetInfo(
        "coco",
        "train2017",
        "val2017",
        {"train2017": 118_287, "val2017": 5_000, "classes": 80},
        "COCO 2017 images and annotations, https://cocodataset.org",
    ),
}


@dataclass(frozen=True)
class DataPlaces:
    """Where data sets lie: `<root>/<name>` unless given by name."""

    root: Path | None = None
    named: Mapping[str, Path] = field(default_factory=dict)

    def of(self, name: str) -> Path | None:
        """The folder of a data set, or None when nothing was said of it."""
        if name in self.named:
            return Path(self.named[name])
        return Path(self.root) / name if self.root is not None else None


def info(name: str) -> DatasetInfo:
    """What is known of a data set; DataError with the nearest name otherwise."""
    if name not in KNOWN:
        raise DataError(f"unknown data set '{name}'{nearest(name, KNOWN)}")
    return KNOWN[name]


def missing(name: str, places: DataPlaces) -> str | None:
    """Why the data set cannot be read, or None."""
    root = places.of(name)
    if root is None:
        return f"no place given for '{name}': use --data-root DIR or --data {name}=DIR"
    try:
        there = root.is_dir()
    except (OSError, ValueError) as error:  # a name that is too long, or holds a zero byte
        return f"no folder {root}: {error}"
    return None if there else f"no folder {root} ({info(name).source})"


def load(name: str, split: str, places: DataPlaces) -> ImageSplit:
    """The split of a data set; `train` and `test` are the ones its protocols use, any other is the layout's own name.

    Raises:
        DataError: absent, half there or empty.
    """
    known = info(name)
    reason = missing(name, places)
    if reason:
        raise DataError(reason)
    layout = importlib.import_module(f"core.datasets.{known.layout}")
    own_name = {"train": known.train, "test": known.test}.get(split, split)
    return layout.read(places.of(name), own_name, dataset=name)


def is_published(name: str, splits: Mapping[str, ImageSplit]) -> bool:
    """Whether the splits have exactly the published numbers of images and classes; a part has not, but an official one."""
    counts = info(name).counts

    def whole(split: ImageSplit) -> bool:
        own = counts.get(split.split, counts.get(split.split.rstrip("0123456789")))
        cut = isinstance(split.source, Subset) or getattr(split, "left_out", ())  # annotated splits say what they lack
        return not cut and len(split) == own

    return all(
        (split.official_part or whole(split)) and len(split.classes) == counts["classes"] for split in splits.values()
    )


def some(names: Sequence[object], *, first: int = 3) -> str:
    """`5, e.g. a, b, c`: how many, and the first ones."""
    return f"{len(names)}, e.g. {', '.join(printable(name) for name in names[:first])}"


def read_json(file: Path, keys: Collection[str]) -> dict[str, list[dict[str, Any]]]:
    """An annotation file in COCO's format: lists of records under `keys`.

    Raises:
        DataError: missing, cut short, not JSON or without one of the lists.
    """
    try:
        record = files.read_json(Path(file))
    except files.Unreadable as error:
        raise DataError(f"{error}; is the data set whole?") from None
    lacking = [key for key in keys if not isinstance(record, dict) or not isinstance(record.get(key), list)]
    if lacking:
        raise DataError(f"{file}: no list '{lacking[0]}' in it; expected an annotation file in COCO's format")
    return record


def parse_places(pairs: Sequence[str]) -> dict[str, Path]:
    """`name=PATH` pairs of `--data`. Raises ConfigError, and DataError for unknown names."""
    named = {}
    for pair in pairs:
        name, equals, path = pair.partition("=")
        if not equals or not path:
            raise ConfigError(f"--data {pair}: expected name=PATH")
        info(name)
        if name in named:
            raise ConfigError(f"--data {name}: given twice ({named[name]} and {path}); give one place")
        named[name] = files.expanded(path)
    return named
