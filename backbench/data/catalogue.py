"""Data sets by name: files `configs/data/<name>.yaml`, plug-ins' files, and folders given to this run by `--data`."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Annotated, Literal

from pydantic import Field, field_validator

from backbench import files, plugins
from backbench.config import Config, build, read_mapping
from backbench.data import layouts
from backbench.data.splits import ImageSplit, Split, Subset
from backbench.errors import ConfigError, DataError, nearest
from backbench.files.folders import configs_folder
from backbench.printable import printable
from backbench.progress import say


class Archive(Config):
    """A published file that `python -m backbench.data prepare` unpacks."""

    file: str
    md5: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")] | None = None  # stated by its publisher or a known tool
    url: Annotated[str, Field(pattern=r"^https?://\S+$")] | None = None


class DatasetInfo(Config):
    """Description of a data set, from `configs/data/<name>.yaml`."""

    title: str
    layout: str
    train: str | None  # the splits that protocols use, as the layout names them; none: a test set, which makes no cells
    test: str
    # Published numbers of images and classes; `fold` counts each of fold0, fold1, ... Empty for a user's own data.
    counts: Mapping[str, Annotated[int, Field(gt=0)]] = Field(default_factory=dict)
    object_classes: Annotated[int, Field(gt=0)] | None = None  # of single objects, where not `classes`
    metric: Literal["top1", "mean_per_class", "mAP", "AP", "mIoU"] = "top1"
    source: str
    licence: str = "not stated"
    archives: tuple[Archive, ...] = ()

    @field_validator("counts")
    @classmethod
    def _complete(cls, counts: Mapping[str, int]) -> Mapping[str, int]:
        if counts and "classes" not in counts:
            raise ValueError("states numbers of images and not the number of 'classes'")
        return counts

    def class_counts(self) -> set[int]:
        """Return the published numbers of classes: of images or masks, and of single objects."""
        return {n for n in (self.counts.get("classes"), self.object_classes) if n is not None}


# Data sets of this process without a description file: the user's folders, named by `--data`.
OWN: dict[str, DatasetInfo] = {}

_shared: dict[tuple[str, Path | None, str], ImageSplit] | None = None  # splits read within `reading_once`


def described() -> plugins.Parts[DatasetInfo]:
    """Return every data set that has a description file, by name."""
    return plugins.read_files("data", configs_folder() / "data", _read)


def known() -> dict[str, DatasetInfo]:
    """Return every data set: those with a description file, then those of this run's `--data`."""
    return {**described().found, **OWN}


def _read(file: Path) -> DatasetInfo:
    return build(DatasetInfo, read_mapping(file), where=str(file))


@dataclass(frozen=True)
class DataPlaces:
    """Folders of data sets: `<root>/<name>` unless given by name."""

    root: Path | None = None
    named: Mapping[str, Path] = field(default_factory=dict)

    def of(self, name: str) -> Path | None:
        """Return the folder of a data set, or None when none was given."""
        if name in self.named:
            return Path(self.named[name])
        return Path(self.root) / name if self.root is not None else None


def info(name: str) -> DatasetInfo:
    """Return the description of a data set. Raises DataError with the nearest name, or with the fault in its file."""
    if name in OWN:
        return OWN[name]
    parts = described()
    if name in parts.broken:
        raise DataError(parts.broken[name])
    if name not in parts.found:
        raise DataError(f"unknown data set '{printable(name)}'{nearest(name, known())}")
    return parts.found[name]


def layout_of(name: str) -> ModuleType:
    """Return the module that reads a data set. Raises ConfigError: unknown layout, or a broken plug-in."""
    return layouts.get(info(name).layout)


def missing(name: str, places: DataPlaces) -> str | None:
    """Return the reason why the data set cannot be read, or None."""
    root = places.of(name)
    if root is None:
        return f"no place given for '{name}': use --data-root DIR or --data {name}=DIR"
    try:
        there = root.is_dir()
    except (OSError, ValueError) as error:
        return f"no folder {root}: {error}"
    return None if there else f"no folder {root} ({info(name).source})"


