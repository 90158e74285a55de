"""Zip archives, read with Python's zipfile: nothing is unpacked to the disk, and every checksum is compared.

PyTorch's own reader compares no checksum: there, one flipped byte is one wrong weight.
"""

from __future__ import annotations

import contextlib
import io
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import BinaryIO

import torch
from torch import Tensor

from backbench.errors import CheckpointError
from backbench.printable import printable

_LARGEST_RATIO = 30  # weights hardly compress, so a larger ratio is not a checkpoint
_CHUNK = 1 << 22
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)  # LZMA's header can ask for any memory
_BROKEN = (zipfile.BadZipFile, NotImplementedError, RuntimeError, zlib.error, EOFError, OSError, ValueError)


class Archive:
    """The members of a zip archive, by name. Reading a member compares its checksum.

    Raises:
        CheckpointError: the index cannot be read, members overlap or share a name, or they unpack to far too much.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        try:
            self._zip = zipfile.ZipFile(file)
        except Exception as error:  # zipfile raises many kinds: BadZipFile, UnicodeDecodeError, struct.error, ...
            raise CheckpointError(
                "begins as a zip archive whose index cannot be read; truncated or damaged? Fetch or save it again "
                f"({size} bytes; {type(error).__name__}: {printable(error)})"
            ) from None
        self.members = self._zip.infolist()
        self.size = size
        self.unpacked = sum(member.file_size for member in self.members)
        if self.unpacked > _LARGEST_RATIO * size + (1 << 20):
            raise CheckpointError(
                f"{size} bytes that would unpack to {self.unpacked}: refused, weights do not compress so much"
            )
        if twice := [name for name, count in Counter(self.names).items() if count > 1]:
            raise CheckpointError(f"contains '{printable(twice[0])}' twice, so readers would differ; refused")
        self._refuse_overlap()
        self._by_name = {member.filename: member for member in self.members}
        self._sound: set[str] = set()

    @property
    def names(self) -> list[str]:
        """The names of all members, in the archive's order."""
        return [member.filename for member in self.members]

    @property
    def without_checksums(self) -> bool:
        """Whether the writer stored no checksums (`torch.serialization.set_crc32_options(False)`)."""
        return bool(self.members) and all(member.CRC == 0 for member in self.members)

    def _refuse_overlap(self) -> None:
        """Refuse members that share bytes: a bomb, or one hidden in another."""
        end = 0
        for member in sorted(self.members, key=lambda member: member.header_offset):
            if member.header_offset < end:
                raise CheckpointError(f"'{printable(member.filename)}' overlaps another member; refused")
            end = member.header_offset + 30 + len(member.filename) + member.compress_size
        if end > self.size + 30:
            raise CheckpointError(f"truncated: its members need {end} bytes, the file has {self.size}")

    def read(self, name: str) -> Tensor:
        """Return the bytes of a member, (bytes,) uint8.

        Raises:
            CheckpointError: the member is missing or damaged; names it.
        """
        member = self._member(name)
        buffer = torch.empty(member.file_size, dtype=torch.uint8)
        view, at = memoryview(buffer.numpy().data), 0
        for chunk in self._chunks(member):
            view[at : at + len(chunk)] = chunk
            at += len(chunk)
        return buffer

    def read_bytes(self, name: str) -> bytes:
        """Return the bytes of a small member; raises as `read`."""
        return b"".join(self._chunks(self._member(name)))

    def check_the_rest(self) -> None:
        """Compare the checksums of the members not read so far; raises as `read`."""
        for member in self.members:
            if member.filename not in self._sound and not member.is_dir():
                for _ in self._chunks(member):
                    pass

    def _member(self, name: str) -> zipfile.ZipInfo:
        member = self._by_name.get(name)
        if member is None:
            raise CheckpointError(
                f"its entry '{printable(name)}' is missing: truncated or damaged, fetch or save it again"
            )
        return member

    def _chunks(self, member: zipfile.ZipInfo) -> Iterator[bytes]:
        """Yield its bytes, exactly as many as announced."""
        name, left, crc = printable(member.filename), member.file_size, 0
        if member.compress_type not in _METHODS:
            raise CheckpointError(f"its entry '{name}' is compressed by an unsupported method; unpack it first")
        expected = member.CRC
        member.CRC = None  # type: ignore[assignment]  # we compare it ourselves, with our own message
        try:
            with self._zip.open(member) as source:
                while left:
                    chunk = source.read(min(left, _CHUNK))
                    if not chunk:
                        break
                    left -= len(chunk)
                    crc = zlib.crc32(chunk, crc)
                    yield chunk
        except _BROKEN as error:
            raise CheckpointError(f"its entry '{name}' cannot be read: damaged? ({printable(error)})") from None
        finally:
            member.CRC = expected
        if left:
            raise CheckpointError(f"its entry '{name}' is truncated: {left} of {member.file_size} bytes are missing")
        if crc != expected and not self.without_checksums:
            raise CheckpointError(
                f"its entry '{name}' is damaged: its bytes do not match the stored checksum; fetch or save the file again"
            )
        self._sound.add(member.filename)


@contextlib.contextmanager
def opened(file: BinaryIO, size: int) -> Iterator[Archive]:
    """Open an archive while it is read."""
    archive = Archive(file, size)
    with archive._zip:
        yield archive


_CHECKPOINTS = (".pth", ".pt", ".tar", ".ckpt", ".th", ".torch", ".pkl", ".bin", ".safetensors", ".npz")
_HIDDEN = re.compile(r"(^|/)(\.|__MACOSX/)")  # files that macOS adds, and hidden files


def the_checkpoint(archive: Archive) -> io.BytesIO:
    """Return the one checkpoint in a plain zip archive, in memory.

    Raises:
        CheckpointError: not exactly one checkpoint, a name that leads out of its folder, or damage.
    """
    for name in archive.names:
        if name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", name) or re.match(r"[A-Za-z]:", name):
            raise CheckpointError(f"contains '{printable(name)}', which leads out of its folder; refused")
    if "model.weights.h5" in archive.names:
        raise CheckpointError("is a Keras model, which is not supported; save its arrays with numpy.savez")
    if {"archive_format", "serialized_exported_program.json"} & {name.rpartition("/")[2] for name in archive.names}:
        raise CheckpointError("is a torch.export program, which contains code; save the network's state_dict() instead")
    found = [name for name in archive.names if name.lower().endswith(_CHECKPOINTS) and not _HIDDEN.search(name)]
    if len(found) != 1:
        raise CheckpointError(f"an archive with {len(found)} checkpoints; unpack it and give the one you want")
    data = archive.read_bytes(found[0])
    archive.check_the_rest()
    return io.BytesIO(data)
