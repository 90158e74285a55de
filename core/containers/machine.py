"""A pickle read by a machine of our own: it builds plain values and inert objects, and can call nothing.

Python's unpickler runs what a pickle names. This one has no way to import or to call: a name becomes a `Global`, a call
becomes an `Object` that remembers what it was given, and only the operations of `core.containers.known` (tensors,
arrays, mappings), which are ours and take plain values, give anything else. Its memory and time are bounded by the length
of the pickle: an announced length is compared with what is left before anything is allocated.
"""

from __future__ import annotations

import codecs
import io
import struct
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

from core.containers.known import OPERATIONS
from core.containers.objects import Global, Object, as_key
from core.errors import CheckpointError

_STEPS = 5_000_000  # operations in one pickle: the indices of a large data set are some
_CONTAINERS = 1_000_000
_DEPTH = 10_000  # open marks
_SMALL = 1 << 16  # lengths up to here are read without asking how much is left
_INTEGER = 1024  # bytes of a whole number; Python prints none that is much longer


class Malformed(Exception):
    """The bytes are no pickle, or only a part of one."""


class _Mark:
    """What no value of a pickle can be."""


def load(
    file: BinaryIO,
    size: int,
    names: dict[str, int],
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """The value of the pickle at the file's position, which moves behind it.

    Args:
        file: positioned at the pickle.
        size: bytes of the file.
        names: counts the names of everything in the pickle that is unknown here.
        persistent: the value of a persistent id.

    Raises:
        Malformed: truncated or no pickle.
        CheckpointError: larger or deeper than any checkpoint is.
    """
    return _Machine(file, size, names, persistent).run()


class _Machine:
    def __init__(
        self, file: BinaryIO, size: int, names: dict[str, int], persistent: Callable[[Any], Any] | None
    ) -> None:
        self.file, self.size, self.names, self.persistent = file, size, names, persistent
        self.read_some = file.read
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.containers = 0
        self.copied = 0
        self.wide_keys = 0

    def run(self) -> Any:
        read, operations = self.read_some, _TABLE
        try:
            for _ in range(_STEPS):
                code = read(1)
                if code == b".":
                    return self.stack.pop()
                operations[code](self)
        except KeyError:
            raise Malformed(f"byte {code!r} begins no operation of a pickle, or refers to what is not there") from None
        except (IndexError, ValueError, TypeError, struct.error, UnicodeDecodeError, OverflowError) as error:
            raise Malformed(" ".join(str(error).split())[:200] or type(error).__name__) from None
        raise CheckpointError(f"its pickle has more than {_STEPS:,} operations, which no checkpoint has; refused")

    # ------------------------------------------------------------ reading

    def read(self, count: int) -> bytes:
        if count > _SMALL and (count > self.size or count > self.size - self.file.tell()):
            raise Malformed(f"truncated: {count} bytes are announced, fewer are left")
        data = self.read_some(count)
        if len(data) != count:
            raise Malformed("truncated")
        return data

    def number(self, count: int) -> int:
        """An unsigned number of so many bytes."""
        return int.from_bytes(self.read(count), "little")

    def line(self) -> bytes:
        line = self.file.readline(1 << 20)
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
            raise CheckpointError(f"its pickle holds more than {_CONTAINERS:,} containers, no checkpoint does; refused")
        self.stack.append(value)

    def mark(self) -> None:
        if len(self.marks) >= _DEPTH:
            raise CheckpointError(f"its pickle nests more than {_DEPTH:,} levels deep, no checkpoint does; refused")
        self.marks.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        items = self.stack
        self.stack = self.marks.pop()
        return items

    def spend(self, count: int) -> None:
        """Account for a copy of `count` values or bytes: what is stored once must not be copied without end."""
        self.copied += count
        if self.copied > 4 * self.size + (16 << 20):
            raise CheckpointError("its pickle copies its own parts again and again, no checkpoint does; refused")

    # ------------------------------------------------------------ what is no plain value

    def named(self, module: Any, name: Any) -> Global:
        found = Global(str(module), str(name))
        if found not in OPERATIONS and not found.is_plain:
            self.names[found.name] = self.names.get(found.name, 0) + 1
        return found

    def call(self, function: Any, arguments: Any) -> Any:
        operation = OPERATIONS.get(function) if type(function) is Global else None
        if operation is not None and type(arguments) is tuple:
            value = operation(arguments)
            if value is not NotImplemented:
                if isinstance(value, (bytes, str, list, dict, set, frozenset)):
                    self.spend(len(value))
                return value
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
        """BUILD: a state is remembered where the target is inert, and ignored where it is anything of ours."""
        if isinstance(target, Object):
            target.state = state
        elif hasattr(type(target), "take_state"):
            target.take_state(state)
        elif type(target) is OrderedDict and isinstance(state, Mapping) and type(state.get("_metadata")) is OrderedDict:
            target._metadata = state["_metadata"]  # versions of modules, for load_state_dict


def _whole(data: bytes) -> Any:
    if len(data) > _INTEGER:
        return Object(Global("builtins", "int"), ())
    return int.from_bytes(data, "little", signed=True)


def _decimal(line: bytes) -> Any:
    if line in (b"00", b"01"):
        return line == b"01"
    return int(line) if len(line) < 2 * _INTEGER else Object(Global("builtins", "int"), ())


def _bytes(size: int) -> Callable[[_Machine], None]:
    return lambda m: m.push(m.read(m.number(size)))


def _latin(size: int) -> Callable[[_Machine], None]:
    """Python 2's strings: names or bytes; latin-1 loses neither."""
    return lambda m: m.push(m.read(m.number(size)).decode("latin-1"))


def _text(size: int) -> Callable[[_Machine], None]:
    return lambda m: m.push(m.text(m.number(size)))


def _get(size: int) -> Callable[[_Machine], None]:
    return lambda m: m.push(m.memo[m.number(size)])


def _put(m: _Machine, at: int) -> None:
    m.memo[at] = m.stack[-1]


def _tuple(count: int) -> Callable[[_Machine], None]:
    def build(m: _Machine) -> None:
        if len(m.stack) < count:
            raise IndexError("a tuple of what is not there")
        m.stack[-count:] = [tuple(m.stack[-count:])]

    return build


def _reduce(m: _Machine) -> None:
    arguments = m.stack.pop()
    function = m.stack.pop()
    m.container(m.call(function, arguments))


def _new_with_names(m: _Machine) -> None:
    named, arguments, kind = m.stack.pop(), m.stack.pop(), m.stack.pop()
    m.container(Object(kind, arguments, named))


def _instance(m: _Machine) -> None:
    module, name = m.line().decode("ascii"), m.line().decode("ascii")
    arguments = tuple(m.since_mark())
    m.container(m.call(m.named(module, name), arguments))


def _object(m: _Machine) -> None:
    kind, *arguments = m.since_mark()
    m.container(m.call(kind, tuple(arguments)))


def _global(m: _Machine) -> None:
    module = m.line().decode("utf-8", "backslashreplace")
    m.push(m.named(module, m.line().decode("utf-8", "backslashreplace")))


def _stack_global(m: _Machine) -> None:
    name, module = m.stack.pop(), m.stack.pop()
    if type(name) is not str or type(module) is not str:
        raise Malformed("a name that is no word")
    m.push(m.named(module, name))


def _extension(size: int) -> Callable[[_Machine], None]:
    """A code of Python's registry of extensions: never looked up."""
    return lambda m: m.push(m.named("copyreg", f"extension {m.number(size)}"))


def _persistent(m: _Machine, identity: Any) -> None:
    m.container(m.persistent(identity) if m.persistent else Object(Global("pickle", "persistent_id"), ()))


def _pop(m: _Machine) -> None:
    if m.stack:
        m.stack.pop()
    else:
        m.since_mark()


def _append(m: _Machine) -> None:
    value = m.stack.pop()
    m.add(m.stack[-1], [value])


def _appends(m: _Machine) -> None:
    values = m.since_mark()
    m.add(m.stack[-1], values)


def _set_item(m: _Machine) -> None:
    value, key = m.stack.pop(), m.stack.pop()
    m.set_items(m.stack[-1], [key, value])


def _set_items(m: _Machine) -> None:
    flat = m.since_mark()
    m.set_items(m.stack[-1], flat)


def _build(m: _Machine) -> None:
    state = m.stack.pop()
    m.state(m.stack[-1], state)


def _dictionary(m: _Machine) -> None:
    flat = m.since_mark()
    m.container({})
    m.set_items(m.stack[-1], flat)


def _protocol(m: _Machine) -> None:
    version = m.number(1)
    if version > 5:
        raise Malformed(f"protocol {version} of pickles is unknown")


def _frame(m: _Machine) -> None:
    if m.number(8) > m.size:
        raise Malformed("truncated: a frame longer than the file")


def _string(m: _Machine) -> None:
    line = m.line()
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
        raise Malformed("a string without quotes")
    m.push(codecs.escape_decode(line[1:-1])[0].decode("latin-1"))


def _buffers(_m: _Machine) -> None:
    raise Malformed("its buffers are kept outside of it")


_TABLE: dict[bytes, Callable[[_Machine], None]] = {
    b"\x80": _protocol, b"\x95": _frame, b"(": _Machine.mark, b"0": _pop, b"1": lambda m: m.since_mark() and None,
    b"2": lambda m: m.push(m.stack[-1]),
    b"N": lambda m: m.push(None), b"\x88": lambda m: m.push(True), b"\x89": lambda m: m.push(False),
    b"I": lambda m: m.push(_decimal(m.line())), b"L": lambda m: m.push(_decimal(m.line().rstrip(b"L"))),
    b"J": lambda m: m.push(struct.unpack("<i", m.read(4))[0]), b"K": lambda m: m.push(m.number(1)),
    b"M": lambda m: m.push(m.number(2)), b"\x8a": lambda m: m.push(_whole(m.read(m.number(1)))),
    b"\x8b": lambda m: m.push(_whole(m.read(m.number(4)))),
    b"F": lambda m: m.push(float(m.line())), b"G": lambda m: m.push(struct.unpack(">d", m.read(8))[0]),
    b"S": _string, b"T": _latin(4), b"U": _latin(1),
    b"V": lambda m: m.push(m.line().decode("raw-unicode-escape").encode("utf-8", "backslashreplace").decode()),
    b"X": _text(4), b"\x8c": _text(1), b"\x8d": _text(8), b"B": _bytes(4), b"C": _bytes(1), b"\x8e": _bytes(8),
    b"\x96": _bytes(8), b"\x97": _buffers, b"\x98": lambda _m: None,
    b")": lambda m: m.push(()), b"t": lambda m: m.push(tuple(m.since_mark())), b"\x85": _tuple(1), b"\x86": _tuple(2),
    b"\x87": _tuple(3), b"]": lambda m: m.container([]), b"l": lambda m: m.container(m.since_mark()),
    b"}": lambda m: m.container({}), b"d": _dictionary, b"\x8f": lambda m: m.container(set()),
    b"\x91": lambda m: m.container(frozenset(m.key(value) for value in m.since_mark())),
    b"a": _append, b"e": _appends, b"\x90": _appends, b"s": _set_item, b"u": _set_items, b"b": _build,
    b"c": _global, b"\x93": _stack_global, b"R": _reduce, b"\x81": _reduce, b"\x92": _new_with_names, b"i": _instance,
    b"o": _object, b"\x82": _extension(1), b"\x83": _extension(2), b"\x84": _extension(4),
    b"P": lambda m: _persistent(m, m.line().decode("ascii", "backslashreplace")),
    b"Q": lambda m: _persistent(m, m.stack.pop()),
    b"p": lambda m: _put(m, int(m.line()[:20])), b"q": lambda m: _put(m, m.number(1)),
    b"r": lambda m: _put(m, m.number(4)), b"\x94": lambda m: _put(m, len(m.memo)),
    b"g": lambda m: m.push(m.memo[int(m.line()[:20])]), b"h": _get(1), b"j": _get(4),
}  # fmt: skip


def loads(data: bytes, names: dict[str, int], persistent: Callable[[Any], Any] | None = None) -> Any:
    """`load` of bytes."""
    return load(io.BytesIO(data), len(data), names, persistent)
