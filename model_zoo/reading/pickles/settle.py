"""Turn what the machine built into what a reader gets: a tree of plain values and tensors that is safe to walk.

Objects become `Inert`, or the mapping they contain: a dictionary subclass, a Namespace of tensors. References of a value
to itself are cut. A tree that unfolds to far more values than the pickle has is refused, and so are tensors that together
have far more elements than the file.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backbench.errors import CheckpointError
from model_zoo.reading.pickles.names import Names
from model_zoo.reading.pickles.objects import Global, Inert, Object
from model_zoo.reading.pickles.operations import DTYPES, ArrayRef, DtypeRef, StorageRef, TensorRef

_LEVELS = 100
_UNFOLDED = 500_000  # a tree may always have this many values, counting shared parts each time
_SHOWN = 8  # tensor elements allowed per byte of the file
_SHOWN_AT_LEAST = 1 << 22
_NETWORK = 20  # a mapping with at least this many named arrays is a network's weights
_MAPPINGS = ("argparse.Namespace", "types.SimpleNamespace")


def settle(value: Any, storage: Callable[[StorageRef], Tensor] | None, held: int, names: Names) -> Any:
    """Return a pickle's value as plain values, tensors and `Inert`s.

    Args:
        value: the result of `machine.load`.
        storage: reads a storage, (numel,) of its dtype; None if the pickle has none: then arrays become tensors.
        held: bytes of numbers in the file, uncompressed.
        names: counts arrays that are left unread.

    Raises:
        CheckpointError: it nests too deep, unfolds to too much, or a tensor exceeds its storage.
    """
    settling = _Settling(storage, held)
    settled, _ = settling.value(value, 0)
    if storage is not None and not settling.tensors and settling.arrays:
        settling = _Settling(storage, held, arrays=True)  # the file contains only arrays: they are its weights
        settled, _ = settling.value(value, 0)
    for name in settling.unread:
        names.count(name)
    return settled


class _Settling:
    def __init__(self, storage: Callable[[StorageRef], Tensor] | None, held: int, arrays: bool = False) -> None:
        self.storage = storage
        self.as_tensors = arrays or storage is None
        self.limit = _SHOWN * held + _SHOWN_AT_LEAST
        self.shown = 0
        self.tensors = self.arrays = self.visited = 0
        self.unread: list[str] = []
        self.done: dict[int, tuple[Any, int]] = {}
        self.open: set[int] = set()
        self.search = 1_000_000  # how many parts of stubs to inspect
        self.holding: dict[tuple[int, int], bool] = {}

    def value(self, raw: Any, level: int) -> tuple[Any, int]:
        """Return the settled value, and how many values it unfolds to."""
        kind = type(raw)
        if kind in (str, int, float, bool, type(None), bytes, complex):
            return raw, 1
        if id(raw) in self.done:
            return self.done[id(raw)]
        if level > _LEVELS:
            raise CheckpointError(
                f"its values nest more than {_LEVELS} levels deep, deeper than any checkpoint; refused"
            )
        if id(raw) in self.open:
            return Inert("a container that contains itself"), 1
        self.open.add(id(raw))
        settled = self._one(raw, kind, level)
        self.open.discard(id(raw))
        self.visited += 1 + (len(raw) if isinstance(raw, (list, tuple, dict, set, frozenset)) else 0)
        self.done[id(raw)] = settled
        if settled[1] > max(_UNFOLDED, 4 * self.visited):
            raise CheckpointError(
                f"its {self.visited:,} values refer to the same parts so often that they unfold to {settled[1]:,}, more "
                "than in any checkpoint; refused"
            )
        return settled

    def _one(self, raw: Any, kind: type, level: int) -> tuple[Any, int]:
        if kind is TensorRef:
            return self._tensor(raw), 1
        if kind is ArrayRef:
            return self._array(raw), 1
        if isinstance(raw, dict):
            return self._mapping(raw, kind, level)
        if kind in (list, tuple):
            items = [self.value(item, level + 1) for item in raw]
            return kind(item for item, _ in items), 1 + sum(count for _, count in items)
        if kind in (set, frozenset):
            return kind(self._key(item) for item in raw), 1 + len(raw)
        if kind is Object:
            return self._object(raw, level)
        if kind is Global and raw.module == "torch" and raw.word in DTYPES:
            return DTYPES[raw.word], 1
        if kind is StorageRef:
            return Inert("torch.storage"), 1
        return Inert(raw.name if kind is Global else "numpy.dtype" if kind is DtypeRef else kind.__name__), 1

    def _key(self, key: Any) -> Any:
        return Inert(key.name) if isinstance(key, (Global, Object)) else key

    def _mapping(self, raw: dict[Any, Any], kind: type, level: int) -> tuple[Any, int]:
        count, settled = 1, OrderedDict() if kind is OrderedDict else {}
        weights = sum(type(item) is ArrayRef and type(key) is str for key, item in raw.items()) >= _NETWORK
        for key, item in raw.items():
            if weights and type(item) is ArrayRef:
                settled[self._key(key)], more = self._array(item, weight=True), 1
            else:
                settled[self._key(key)], more = self.value(item, level + 1)
            count += more
        if kind is OrderedDict and (metadata := getattr(raw, "_metadata", None)) is not None:
            value, more = self.value(metadata, level + 1)
            vars(settled)["_metadata"] = value
            count += more
        return settled, count

    def _object(self, raw: Object, level: int) -> tuple[Any, int]:
        """Return an object's mapping if it contains tensors, else a stub."""
        if raw.is_module:
            return Inert(raw.name, is_module=True, tensors=self._tensors_in(raw)), 1
        state = raw.state
        if type(state) is tuple and len(state) == 2 and isinstance(state[1] or state[0], dict):
            state = state[1] or state[0]  # the class has slots
        given = raw.arguments[0] if type(raw.arguments) is tuple and len(raw.arguments) == 1 else None
        if raw.items:
            return self._mapping(raw.items, dict, level)
        for content in (given, state):
            if isinstance(content, dict) and "param_groups" not in content and self._holds(content, 3):
                return self._mapping(content, dict, level)
        return Inert(raw.name, tensors=self._tensors_in(raw)), 1

    def _holds(self, raw: Any, levels: int) -> bool:
        """Return whether a mapping contains tensors, directly or in nested mappings."""
        if type(raw) is Object:
            raw = raw.items or (raw.state if raw.name in _MAPPINGS else None)
        if not isinstance(raw, dict):
            return False
        if (id(raw), levels) not in self.holding:
            self.holding[id(raw), levels] = False  # in case it contains itself
            self.holding[id(raw), levels] = any(type(item) in (TensorRef, ArrayRef) for item in raw.values()) or (
                levels > 0 and any(self._holds(item, levels - 1) for item in raw.values())
            )
        return self.holding[id(raw), levels]

    def _tensors_in(self, raw: Object) -> int:
        """Count the tensors in a stub and in its parts; each part counts once, and the search has a limit."""
        found, seen, waiting = 0, set(), [raw]
        while waiting and self.search > 0:
            part = waiting.pop()
            if id(part) in seen:
                continue
            seen.add(id(part))
            more: Any = ()
            if type(part) is TensorRef:
                found += 1
            elif isinstance(part, Object):
                more = (part.state, part.items, part.arguments)
            elif isinstance(part, (dict, list, tuple)):
                more = part.values() if isinstance(part, dict) else part
            self.search -= 1 + len(more)
            waiting += more
        return found

    def _show(self, count: int) -> None:
        self.shown += count
        if self.shown > self.limit:
            raise CheckpointError(
                f"its tensors have more than {self.limit:,} elements, many times the numbers in the file: they are views of "
                "the same few numbers; refused (save clones of them)"
            )

    def _tensor(self, ref: TensorRef) -> Tensor:
        self.tensors += 1
        self._show(ref.numel)
        numbers = ref.storage.held
        if numbers is None:
            assert self.storage is not None, "a pickle without storages cannot refer to one"
            numbers = self.storage(ref.storage)
        if numbers.dtype != ref.dtype:
            numbers = numbers.view(torch.uint8)
            numbers = numbers[: numbers.numel() // ref.dtype.itemsize * ref.dtype.itemsize].view(ref.dtype)
        offset = ref.offset + ref.storage.offset
        last = offset + sum((size - 1) * stride for size, stride in zip(ref.size, ref.stride, strict=True))
        if ref.numel and last >= numbers.numel():
            raise CheckpointError(
                f"a tensor of shape {ref.size} reaches to number {last + 1} of a storage of {numbers.numel()}; damaged, refused"
            )
        if not ref.numel:
            return torch.empty(ref.size, dtype=ref.dtype)
        return torch.as_strided(numbers, ref.size, ref.stride, offset)

    def _array(self, ref: ArrayRef, weight: bool = False) -> Any:
        self._show(len(ref.data) if isinstance(ref.data, (bytes, str)) else 0)
        self.arrays += not weight
        array = ref.value() if self.as_tensors or weight else None
        found = Inert(ref.name) if array is None else as_tensor(array)
        if isinstance(found, Inert):
            self.unread.append(found.name)
        return found


def as_tensor(array: np.ndarray) -> Tensor | Inert:
    """Return an array as a tensor, or a stub if torch has no such dtype."""
    try:
        return torch.from_numpy(array)
    except TypeError:
        return Inert(f"numpy.ndarray of {array.dtype}")
