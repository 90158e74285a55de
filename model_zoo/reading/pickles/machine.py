"""A machine that reads a pickle. It builds plain values and inert objects, and cannot call anything.

Python's unpickler runs what a pickle names. This machine cannot import or call: a name becomes a `Global`, and a call
becomes an `Object` that records its arguments. Only operations (`pickles.operations`, and the `PICKLED` of layouts) return
anything else; they are our code and take plain values. The length of the pickle bounds memory and time: an announced
length is compared with the bytes left before anything is allocated.
"""

from __future__ import annotations

import io
import struct
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

from backbench.errors import CheckpointError
from model_zoo.reading.pickles.names import Names
from model_zoo.reading.pickles.objects import Global, Object, as_key
from model_zoo.reading.pickles.opcodes import TABLE, Malformed

_STEPS = 3_000_000  # opcodes in one pickle; some hold the indices of a large data set
_CONTAINERS = 1_000_000
_DEPTH = 10_000  # open marks
_SMALL = 1 << 16  # shorter reads do not check how many bytes are left


def load(
    file: BinaryIO,
    size: int,
    names: Names,
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """Return the value of the pickle at the file's position, and move the position behind it.

    Args:
        file: positioned at the pickle.
        size: bytes of the file.
        names: the operations to use; counts the names that have none.
        persistent: returns the value of a persistent id.

    Raises:
        Malformed: truncated, or not a pickle.
        CheckpointError: larger or deeper than any checkpoint.
    """
    return Machine(file, size, names, persistent).run()


class Machine:
    """One reading of one pickle: its stack, marks, memo and limits."""

    def __init__(self, file: BinaryIO, size: int, names: Names, persistent: Callable[[Any], Any] | None) -> None:
        self.file, self.size, self.names, self.persistent = file, size, names, persistent
        self.read_some = file.read
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.containers = 0
        self.copied = 0
        self.wide_keys = 0

    def run(self) -> Any:
        read, operations = self.read_some, TABLE
        try:
            for _ in range(_STEPS):
                code = read(1)
                if code == b".":
                    return self.stack.pop()
                operations[code](self)
        except KeyError:
            raise Malformed(f"byte {code!r} is not a pickle opcode, or refers to a missing value") from None
        except (IndexError, ValueError, TypeError, struct.error, UnicodeDecodeError, OverflowError) as error:
            raise Malformed(" ".join(str(error).split())[:200] or type(error).__name__) from None
        raise CheckpointError(f"its pickle has more than {_STEPS:,} operations, more than any checkpoint; refused")

    # ------------------------------------------------------------ reading

    def read(self, count: int) -> bytes:
        if count > _SMALL and (count > self.size or count > self.size - self.file.tell()):
            raise Malformed(f"truncated: {count} bytes are announced, fewer are left")
        data = self.read_some(count)
        if len(data) != count:
            raise Malformed("truncated")
        return data

    def number(self, count: int) -> int:
        """Read an unsigned integer of `count` bytes."""
        return int.from_bytes(self.read(count), "little")

    def line(self) -> bytes:
        line = self.file.readline(self.size + 1)
        if not line.endswith(b"\n"):
            raise Malformed("truncated, or a line without end")
        return line[:-1]

    def text(self, count: int) -> str:
        return self.read(count).decode("utf-8", "backslashreplace")

    # ------------------------------------------------------------ the stack

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def container(self, value: Any) -> None:
        self.containers += 1
        if self.containers > _CONTAINERS:
            raise CheckpointError(
                f"its pickle contains more than {_CONTAINERS:,} containers, more than any checkpoint; refused"
            )
        self.stack.append(value)

    def mark(self) -> None:
        if len(self.marks) >= _DEPTH:
            raise CheckpointError(
                f"its pickle nests more than {_DEPTH:,} levels deep, deeper than any checkpoint; refused"
            )
        self.marks.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        items = self.stack
        self.stack = self.marks.pop()
        return items

    def spend(self, count: int) -> None:
        """Count a copy of `count` values or bytes, so that a small pickle cannot copy its parts without end."""
        self.copied += count
        if self.copied > 4 * self.size + (16 << 20):
            raise CheckpointError("its pickle copies its own parts far more than any checkpoint; refused")

    # ------------------------------------------------------------ names, objects and tensors

    def named(self, module: Any, name: Any) -> Global:
        found = Global(str(module), str(name))
        if found not in self.names.operations and not found.is_plain:
            self.names.count(found.name)
        return found

    def call(self, function: Any, arguments: Any) -> Any:
        operation = self.names.operations.get(function) if type(function) is Global else None
        if operation is not None and type(arguments) is tuple:
            value = operation(arguments)
            if value is not NotImplemented:
                if isinstance(value, (bytes, str, list, dict, set, frozenset)):
                    self.spend(len(value))
                return value
            self.names.count(function.name)
        return Object(function, arguments)

    def key(self, value: Any) -> Any:
        key = as_key(value)
        if type(key) is tuple:
            self.wide_keys += 1
            if self.wide_keys > 10_000:  # their hashes can be made to collide
                raise CheckpointError("its pickle has more than 10,000 keys of several values; refused")
        return key

    def set_items(self, target: Any, flat: list[Any]) -> None:
        if len(flat) % 2:
            raise Malformed("a key without a value")
        if isinstance(target, Object):
            target = target.items
        if isinstance(target, dict):
            for key, value in zip(flat[::2], flat[1::2], strict=True):
                target[self.key(key)] = value

    def add(self, target: Any, values: list[Any]) -> None:
        if type(target) is set:
            target.update(self.key(value) for value in values)
        elif type(target) is list:
            target.extend(values)
        elif isinstance(target, Object):
            target.values.extend(values)

    def state(self, target: Any, state: Any) -> None:
        """BUILD: store the state of an inert object; ignore it for plain values."""
        if isinstance(target, Object):
            target.state = state
        elif hasattr(type(target), "take_state"):
            target.take_state(state)
        elif type(target) is OrderedDict and isinstance(state, Mapping) and type(state.get("_metadata")) is OrderedDict:
            vars(target)["_metadata"] = state["_metadata"]  # module versions, for load_state_dict


def loads(data: bytes, names: Names, persistent: Callable[[Any], Any] | None = None) -> Any:
    """As `load`, from bytes."""
    return load(io.BytesIO(data), len(data), names, persistent)
