"""Words that come from strangers (names of tensors, files, classes, backbones) made fit for one line of a terminal or table."""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Sequence
from pathlib import PurePath

_ESCAPED = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # control, bidi and zero-width, surrogates, unassigned, line ends
_ITEMS = 3  # of a container


def printable(text: object, limit: int = 200) -> str:
    r"""`text` in one line of at most `limit` visible characters; control characters are spelled out (`\x1b`, `\n`).

    Anything may be given: containers are shown by their first few items, whatever their size or depth. Letters of all
    scripts stay as they are; Markdown, HTML and CSV need their own escapes on top of this.
    """
    words = _words(text)
    begin = words[: limit + 1]  # a name of a gigabyte costs no more than a short one
    shown = "".join(_visible(c) for c in begin)
    if len(words) <= limit and len(shown) <= limit:
        return shown
    return f"{shown[: max(0, limit - 3)]}..."


def visible(text: object) -> str:
    """`str(text)`, all of it in one line, with everything that a terminal would obey spelled out."""
    words = str(text)
    return words if words.isprintable() else "".join(_visible(c) for c in words)


def some(names: Sequence[object], *, first: int = 3, counted: bool = True) -> str:
    """`5, e.g. a, b, c`: how many, and the first ones; uncounted `a, b, c, d, e and 2 more`, of short names."""
    if counted:
        return f"{len(names)}, e.g. {', '.join(printable(name) for name in names[:first])}"
    first = max(first, 5)
    shown = ", ".join(printable(name, 80) for name in names[:first])
    return f"{shown} and {len(names) - first} more" if len(names) > first else shown


def _words(value: object) -> str:
    """`str(value)` where that is a scalar, else a short description; never an exception."""
    try:
        if isinstance(value, str | PurePath | bool | float | BaseException) or value is None:
            return str(value)
        if isinstance(value, bytes | bytearray):
            return repr(bytes(value[:80]))
        if isinstance(value, int):
            return str(value) if value.bit_length() < 200 else f"a whole number of {value.bit_length()} bits"
        if isinstance(value, list | tuple | dict | set | frozenset) and type(value).__module__ == "builtins":
            first = ", ".join(_item(item) for item in itertools.islice(value, _ITEMS))
            return f"a {type(value).__name__} of {len(value)} ({first}{', ...' if len(value) > _ITEMS else ''})"
    except Exception:  # a stranger's __str__ may do anything
        return f"<{type(value).__name__}>"
    return f"<{type(value).__name__}>"


def _item(value: object) -> str:
    """An item of a container: its kind alone where it is a container too."""
    return (
        f"<{type(value).__name__}>" if isinstance(value, list | tuple | dict | set | frozenset) else _words(value)[:80]
    )


def _visible(character: str) -> str:
    if character == " " or unicodedata.category(character) not in _ESCAPED:
        return character
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
