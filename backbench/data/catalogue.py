"""Data sets by name: which layout a name has, where it lies below the data root, how many images are published."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from backbench import files
from backbench.data.splits import ImageSplit, Split, Subset
from backbench.errors import ConfigError, DataError, nearest


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
    layout = importlib.import_module(f"backbench.data.layouts.{known.layout}")
    own_name = {"train": known.train, "test": known.test}.get(split, split)
    return layout.read(places.of(name), own_name, dataset=name)


def is_published(name: str, splits: Mapping[str, Split]) -> bool:
    """Whether the splits have exactly the published numbers of images and classes; a part has not, but an official one."""
    counts = info(name).counts

    def whole(split: Split) -> bool:
        own = counts.get(split.split, counts.get(split.split.rstrip("0123456789")))
        cut = isinstance(split.source, Subset) or split.left_out
        return not cut and len(split) == own

    return all(
        (split.official_part or whole(split)) and len(split.classes) == counts["classes"] for split in splits.values()
    )


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
