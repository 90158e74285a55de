"""WebDataset: tar files `<split>-000000.tar` with `KEY.jpg` beside `KEY.cls`; read in place, never extracted.

A tar's headers are walked once, and what was found is kept in the cache until the file changes. Classes are the labels of
the training images: numbers from 0, named by `classes.txt` (one a line) where the folder has one, else words.
"""

from __future__ import annotations

import functools
import re
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from backbench.config import digest
from backbench.data.archives import tar_headers
from backbench.data.decode import EXTENSIONS, CorruptImage, Reduction, decode_rgb, open_rgb
from backbench.data.listing import OTHER
from backbench.data.shards import shards, test_split
from backbench.data.splits import ImageSplit
from backbench.errors import DataError
from backbench.files import Status, Unreadable, opened, read_bytes, read_lines, status_of
from backbench.files.atomic import atomic_write, make_folder
from backbench.files.folders import cache_folder
from backbench.printable import printable, some

LABELS = frozenset({"class"})
_LONGEST_LABEL = 200  # bytes of a .cls file
_LARGEST_IMAGE = 2**30
_MEGABYTE = 2**20


def recognise(root: Path) -> tuple[str, str] | None:
    """Return `train` and the first of `test`, `validation`, `valid` and `val` that has tar files."""
    found = shards(root, ".tar")
    test = test_split(found)
    return ("train", test) if "train" in found and test else None


def read(root: Path, split: str, *, dataset: str = "webdataset") -> ImageSplit:
    """List a split.

    Raises:
        DataError: no such split, tar files that are missing or cut short, an image without a label or the reverse, or a
            label that no training image has.
    """
    found = shards(Path(root), ".tar")
    if split not in found:
        there = ", ".join(found) or "none"
        raise DataError(f"{root}: no tar files of split '{split}', such as {split}-000000.tar (splits: {there})")
    indexes = [index_of(path) for path in found[split]]
    words = [word for index in indexes for word in index.labels]
    train = words if split == "train" else [w for path in found.get("train", []) for w in index_of(path).labels]
    classes, number = _classes(Path(root), train or words)
    if unknown := sorted(set(words) - set(number)):
        raise DataError(
            f"{root}: labels of '{split}' that no training image has: {some([printable(w) for w in unknown])}"
        )
    source = _Members(Path(root), tuple(found[split]), tuple(indexes))
    others = sum(index.others for index in indexes)
    passed_over = {OTHER: (others, next(index.other for index in indexes if index.others))} if others else {}
    labels = np.asarray([number[word] for word in words], np.int64)
    return ImageSplit(dataset, split, source, labels, classes, passed_over=passed_over)


@dataclass(frozen=True)
class Index:
    """Positions of the images in a tar file, in their order."""

    listed: Status  # of the tar file
    names: tuple[str, ...]
    labels: tuple[str, ...]
    starts: np.ndarray  # (N,) int64 byte offsets in the tar file
    sizes: np.ndarray  # (N,) int64
    others: int  # members that are neither image nor label
    other: str


@dataclass(frozen=True)
class _Members:
    """Images in tar files."""

    root: Path
    files: tuple[Path, ...]
    indexes: tuple[Index, ...]

    def __len__(self) -> int:
        return int(self._ends[-1])

    def name(self, index: int) -> str:
        """`train-000000.tar/KEY.jpg`."""
        file, row = self._place(index)
        return f"{self.files[file].relative_to(self.root).as_posix()}/{self.indexes[file].names[row]}"

    def size(self, index: int) -> int:
        """Bytes of the image."""
        file, row = self._place(index)
        return int(self.indexes[file].sizes[row])

    def status(self, index: int) -> Status:
        """Its size, and the times of its tar file."""
        file, row = self._place(index)
        return int(self.indexes[file].sizes[row]), *self.indexes[file].listed[1:]

    def stored(self, index: int) -> bytes:
        """The image file's bytes, not decoded. Raises CorruptImage, and Changed."""
        file, row = self._place(index)
        part = self.indexes[file]
        size = int(part.sizes[row])
        if not 0 < size <= _LARGEST_IMAGE:
            raise CorruptImage(f"{self.name(index)}: {size} bytes cannot be an image")
        return read_bytes(self.files[file], limit=size, start=int(part.starts[row]), listed=part.listed)

    def pil(self, index: int) -> Image.Image:
        """Pillow image in mode RGB. Raises CorruptImage."""
        return open_rgb(self.stored(index), self.name(index))

    def rgb(self, index: int, reduction: Reduction | None = None) -> np.ndarray:
        """(H, W, 3) uint8. Raises CorruptImage."""
        return decode_rgb(self.stored(index), self.name(index), reduction)

    def _place(self, index: int) -> tuple[int, int]:
        file = int(np.searchsorted(self._ends, index, side="right"))
        return file, index - (int(self._ends[file - 1]) if file else 0)

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        """(files,) images up to the end of each file."""
        return np.cumsum([len(index.names) for index in self.indexes])


# ---------------------------------------------------------------- indexes


