"""STL-10's binary files: `<root>/stl10_binary/{train,test,unlabeled}_X.bin`, labels in `*_y.bin`.

`fold0` to `fold9` are the ten sets of 1,000 training images that the data set's own protocol trains on in turn.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from backbench.data.decode import Reduction
from backbench.data.splits import ImageSplit
from backbench.errors import DataError
from backbench.files import Status, read_bytes, read_lines, status_of

_BYTES = 3 * 96 * 96


@dataclass(frozen=True)
class _Part:
    """A binary file of whole pictures, each (3, 96, 96) uint8, columns first."""

    file: Path
    listed: Status

    def __len__(self) -> int:
        return self.listed[0] // _BYTES

    def pixels(self, index: int) -> np.ndarray:
        """(96, 96, 3) uint8; read, not mapped: a mapped file that is cut short kills the process silently."""
        data = read_bytes(self.file, limit=_BYTES, start=index * _BYTES, listed=self.listed)
        planes = np.frombuffer(data, np.uint8).reshape(3, 96, 96)
        return np.ascontiguousarray(planes.transpose(2, 1, 0))  # stored column by column


@dataclass(frozen=True)
class _Pixels:
    parts: tuple[_Part, ...]
    split: str
    rows: np.ndarray | None = None  # (N,) which images of the parts; all of them unless given

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts) if self.rows is None else len(self.rows)

    def name(self, index: int) -> str:
        return f"{self.split}/{self._row(index)}"

    def size(self, index: int) -> int:
        return _BYTES

    def status(self, index: int) -> Status:
        part, _ = self._place(index)
        return _BYTES, *part.listed[1:]

    def stored(self, index: int) -> bytes:
        return self.rgb(index).tobytes()

    def rgb(self, index: int, reduction: Reduction | None = None) -> np.ndarray:
        part, row = self._place(index)
        pixels = part.pixels(row)
        if reduction:
            reduction(*pixels.shape[:2])  # learns the size; the pixels are not compressed
        return pixels

    def pil(self, index: int) -> Image.Image:
        return Image.fromarray(self.rgb(index))

    def _place(self, index: int) -> tuple[_Part, int]:
        row = self._row(index)
        for part in self.parts:
            if row < len(part):
                return part, row
            row -= len(part)
        raise IndexError(index)

    def _row(self, index: int) -> int:
        return index if self.rows is None else int(self.rows[index])


LABELS = frozenset({"class"})


def recognise(root: Path) -> tuple[str, str] | None:
    """Return `train` and `test` when the binary files exist."""
    whole = all((Path(root) / "stl10_binary" / f"{split}_X.bin").is_file() for split in ("train", "test"))
    return ("train", "test") if whole else None


def read(root: Path, split: str, *, dataset: str = "stl10") -> ImageSplit:
    """`train`, `test`, `unlabeled`, `fold0` to `fold9`, or `train+unlabeled` (what STL-10's own protocol pretrains on).

    Labels are -1 where an image of the latter has none, and None for `unlabeled` alone.

    Raises:
        DataError: a file is missing or its size is not a whole number of images; a fold that is not one.
    """
    if split.startswith("fold"):
        part, labels = _part(Path(root), "train"), _labels(Path(root), "train")
        rows = _fold(Path(root), split, len(part))
        return ImageSplit(dataset, split, _Pixels((part,), "train", rows), labels[rows], _classes(Path(root)))
    if split == "train+unlabeled":
        parts = tuple(_part(Path(root), part) for part in ("train", "unlabeled"))
        labels = np.full(sum(map(len, parts)), -1, np.int64)
        labels[: len(parts[0])] = _labels(Path(root), "train")
        return ImageSplit(dataset, split, _Pixels(parts, split), labels, _classes(Path(root)))
    labelled = None if split == "unlabeled" else _labels(Path(root), split)
    return ImageSplit(dataset, split, _Pixels((_part(Path(root), split),), split), labelled, _classes(Path(root)))


def _labels(root: Path, split: str) -> np.ndarray:
    """Return labels (N,) int64, counted from 0."""
    part, file = _part(root, split), _binary(root) / f"{split}_y.bin"
    if not file.exists() or file.stat().st_size != len(part):
        raise DataError(f"{file}: expected {len(part)} labels, one byte each")
    labels = np.frombuffer(read_bytes(file, limit=len(part)), np.uint8).astype(np.int64) - 1
    if labels.min() < 0 or labels.max() > 9:
        raise DataError(f"{file}: labels outside 1 to 10")
    return labels


def _binary(root: Path) -> Path:
    return root / "stl10_binary" if (root / "stl10_binary").is_dir() else root


def _part(root: Path, split: str) -> _Part:
    file = _binary(root) / f"{split}_X.bin"
    if not file.exists():
        raise DataError(f"{file}: no such file")
    part = _Part(file, status_of(file))
    size = part.listed[0]
    if size == 0 or size % _BYTES:
        raise DataError(f"{file}: {size} bytes is not a whole number of 96x96 images ({_BYTES} bytes each): cut short?")
    return part


def _fold(root: Path, split: str, images: int) -> np.ndarray:
    """Return the rows (N,) int64 in one line of `fold_indices.txt`, counted from 0."""
    file = _binary(root) / "fold_indices.txt"
    if not file.exists():
        raise DataError(f"{file}: no such file; it comes with the binary files")
    lines = [line for line in read_lines(file) if line]
    number = split.removeprefix("fold")
    if not number.isdecimal() or int(number) >= len(lines):
        raise DataError(f"{file}: no {split} in it; it holds fold0 to fold{len(lines) - 1}")
    try:
        rows = np.array([int(word) for word in lines[int(number)].split()], np.int64)
    except (ValueError, OverflowError) as error:
        raise DataError(f"{file}:{int(number) + 1}: not a list of numbers ({error})") from None
    if not len(rows) or rows.min() < 0 or rows.max() >= images:
        raise DataError(f"{file}:{int(number) + 1}: row numbers outside 0 to {images - 1}")
    if len(np.unique(rows)) != len(rows):
        raise DataError(f"{file}:{int(number) + 1}: row numbers that are there twice")
    return rows


def _classes(root: Path) -> tuple[str, ...]:
    file = _binary(root) / "class_names.txt"
    if not file.exists():
        return tuple(str(i) for i in range(1, 11))
    names = tuple(line for line in read_lines(file) if line)
    if len(names) != 10 or len(set(names)) != 10:
        raise DataError(f"{file}: expected the names of 10 classes, one a line; found {len(set(names))}")
    return names
