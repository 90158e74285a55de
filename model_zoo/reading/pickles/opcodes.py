"""The effect of each pickle opcode on the machine: read a value, build a container, name, call, memoise."""

from __future__ import annotations

import codecs
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from model_zoo.reading.pickles.objects import Global, Object

if TYPE_CHECKING:
    from model_zoo.reading.pickles.machine import Machine

_INTEGER = 1024  # longest integer in bytes; Python refuses to print much longer ones


class Malformed(Exception):
    """The bytes are not a pickle, or only a part of one."""


def _whole(data: bytes) -> Any:
    if len(data) > _INTEGER:
        return Object(Global("builtins", "int"), ())
    return int.from_bytes(data, "little", signed=True)


def _decimal(line: bytes) -> Any:
    if line in (b"00", b"01"):
        return line == b"01"
    return int(line) if len(line) < 2 * _INTEGER else Object(Global("builtins", "int"), ())


def _bytes(size: int) -> Callable[[Machine], None]:
    return lambda m: m.push(m.read(m.number(size)))


def _latin(size: int) -> Callable[[Machine], None]:
    """Python 2's strings: text or bytes; latin-1 preserves both."""
    return lambda m: m.push(m.read(m.number(size)).decode("latin-1"))


def _text(size: int) -> Callable[[Machine], None]:
    return lambda m: m.push(m.text(m.number(size)))


def _get(size: int) -> Callable[[Machine], None]:
    return lambda m: m.push(m.memo[m.number(size)])


def _put(m: Machine, at: int) -> None:
    m.memo[at] = m.stack[-1]


def _tuple(count: int) -> Callable[[Machine], None]:
    def build(m: Machine) -> None:
        if len(m.stack) < count:
            raise IndexError("a tuple of missing values")
        m.stack[-count:] = [tuple(m.stack[-count:])]

    return build


def _reduce(m: Machine) -> None:
    arguments = m.stack.pop()
    function = m.stack.pop()
    m.container(m.call(function, arguments))


def _new_with_names(m: Machine) -> None:
    named, arguments, kind = m.stack.pop(), m.stack.pop(), m.stack.pop()
    m.container(Object(kind, arguments, named))


def _instance(m: Machine) -> None:
    module, name = m.line().decode("ascii"), m.line().decode("ascii")
    arguments = tuple(m.since_mark())
    m.container(m.call(m.named(module, name), arguments))


def _object(m: Machine) -> None:
    kind, *arguments = m.since_mark()
    m.container(m.call(kind, tuple(arguments)))


def _global(m: Machine) -> None:
    module = m.line().decode("utf-8", "backslashreplace")
    m.push(m.named(module, m.line().decode("utf-8", "backslashreplace")))


def _stack_global(m: Machine) -> None:
    name, module = m.stack.pop(), m.stack.pop()
    if type(name) is not str or type(module) is not str:
        raise Malformed("a name that is not a string")
    m.push(m.named(module, name))


def _extension(size: int) -> Callable[[Machine], None]:
    """A code of Python's extension registry; never looked up."""
    return lambda m: m.push(m.named("copyreg", f"extension {m.number(size)}"))


def _persistent(m: Machine, identity: Any) -> None:
    m.container(m.persistent(identity) if m.persistent else Object(Global("pickle", "persistent_id"), ()))


def _pop(m: Machine) -> None:
    if m.stack:
        m.stack.pop()
    else:
        m.since_mark()


def _append(m: Machine) -> None:
    value = m.stack.pop()
    m.add(m.stack[-1], [value])


def _appends(m: Machine) -> None:
    values = m.since_mark()
    m.add(m.stack[-1], values)


def _set_item(m: Machine) -> None:
    value, key = m.stack.pop(), m.stack.pop()
    m.set_items(m.stack[-1], [key, value])


def _set_items(m: Machine) -> None:
    flat = m.since_mark()
    m.set_items(m.stack[-1], flat)


def _build(m: Machine) -> None:
    state = m.stack.pop()
    m.state(m.stack[-1], state)


def _dictionary(m: Machine) -> None:
    flat = m.since_mark()
    m.container({})
    m.set_items(m.stack[-1], flat)


def _protocol(m: Machine) -> None:
    version = m.number(1)
    if version > 5:
        raise Malformed(f"protocol {version} of pickles is unknown")


def _frame(m: Machine) -> None:
    if m.number(8) > m.size:
        raise Malformed("truncated: a frame longer than the file")


def _string(m: Machine) -> None:
    line = m.line()
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
        raise Malformed("a string without quotes")
    m.push(codecs.escape_decode(line[1:-1])[0].decode("latin-1"))


def _pop_mark(m: Machine) -> None:
    m.since_mark()


def _buffers(_m: Machine) -> None:
    raise Malformed("its buffers are stored outside it")


TABLE: dict[bytes, Callable[[Machine], None]] = {
    b"\x80": _protocol, b"\x95": _frame, b"(": lambda m: m.mark(), b"0": _pop, b"1": _pop_mark,
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
