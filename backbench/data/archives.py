"""Members of tar and zip archives, one after the other; a cut, damaged or unsafe archive is an error.

Only regular files with paths inside the archive's own folder are accepted; no published archive contains anything else.
"""

from __future__ import annotations

import bz2
import functools
import gzip
import io
import lzma
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, cast

from backbench.errors import DataError

# raised for a cut or damaged archive
DAMAGED = (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, OSError)
PLAIN = (".json", ".csv", ".txt", ".mat")  # endings of published files that are no archives
_BLOCK = 512  # bytes: the unit of the tar format; its end marker is two blocks of zeros
_MEGABYTE = 2**20
_OPENERS: dict[bytes, Callable[[IO[bytes]], object]] = {
    b"\x1f\x8b": lambda raw: gzip.GzipFile(fileobj=raw),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\x00": lzma.LZMAFile,
}


@dataclass(frozen=True)
class Member:
    """A regular file of an archive."""

    name: str
    size: int  # bytes, as declared
    open: Callable[[], IO[bytes]]


def members(archive: Path, raw: IO[bytes]) -> Iterator[Member]:
    """Yield the regular files of an archive in its order; members of a tar in a tar are `<its stem>/<member>`.

    Raises:
        DataError: a member with `..`, an absolute path, a link or a device.
        one of DAMAGED: cut short, or damaged where a checksum or the format shows it.
    """
    if archive.suffix.lower() in PLAIN:
        yield Member(archive.name, archive.stat().st_size, lambda: archive.open("rb"))
    elif zipfile.is_zipfile(archive):
        yield from _zip_members(archive, raw)
    else:
        yield from _tar_members(archive, _decompressed(raw), "")


class _Watched(io.BufferedIOBase):
    """A stream that keeps the last block it returned: `tarfile` stops silently at a cut or damaged header."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.block = b""

    def read(self, size: int | None = -1, /) -> bytes:
        self.block = self._stream.read(-1 if size is None else size)
        return self.block

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def seekable(self) -> bool:
        return True


def tar_headers(stream: IO[bytes]) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Yield each member of an uncompressed tar. The stream then is past the first block of the end marker.

    Raises:
        tarfile.TarError: not a tar, or cut within a member.
        EOFError: cut between two members, or a header is damaged.
    """
    watched = _Watched(stream)
    with tarfile.open(fileobj=cast("IO[bytes]", watched), mode="r:") as tar:
        while (item := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # else a million headers stay in memory
            yield tar, item
    if len(watched.block) < _BLOCK:
        raise EOFError("no end marker")
    if any(watched.block):
        raise EOFError("a damaged header")


def _decompressed(raw: IO[bytes]) -> IO[bytes]:
    start = raw.read(max(map(len, _OPENERS)))
    raw.seek(0)
    opener = next((opener for mark, opener in _OPENERS.items() if start.startswith(mark)), lambda raw: raw)
    return cast("IO[bytes]", opener(raw))


def _tar_members(archive: Path, stream: IO[bytes], prefix: str) -> Iterator[Member]:
    for tar, item in tar_headers(stream):
        _check_name(archive, item.name)
        if item.isdir():
            continue
        if not item.isreg():
            raise DataError(f"{archive}: '{item.name}' is a link or a device; refused, nothing of it was written")
        if item.name.endswith(".tar"):
            yield from _tar_members(archive, _content(tar, item), f"{prefix}{PurePosixPath(item.name).stem}/")
        else:
            yield Member(prefix + item.name, item.size, functools.partial(_content, tar, item))
    while stream.read(_MEGABYTE):  # the checksum of a compressed archive is at its end
        pass


def _content(tar: tarfile.TarFile, item: tarfile.TarInfo) -> IO[bytes]:
    content = tar.extractfile(item)
    assert content is not None, "a regular file"
    return content


def _zip_members(archive: Path, raw: IO[bytes]) -> Iterator[Member]:
    with zipfile.ZipFile(raw) as file:
        for item in sorted(file.infolist(), key=lambda item: item.header_offset):
            _check_name(archive, item.filename)
            if item.is_dir():
                continue
            kind = stat.S_IFMT(item.external_attr >> 16)
            if kind not in (0, stat.S_IFREG):
                raise DataError(
                    f"{archive}: '{item.filename}' is a link or a device; refused, nothing of it was written"
                )
            if item.flag_bits & 1:
                raise DataError(f"{archive}: '{item.filename}' is encrypted; download the official archive")
            if item.filename.endswith((".tar.gz", ".tgz")):
                with file.open(item) as inner:
                    yield from _tar_members(archive, _decompressed(inner), "")
            else:
                yield Member(item.filename, item.file_size, functools.partial(file.open, item))


def _check_name(archive: Path, name: str) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", name):
        raise DataError(f"{archive}: '{name}' points out of the folder; refused, nothing of it was written")
