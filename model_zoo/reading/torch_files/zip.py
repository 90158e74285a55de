"""Files of `torch.save` since 2020: a zip archive with one pickle and one member per storage."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from backbench.errors import CheckpointError
from backbench.printable import printable
from model_zoo.reading.archives import Archive
from model_zoo.reading.pickles import machine
from model_zoo.reading.pickles.names import Names
from model_zoo.reading.pickles.objects import Global, Object
from model_zoo.reading.pickles.operations import StorageRef, storage_dtype
from model_zoo.reading.pickles.settle import settle


def is_torch(archive: Archive) -> bool:
    """Return whether `torch.save` or `torch.jit.save` wrote the archive."""
    return any(name.endswith(("data.pkl", "constants.pkl")) for name in archive.names)


def read(archive: Archive, names: Names) -> Any:
    """Return the saved value, after comparing the checksum of every entry.

    Raises:
        CheckpointError: damaged, a TorchScript program, or more than one pickle.
    """
    if any(name.endswith("constants.pkl") or "/code/" in name for name in archive.names):
        raise CheckpointError("is a TorchScript program, which contains code; save its state_dict() instead")
    pickles = [name for name in archive.names if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise CheckpointError(
            f"an archive with {len(pickles)} pickles named data.pkl, where torch.save writes one; refused"
        )
    prefix = pickles[0].removesuffix("data.pkl")
    data = archive.read_bytes(pickles[0])
    order = archive.read_bytes(f"{prefix}byteorder") if f"{prefix}byteorder" in archive.names else b"little"
    storages = _Storages(archive, prefix, swap=order.strip() == b"big")
    value = settle(machine.loads(data, names, reference), storages.get, archive.unpacked, names)
    archive.check_the_rest()
    return value


def reference(identity: Any) -> Any:
    """Return the storage for a persistent id ("storage", class, key, location, numel[, view]), else an inert object."""
    if type(identity) is tuple and identity and identity[0] == "module" and len(identity) >= 2:
        return identity[1]  # the class of a pickled network
    if type(identity) is not tuple or len(identity) not in (5, 6) or identity[0] != "storage":
        return Object(Global("pickle", "persistent_id"), (identity,))
    _, kind, key, _location, numel, *view = identity
    dtype = storage_dtype(kind)
    if dtype is None or type(key) is not str or type(numel) is not int or numel < 0:
        return Object(kind if isinstance(kind, Global) else Global("torch", "Storage"), (identity,))
    offset = 0
    if view and view[0] is not None:
        if type(view[0]) is not tuple or len(view[0]) != 3 or type(view[0][1]) is not int or view[0][1] < 0:
            raise CheckpointError("a view of a storage cannot be read; damaged?")
        offset = view[0][1]
    return StorageRef(key, dtype, numel, offset)


class _Storages:
    """Storages by key; each is read once."""

    def __init__(self, archive: Archive, prefix: str, swap: bool) -> None:
        self.archive, self.prefix, self.swap = archive, prefix, swap
        self.read: dict[str, Tensor] = {}

    def get(self, ref: StorageRef) -> Tensor:
        """Return (numel,) numbers. Raises CheckpointError: the entry is missing, damaged or shorter than announced."""
        if ref.key not in self.read:
            raw = self.archive.read(f"{self.prefix}data/{ref.key}")
            self.read[ref.key] = swapped(raw, ref.dtype) if self.swap else raw
        return typed(self.read[ref.key], ref)


def typed(raw: Tensor, ref: StorageRef) -> Tensor:
    """Return (bytes,) uint8 as (numel,) numbers of the reference's dtype."""
    announced = ref.numel * ref.dtype.itemsize
    if raw.numel() < announced:
        raise CheckpointError(
            f"storage '{printable(ref.key)}' announces {announced} bytes, {raw.numel()} are there: truncated or damaged"
        )
    return raw[:announced].view(ref.dtype)


def swapped(raw: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the numbers in the other byte order; a complex number is two numbers."""
    size = dtype.itemsize // (2 if dtype.is_complex else 1)
    return raw[: raw.numel() // size * size].view(-1, size).flip(1).reshape(-1) if size > 1 else raw