def index_of(path: Path) -> Index:
    """Return a tar file's index, from the cache while the file is unchanged. Raises DataError."""
    listed = status_of(path)
    kept = cache_folder() / "tar" / f"{digest([str(path.resolve()), *listed])[:32]}.npz"
    try:
        with np.load(kept, allow_pickle=False) as stored:
            others = int(stored["others"])
            names, labels = (tuple(stored[key].tobytes().decode().split("\n")[:-1]) for key in ("names", "labels"))
            return Index(listed, names, labels, stored["starts"], stored["sizes"], others, str(stored["other"]))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        index = _walked(path, listed)
    make_folder(kept.parent)
    arrays: dict[str, Any] = {
        "names": np.frombuffer("".join(f"{name}\n" for name in index.names).encode(), np.uint8),
        "labels": np.frombuffer("".join(f"{label}\n" for label in index.labels).encode(), np.uint8),
        "starts": index.starts,
        "sizes": index.sizes,
        "others": np.asarray(index.others),
        "other": np.asarray(index.other),
    }
    atomic_write(kept, lambda file: np.savez(file, **arrays))
    return index


def _walked(path: Path, listed: Status) -> Index:
    """Read a tar file's headers and labels. Raises DataError."""
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, str] = {}
    others: list[str] = []
    try:
        with opened(path, listed=listed) as file:
            for tar, member in tar_headers(file):
                if member.isdir():
                    continue
                key, ending = _key(member.name)
                if not member.isreg() or (ending not in EXTENSIONS and ending != ".cls"):
                    others.append(member.name)
                    continue
                _check(path, member, listed[0], key in (labels if ending == ".cls" else images))
                if ending == ".cls":
                    content = tar.extractfile(member)
                    labels[key] = (content.read(_LONGEST_LABEL + 1) if content else b"").decode().strip()
                else:
                    images[key] = (member.name, member.offset_data, member.size)
            if any(any(chunk) for chunk in iter(functools.partial(file.read, _MEGABYTE), b"")):
                raise EOFError("something follows its end marker; were tar files joined? Give them one by one")
    except Unreadable:
        raise
    except (tarfile.TarError, EOFError, OSError, ValueError, OverflowError) as error:
        reason = printable(" ".join(str(error).split()), 200)
        raise DataError(
            f"{path}: not a whole tar file that is not compressed ({reason}); fetch or make it again"
        ) from None
    alone = sorted(images.keys() ^ labels.keys())
    if alone or not images:
        why = f"images or labels alone: {some([printable(key) for key in alone])}" if alone else "no image in it"
        raise DataError(f"{path}: {why}; expected KEY.jpg (or .png, ...) beside KEY.cls")
    odd = [key for key, label in labels.items() if not label or len(label) > _LONGEST_LABEL or not label.isprintable()]
    if odd:
        raise DataError(f"{path}: labels that are neither word nor number: {some([printable(key) for key in odd])}")
    names, starts, sizes = zip(*images.values(), strict=True)
    found = tuple(labels[key] for key in images)
    places = (np.asarray(starts, np.int64), np.asarray(sizes, np.int64))
    return Index(listed, names, found, *places, len(others), others[0] if others else "")


def _key(name: str) -> tuple[str, str]:
    """Split a name into key and extension as WebDataset does: at the first dot of the file name."""
    folder, _, file = name.rpartition("/")
    key, dot, ending = file.partition(".")
    return f"{folder}/{key}", f".{ending.lower()}" if dot else ""


def _check(path: Path, member: tarfile.TarInfo, end: int, is_second: bool) -> None:
    if is_second or not member.name.isprintable():
        what = "is there twice" if is_second else "has a name that cannot be printed"
        raise DataError(f"{path}: '{printable(member.name)}' {what}; make the file again")
    if member.offset_data + member.size > end:
        raise DataError(f"{path}: ends within '{printable(member.name)}', cut short; fetch it again")


def _classes(root: Path, labels: list[str]) -> tuple[tuple[str, ...], dict[str, int]]:
    """Return the class names, and the number of each label."""
    file = root / "classes.txt"
    words = set(labels)
    if not all(re.fullmatch(r"[0-9]{1,9}", word) for word in words):
        names = tuple(sorted(words))
        return names, {name: label for label, name in enumerate(names)}
    numbers = {word: int(word) for word in words}
    if file.is_file():
        names = tuple(line for line in read_lines(file) if line)
        if len(set(names)) != len(names) or max(numbers.values()) >= len(names):
            raise DataError(f"{file}: names {len(set(names))} classes; the labels go up to {max(numbers.values())}")
        return names, {str(label): label for label in range(len(names))} | numbers
    values = set(numbers.values())
    if gaps := max(values) + 1 - len(values):  # only some: a label of 10^8 would leave as many gaps
        first = next(n for n in range(len(values) + 1) if n not in values)
        raise DataError(f"{root}: labels without a training image: {gaps}, e.g. {first}; labels count from 0; is the data set "
                        "whole? If it is, name all classes in classes.txt")  # fmt: skip
    return tuple(str(label) for label in sorted(values)), numbers
