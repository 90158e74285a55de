"""Open the user's files safely: only regular files, and none that changed since it was listed; decode text by its mark."""

from __future__ import annotations

import argparse
import codecs
import contextlib
import json
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from backbench.errors import REFUSALS, BackbenchError, DataError
from backbench.printable import printable

TEXT_LIMIT = 2 * 2**30  # bytes: twenty times Places205's list of names
JSON_LIMIT = 16 * 2**30  # bytes: the largest annotation files have about 6 GiB
_MARKS = (  # longest first: UTF-32's begins like UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

Status = tuple[int, int, int]  # bytes, time of the last change of the contents and of the entry (nanoseconds)


class Unreadable(DataError):
    """The file is absent, not a regular file, or too large."""


class Changed(DataError):
    """The file changed after it was listed."""


def expanded(path: str) -> Path:
    """Return the path with a leading `~` expanded. Raises DataError for an unknown user."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise DataError(f"{path}: {error}; write the whole path") from None


def folder_option(text: str) -> Path:
    """Parse the command line's `--out DIR`. An empty name, from an unset variable, would mean the working folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError("the folder's name is empty; name one, or . for this folder")
    return Path(text)


def status_of(path: Path) -> Status:
    """A file's size and times. Raises Unreadable."""
    try:
        return _status(os.stat(path))  # noqa: PTH116 (for each image of a data set: Path's own costs twice as much)
    except (OSError, ValueError) as error:
        raise Unreadable(f"{printable(path, 300)}: {why_not(error)}") from None


@contextlib.contextmanager
def opened(
    path: Path | str, error: type[BackbenchError] = Unreadable, *, listed: Sequence[int] | None = None
) -> Iterator[BinaryIO]:
    """Open a regular file of any size for reading; links are followed.

    A pipe, a device, a socket or a folder is never opened: opening one may block or have an effect.

    Args:
        error: the error class for a file that is absent or of another kind.
        listed: the file's `Status` when it was listed, if known.

    Raises:
        error: one sentence that begins with the path and names the reason why it cannot be opened.
        Changed: the file changed after it was listed or while it was read.
    """
    descriptor = _descriptor(path, error)
    try:
        status = os.fstat(descriptor)
        _refuse_special(path, status.st_mode, error)  # it may have become a pipe since
        _check_listed(path, status, listed)
        with open(descriptor, "rb", closefd=False) as file:
            yield file
        _check_listed(path, os.fstat(descriptor), listed)
    finally:
        os.close(descriptor)


def _descriptor(path: Path | str, error: type[BackbenchError]) -> int:
    try:
        _refuse_special(path, os.stat(path).st_mode, error)  # noqa: PTH116 (pathlib has words of its own for odd names)
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
    except (OSError, ValueError) as reason:
        raise error(f"{printable(path, 300)}: {why_not(reason)}") from None


def read_bytes(path: Path, *, limit: int, start: int | None = None, listed: Sequence[int] | None = None) -> bytes:
    """Return the bytes of a regular file.

    Args:
        limit: the largest allowed size in bytes.
        start: read `limit` bytes from this position, whatever the file's size.
        listed: the file's `Status` when it was listed, if known.

    Raises:
        Unreadable: the file is absent, of another kind, or larger than `limit`.
        Changed: the file changed after it was listed.
    """
    with opened(path, listed=listed) as file:
        size = os.fstat(file.fileno()).st_size
        if start is None and size > limit:
            raise Unreadable(f"{path}: cannot be read ({size / 2**20:,.0f} MiB: is it what its name says?)")
        try:
            file.seek(start or 0)
            return file.read(min(limit, size))
        except (OSError, MemoryError) as error:
            raise Unreadable(f"{path}: cannot be read ({_reason(error)})") from None


def why_not(reason: Exception) -> str:
    """Describe the operating system's refusal to open or read a path."""
    if not isinstance(reason, OSError):
        return "no file can have this name"  # a zero byte in it, or characters that the file system cannot write
    return REFUSALS.get(reason.errno or 0) or f"cannot be read ({reason.strerror or reason})"


def _refuse_special(path: Path | str, mode: int, error: type[BackbenchError]) -> None:
    if not stat.S_ISREG(mode):
        raise error(f"{printable(path, 300)}: is {_kind(mode)}; give a file")


def read_text(path: Path) -> str:
    """Read a text file: UTF-8, or UTF-16 and UTF-32 with a byte order mark; the mark is dropped.

    Bytes that are not UTF-8 are decoded as `os.listdir` decodes them, so that lists of such file names match their files.

    Raises:
        DataError: it cannot be read, or is not text.
    """
    data = read_bytes(path, limit=TEXT_LIMIT)
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding, "surrogateescape" if encoding.startswith("utf-8") else "strict")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not readable as text ({error}); save it as UTF-8") from None
    if "\0" in text:
        raise DataError(f"{path}: not a text file (it holds zero bytes); save it as UTF-8")
    return text


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file, stripped of white space; empty lines stay, so that line numbers are right.

    Only line ends separate: `str.splitlines` also splits at a form feed or U+2028, which a file's name may contain.
    """
    text = read_text(path).replace("\r\n", "\n").replace("\r", "\n")
    return [line.strip() for line in text.removesuffix("\n").split("\n")] if text else []


def read_json(path: Path) -> Any:
    """Return the contents of a JSON file.

    Raises:
        DataError: it cannot be read, is not JSON, or exceeds Python's limits on nesting or on digits of whole numbers.
    """
    data = read_bytes(path, limit=JSON_LIMIT)
    try:
        return json.loads(data)
    except (
        ValueError,
        RecursionError,
        MemoryError,
    ) as error:  # also for a number of 5,000 digits and for wrong encodings
        reason = " ".join(str(error).split())[:200] or "it needs more memory than there is"
        raise DataError(f"{path}: not readable as JSON, cut short? ({reason})") from None


def _status(status: os.stat_result) -> Status:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _check_listed(path: Path | str, now: os.stat_result, listed: Sequence[int] | None) -> None:
    if listed is not None and _status(now) != tuple(listed):
        raise Changed(
            f"{path}: changed during the run (its size or its time is not what it was when the data set was "
            "listed); run again, on data that nobody writes to"
        )


def _kind(mode: int) -> str:
    kinds = {"a folder": stat.S_ISDIR, "a pipe": stat.S_ISFIFO, "a socket": stat.S_ISSOCK}
    return next((words for words, test in kinds.items() if test(mode)), "a device")


def _reason(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "it needs more memory than there is"
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
