"""Files of float32 rows with their own checksum: NumPy's format, then a mark and a SHA-256.

The hash covers a label (the cache key) and every byte before the mark. It detects files that were cut, changed, permuted or
exchanged for another file. Hashing takes one second for 1.5 GB, less than reading them from a disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import numpy as np

from backbench.errors import BackbenchError, writing

_MARK = b"backbench sha256"
_DIGEST = hashlib.sha256().digest_size
_CHUNK = 1 << 22


class Damaged(ValueError):
    """The file differs from what was written. The text gives the reason without the file's name."""


@contextlib.contextmanager
def new_rows(file: Path, shape: tuple[int, int], label: str) -> Iterator[Callable[[np.ndarray], None]]:
    """Write a file of float32 rows piece by piece; every row once.

    It writes and does not map the file: on a full disk a mapped page kills the process silently.

    Raises:
        BackbenchError: the disk is full or not writable, or something else has the file's path.
    """
    free_place(file)
    done, total = 0, hashlib.sha256(_prefix(label))
    with writing(file):
        out = file.open("wb")

    def write(data: bytes | memoryview) -> None:
        total.update(data)
        with writing(file):
            out.write(data)

    def append(part: np.ndarray) -> None:
        nonlocal done
        write(np.ascontiguousarray(part, np.float32).data.cast("B"))
        done += len(part)

    try:
        write(_header(shape))
        yield append
        assert done == shape[0], "every image counts once"
        with writing(file):
            out.write(_MARK + total.digest())
            out.flush()
            os.fsync(out.fileno())
    finally:
        with contextlib.suppress(OSError):
            out.close()


def check(file: Path, shape: tuple[int, int], label: str) -> None:
    """Read the whole file and compare it with its hash.

    Args:
        shape: number of rows and length of a row.
        label: the label it was written with.

    Raises:
        Damaged: the file is unreadable, of another kind, shape or type, or has other bytes than were written.
    """
    header = _header(shape)
    try:
        with _plain(file).open("rb") as source:
            start = source.read(len(header))
            if start != header:
                raise Damaged(_other_header(start, file, shape))
            length = len(header) + 4 * math.prod(shape)
            size = os.fstat(source.fileno()).st_size
            if size != length + len(_MARK) + _DIGEST:
                raise Damaged("it has no checksum" if size == length else "it is cut short or too long")
            total = hashlib.sha256(_prefix(label) + start)
            _hash(source, length - len(header), total)
            if source.read() != _MARK + total.digest():
                raise Damaged("its checksum does not fit")
    except OSError as error:
        raise Damaged(f"it cannot be read ({error.strerror})") from None


def mapped(file: Path, shape: tuple[int, int]) -> np.ndarray:
    """Return the rows mapped from the file. Writes to them stay in memory."""
    if not math.prod(shape):
        return np.zeros(shape, np.float32)
    return np.memmap(file, np.float32, "c", offset=len(_header(shape)), shape=shape)


def free_place(file: Path) -> None:
    """Remove whatever has the file's path, except devices. Opening a pipe would block; a link would be followed.

    Raises:
        BackbenchError: a folder has the path, or removing fails.
    """
    refuse_folder(file)
    try:
        mode = file.lstat().st_mode
    except OSError:
        return
    if not (stat.S_ISCHR(mode) or stat.S_ISBLK(mode)):
        with writing(file):
            file.unlink(missing_ok=True)


def refuse_folder(file: Path) -> None:
    """Raise BackbenchError if the path is a folder."""
    if file.is_dir() and not file.is_symlink():
        raise BackbenchError(f"cannot write {file}: a folder is in the way of a file; move it elsewhere")


def _plain(file: Path) -> Path:
    """Return the path if it is a plain file; a pipe or device is never opened."""
    if not stat.S_ISREG(file.stat().st_mode):
        raise Damaged("it is not a plain file")
    return file


def _hash(source: IO[bytes], count: int, into: hashlib._Hash) -> None:
    while count > 0:
        piece = source.read(min(count, _CHUNK))
        if not piece:
            raise Damaged("it is cut short")
        into.update(piece)
        count -= len(piece)


def _prefix(label: str) -> bytes:
    return label.encode() + b"\0"


def _header(shape: tuple[int, int]) -> bytes:
    fields = {"descr": np.lib.format.dtype_to_descr(np.dtype("<f4")), "fortran_order": False, "shape": shape}
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, fields)
    return out.getvalue()


def _other_header(start: bytes, file: Path, shape: tuple[int, int]) -> str:
    """Return why the first bytes differ from those written."""
    try:
        with file.open("rb") as source:
            np.lib.format.read_magic(source)
            found, fortran, dtype = np.lib.format.read_array_header_1_0(source)
    except (ValueError, SyntaxError, EOFError, OSError):
        return "it is empty" if not start else "it is not an array of features"
    order = ", column by column" if fortran else ""
    return f"it contains {_words(found)} {dtype}{order} instead of {_words(shape)} float32"


def _words(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "one"
