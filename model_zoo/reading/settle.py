"""From what the machine built to what a reader gets: plain values and tensors, a tree that can be walked safely.

Objects become `Inert`, or the mapping that they are: a dictionary of some class, a Namespace of tensors. What refers to
itself is cut there. A tree that unfolds to far more values than the pickle has is refused, so that whoever walks it needs
no care; so are tensors that together show far more numbers than the file holds.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backbench.errors import CheckpointError
from model_zoo.reading.known import DTYPES, ArrayRef, DtypeRef, StorageRef, TensorRef
from model_zoo.reading.objects import Global, Inert, Object

_LEVELS = 100
_UNFOLDED = 500_000  # values at least that a tree may have, shared parts counted each time
_SHOWN = 8  # numbers that tensors may show for each byte of their file
_SHOWN_AT_LEAST = 1 << 22
_NETWORK = 20  # arrays that one mapping holds by name, at least, where they are a network's weights
_MAPPINGS = ("argparse.Namespace", "types.SimpleNamespace")


def settle(value: Any, storage: Callable[[StorageRef], Tensor] | None, held: int, names: dict[str, int]) -> Any:
    """Plain values, tensors and `Inert`s of a pickle's value.

    Args:
        value: what `machine.load` gave.
        storage: reads a run of numbers, (numel,) of its dtype; None where a pickle has none, and arrays become tensors.
        held: bytes of numbers in the file, unpacked.
        names: counts arrays that were left unread.

    Raises:
        CheckpointError: it nests too deep, unfolds to too much, or a tensor shows what is not there.
    """
    settling = _Settling(storage, held)
    settled, _ = settling.value(value, 0)
    if storage is not None and not settling.tensors and settling.arrays:
        settling = _Settling(storage, held, arrays=True)  # a file of arrays alone: they are its weights
        settled, _ = settling.value(value, 0)
    for name in settling.unread:
        names[name] = names.get(name, 0) + 1
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
        self.search = 1_000_000  # parts of stubs that are looked at
        self.holding: dict[tuple[int, int], bool] = {}

    def value(self, raw: Any, level: int) -> tuple[Any, int]:
        """The settled value, and to how many values it unfolds."""
        kind = type(raw)
        if kind in (str, int, float, bool, type(None), bytes, complex):
            return raw, 1
        if id(raw) in self.done:
            return self.done[id(raw)]
        if level > _LEVELS:
            raise CheckpointError(f"its values nest more than {_LEVELS} levels deep, no checkpoint's do; refused")
        if id(raw) in self.open:
            return Inert("a container that holds itself"), 1
        self.open.add(id(raw))
        settled = self._one(raw, kind, level)
        self.open.discard(id(raw))
        self.visited += 1 + (len(raw) if isinstance(raw, (list, tuple, dict, set, frozenset)) else 0)
        self.done[id(raw)] = settled
        if settled[1] > max(_UNFOLDED, 4 * self.visited):
            raise CheckpointError(
                f"its {self.visited:,} values refer to the same parts so often that they unfold to {settled[1]:,}, no "
                "checkpoint's do; refused"
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
        """The mapping that an object is, where its content says so; else a stub."""
        if raw.is_module:
            return Inert(raw.name, is_module=True, tensors=self._tensors_in(raw)), 1
        state = raw.state
        if type(state) is tuple and len(state) == 2 and isinstance(state[1] or state[0], dict):
            state = state[1] or state[0]  # of a class with slots
        given = raw.arguments[0] if type(raw.arguments) is tuple and len(raw.arguments) == 1 else None
        if raw.items:
            return self._mapping(raw.items, dict, level)
        for content in (given, state):
            if isinstance(content, dict) and "param_groups" not in content and self._holds(content, 3):
                return self._mapping(content, dict, level)
        return Inert(raw.name, tensors=self._tensors_in(raw)), 1

    def _holds(self, raw: Any, levels: int) -> bool:
        """Whether a mapping holds tensors, directly or in mappings below it."""
        if type(raw) is Object:
            raw = raw.items or (raw.state if raw.name in _MAPPINGS else None)
        if not isinstance(raw, dict):
            return False
        if (id(raw), levels) not in self.holding:
            self.holding[id(raw), levels] = False  # should it hold itself
            self.holding[id(raw), levels] = any(type(item) in (TensorRef, ArrayRef) for item in raw.values()) or (
                levels > 0 and any(self._holds(item, levels - 1) for item in raw.values())
            )
        return self.holding[id(raw), levels]

    def _tensors_in(self, raw: Object) -> int:
        """Tensors in a stub and in the objects below it; each part counts once, and the search ends for huge ones."""
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
                f"its tensors show more than {self.limit:,} numbers, many times what the file holds: they are views of the "
                "same few numbers; refused (save clones of them)"
            )

    def _tensor(self, ref: TensorRef) -> Tensor:
        self.tensors += 1
        self._show(ref.numel)
        numbers = ref.storage.held
        if numbers is None:
            assert self.storage is not None, "a pickle without storages has no reference to one"
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
    """An array's numbers as a tensor; a stub where torch has no such numbers."""
    try:
        return torch.from_numpy(array)
    except TypeError:
        return Inert(f"numpy.ndarray of {array.dtype}")