def load(name: str, split: str, places: DataPlaces) -> ImageSplit:
    """Read a split of a data set. `train` and `test` are the splits its protocols use; other names are the layout's.

    Raises:
        DataError: absent, incomplete or empty.
    """
    what = info(name)
    reason = missing(name, places)
    if reason:
        raise DataError(reason)
    own_name = {"train": what.train, "test": what.test}.get(split, split)
    if own_name is None:
        raise DataError(f"'{name}' is a test set: it has no split to learn from")
    key = name, places.of(name), own_name
    if _shared is not None and key in _shared:
        return _shared[key]
    if _shared is not None:
        say(f"listing the images of {name}, {own_name}: {places.of(name)}")
    found: ImageSplit = layout_of(name).read(places.of(name), own_name, dataset=name)
    if _shared is not None:
        _shared[key] = found
    return found


@contextlib.contextmanager
def reading_once() -> Iterator[None]:
    """List the files of each split only once within the block, with a message when a listing begins."""
    global _shared
    _shared = {}
    try:
        yield
    finally:
        _shared = None


def is_published(name: str, splits: Mapping[str, Split]) -> bool:
    """Whether the splits have exactly the published numbers of images and classes, or are an official part of them."""
    if not info(name).counts:
        return False

    def published(split: Split) -> DatasetInfo:
        own = split.dataset != name and split.dataset in known()  # a test set of its own beside the data set
        return info(split.dataset if own else name)

    def whole(split: Split) -> bool:
        counts = published(split).counts
        own = counts.get(split.split, counts.get(split.split.rstrip("0123456789")))
        cut = isinstance(split.source, Subset) or split.left_out
        return not cut and len(split) == own

    return all(
        (split.official_part or whole(split)) and len(split.classes) in published(split).class_counts()
        for split in splits.values()
    )


def parse_places(pairs: Sequence[str]) -> dict[str, Path]:
    """Parse `name=PATH` pairs of `--data`; a name without a description file becomes a data set of this process.

    Its layout is recognised, or given before the path: `flowers=imagefolder:DIR`.

    Raises:
        ConfigError: not of this form, or a name is given twice.
        DataError: the folder of a new name is absent or has no known layout.
    """
    named: dict[str, Path] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not text:
            raise ConfigError(f"--data {printable(pair)}: expected name=PATH")
        layout, path = _split_layout(text)
        if name in named:
            raise ConfigError(f"--data {name}: given twice ({named[name]} and {path}); give one place")
        named[name] = files.expanded(path)
        if name in described().found or name in described().broken:
            own = info(name)
            if layout not in (None, own.layout):
                raise ConfigError(
                    f"--data {printable(pair)}: '{name}' is of layout '{own.layout}'; give yours another name"
                )
        else:
            OWN[name] = _describe(name, named[name], layout)
    return named


def spelled(name: str, path: Path) -> str:
    """Return the `--data` pair that gives another process the same data set."""
    return f"{name}={OWN[name].layout}:{path}" if name in OWN else f"{name}={path}"


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # the name is too long or contains a zero byte
        return False


def _split_layout(text: str) -> tuple[str | None, str]:
    """Split `imagefolder:DIR` into layout and folder; the layout is None where none is given."""
    layout, colon, path = text.partition(":")
    return (layout, path) if colon and path and layout in layouts.names() else (None, text)


def _describe(name: str, folder: Path, layout: str | None) -> DatasetInfo:
    """Describe a user's folder. Raises DataError: absent, or of an unknown layout."""
    like = nearest(name, described().found)
    if not re.fullmatch(r"[a-z0-9][a-z0-9_]*", name):
        raise DataError(f"unknown data set '{printable(name)}'{like}; a name of your own has lower-case letters, digits "
                        "and _ only")  # fmt: skip
    if not _is_folder(folder):
        raise DataError(
            f"unknown data set '{name}'{like}; as a data set of your own it needs a folder, and {folder} is not one"
        )
    found = layouts.recognise(folder, layout)
    if found is None:
        wanted = f"layout '{layout}'" if layout else f"any layout ({', '.join(layouts.names())})"
        raise DataError(
            f"unknown data set '{name}'{like}; as a data set of your own: {folder} has no train and test split of {wanted}"
        )
    own_layout, train, test = found
    return DatasetInfo(title=name, layout=own_layout, train=train, test=test, source=f"your own, {folder}")
