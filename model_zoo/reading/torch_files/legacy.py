"""Files of `torch.save` until 2020: five pickles, then the numbers of each storage. No checksums."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any, BinaryIO

import torch
from torch import Tensor

from backbench.errors import CheckpointError
from backbench.printable import printable
from model_zoo.reading.pickles import machine
from model_zoo.reading.pickles.names import Names
from model_zoo.reading.pickles.operations import StorageRef
from model_zoo.reading.pickles.settle import settle
from model_zoo.reading.torch_files.zip import reference, swapped, typed

MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"  # how such files begin
_PROTOCOL = 1001


def read(file: BinaryIO, size: int, names: Names) -> Any:
    """Return the saved value.

    Raises:
        CheckpointError: truncated, or a storage announces more than the file has.
        Malformed: a pickle cannot be read.
    """
    value, storage = _parts(file, size, names)
    return settle(value, storage, size, names)


def storage_in(data: bytes) -> StorageRef:
    """Return the one storage in bytes from another pickle, with its numbers.

    Raises:
        CheckpointError, Malformed: as `read`, or the bytes contain anything else.
    """
    value, storage = _parts(io.BytesIO(data), len(data), Names())
    if not isinstance(value, StorageRef):
        raise CheckpointError("the bytes of a tensor's storage cannot be read; damaged")
    return replace(value, held=storage(value))


def _parts(file: BinaryIO, size: int, names: Names) -> tuple[Any, Callable[[StorageRef], Tensor]]:
    """Return the pickle's value, not settled, and a function that reads its storages."""
    machine.load(file, size, Names())
    if machine.load(file, size, Names()) != _PROTOCOL:
        raise CheckpointError("written by an unknown version of torch.save")
    system = machine.load(file, size, Names())
    swap = isinstance(system, dict) and system.get("little_endian") is False
    announced: dict[str, StorageRef] = {}

    def remember(identity: Any) -> Any:
        found = reference(identity)
        if isinstance(found, StorageRef) and announced.setdefault(found.key, found).dtype != found.dtype:
            raise CheckpointError(f"storage '{printable(found.key)}' has two types; damaged")
        return found

    value = machine.load(file, size, names, remember)
    keys = machine.load(file, size, Names())
    if not isinstance(keys, list) or not all(type(key) is str for key in keys):
        raise CheckpointError("its list of storages cannot be read; damaged")
    storages: dict[str, Tensor] = {}
    for key in keys:
        if key not in announced or key in storages:
            raise CheckpointError(f"storage '{printable(key)}' is listed and not used, or listed twice; damaged")
        storages[key] = _numbers(file, size, announced[key], swap)

    def storage(ref: StorageRef) -> Tensor:
        if ref.key not in storages:
            raise CheckpointError(f"storage '{printable(ref.key)}' is missing: truncated or damaged")
        return typed(storages[ref.key], announced[ref.key])

    return value, storage


def _numbers(file: BinaryIO, size: int, ref: StorageRef, swap: bool) -> Tensor:
    """Read the next storage, (bytes,) uint8: a count, then the numbers."""
    head = file.read(8)
    if len(head) < 8:
        raise CheckpointError(f"truncated before storage '{printable(ref.key)}'")
    (count,) = struct.unpack(">q" if swap else "<q", head)
    needed, left = count * ref.dtype.itemsize, size - file.tell()
    if count != ref.numel:
        raise CheckpointError(f"storage '{printable(ref.key)}' has {count} numbers, {ref.numel} are announced; damaged")
    if needed > left:
        raise CheckpointError(
            f"truncated in storage '{printable(ref.key)}': {needed} bytes are announced, {left} are left"
        )
    buffer = torch.empty(needed, dtype=torch.uint8)
    view, at = memoryview(buffer.numpy().data), 0
    while at < needed:
        if not (got := file.readinto(view[at:])):  # type: ignore[attr-defined]
            raise CheckpointError(f"truncated in storage '{printable(ref.key)}'")
        at += got
    return swapped(buffer, ref.dtype) if swap else buffer
