"""CIFAR-10 and CIFAR-100, the Python version: `<root>/cifar-10-batches-py` or `<root>/cifar-100-python`.

Its files are pickles of NumPy arrays. Only these are rebuilt; a pickle that asks for anything else is refused.
"""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from backbench.data.decode import Reduction
from backbench.data.splits import ImageSplit
from backbench.errors import DataError
from backbench.files import Status, Unreadable, read_bytes, status_of
from backbench.printable import printable

LABELS = frozenset({"class"})
_LIMIT = 2**28  # bytes of a file; the largest published one has 155 million


class _Version(NamedTuple):
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    meta: str
    names: str  # key of the classes' names
    labels: str


_VERSIONS = (
    _Version("cifar-10-batches-py", tuple(f"data_batch_{i}" for i in range(1, 6)), ("test_batch",), "batches.meta",
             "label_names", "labels"),
    _Version("cifar-100-python", ("train",), ("test",), "meta", "fine_label_names", "fine_labels"),
)  # fmt: skip


@dataclass(frozen=True)
class _Pixels:
    """Pictures in memory."""

    planes: np.ndarray  # (N, 3, 32, 32) uint8
    names: tuple[str, ...]  # <file>/<row>
    statuses: tuple[Status, ...]  # of each picture's file

    def __len__(self) -> int:
        return len(self.planes)

    def name(self, index: int) -> str:
        return self.names[index]

    def size(self, index: int) -> int:
        return self.planes[index].nbytes

    def status(self, index: int) -> Status:
        return self.statuses[index]

    def stored(self, index: int) -> bytes:
        return self.planes[index].tobytes()

    def pil(self, index: int) -> Image.Image:
        return Image.fromarray(self.rgb(index))

    def rgb(self, index: int, reduction: Reduction | None = None) -> np.ndarray:
        return np.ascontiguousarray(self.planes[index].transpose(1, 2, 0))


def recognise(root: Path) -> tuple[str, str] | None:
    """Return `train` and `test` when all files of one of the two versions exist."""
    found = _version(Path(root))
    return ("train", "test") if found and all((found[1] / name).is_file() for name in found[0].train) else None


def read(root: Path, split: str, *, dataset: str = "cifar10") -> ImageSplit:
    """Read `train` or `test` into memory, in the order of the files; CIFAR-100's labels are the fine ones.

    Raises:
        DataError: no version is there, an unknown split, or a file is damaged or not the published kind.
    """
    found = _version(Path(root))
    if found is None or split not in ("train", "test"):
        have = "no folder cifar-10-batches-py or cifar-100-python in it; unpack the Python version of the archive there"
        raise DataError(f"{root}: {have if found is None else f'no split {split!r}; CIFAR has train and test'}")
    version, folder = found
    classes = _unpickled(folder / version.meta).get(version.names)
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise DataError(f"{folder / version.meta}: has no list '{version.names}'; unpack the archive again")
    files = version.train if split == "train" else version.test
    parts = [_part(folder / name, version.labels, len(classes)) for name in files]
    names = tuple(f"{name}/{row}" for name, (planes, _) in zip(files, parts, strict=True) for row in range(len(planes)))
    statuses = tuple(status for name, (planes, _) in zip(files, parts, strict=True)
                     for status in [status_of(folder / name)] * len(planes))  # fmt: skip
    pixels = _Pixels(np.concatenate([planes for planes, _ in parts]), names, statuses)
    return ImageSplit(dataset, split, pixels, np.concatenate([labels for _, labels in parts]), tuple(classes))


def _version(root: Path) -> tuple[_Version, Path] | None:
    for version in _VERSIONS:
        for folder in (root / version.folder, root):
            if (folder / version.meta).is_file():
                return version, folder
    return None


def _part(file: Path, key: str, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return pictures (N, 3, 32, 32) uint8 and labels (N,) int64 of a file."""
    found = _unpickled(file)
    data, labels = found.get("data"), found.get(key)
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
        raise DataError(f"{file}: has no pictures of 3 x 32 x 32 bytes; unpack the archive again")
    if not isinstance(labels, list) or len(labels) != len(data) or not all(isinstance(each, int) for each in labels):
        raise DataError(f"{file}: has no list '{key}' with a number for each of its {len(data)} pictures")
    if labels and not 0 <= min(labels) <= max(labels) < classes:
        raise DataError(f"{file}: labels outside 0 to {classes - 1}; unpack the archive again")
    return data.reshape(-1, 3, 32, 32), np.array(labels, np.int64)


def _unpickled(file: Path) -> dict[str, Any]:
    try:
        found = _Arrays(io.BytesIO(read_bytes(file, limit=_LIMIT)), encoding="latin1").load()
    except Unreadable as error:
        raise DataError(f"{error}; is the data set whole?") from None
    except Exception as error:  # a damaged pickle may raise anything
        raise DataError(f"{file}: cannot be read ({printable(error)}); unpack the archive again") from None
    if not isinstance(found, dict):
        raise DataError(f"{file}: is not one of CIFAR's files; unpack the archive again")
    return found


class _Arrays(pickle.Unpickler):
    """Rebuilds NumPy arrays and plain values."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")):
            return _reconstruct
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):  # bytes, as Python 3 writes them in old protocols
            return lambda text, encoding: text.encode("latin1")
        raise pickle.UnpicklingError(f"it asks for {printable(f'{module}.{name}', 80)}")


def _reconstruct(kind: type, shape: tuple[int, ...], code: bytes) -> np.ndarray:
    """Return the empty array that a pickle fills, as `numpy.core.multiarray._reconstruct` does for arrays."""
    if kind is not np.ndarray or shape != (0,):
        raise pickle.UnpicklingError("it asks for an array of another kind")
    return np.ndarray.__new__(np.ndarray, shape, np.uint8)
