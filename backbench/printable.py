"""Make untrusted words (names of tensors, files, classes, backbones) safe for one line of a terminal or table."""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Sequence
from pathlib import PurePath

_ESCAPED = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # control, bidi and zero-width, surrogates, unassigned, line ends
_ITEMS = 3  # of a container


def printable(text: object, limit: int = 200) -> str:
    r"""Return `text` in one line of at most `limit` visible characters; control characters are escaped (`\x1b`, `\n`).

    Any object may be given: containers of any size or depth are shown by their first few items. Letters of all scripts
    stay; Markdown, HTML and CSV need their own escapes as well.
    """
    words = _words(text)
    begin = words[: limit + 1]  # a name of a gigabyte costs as little as a short one
    shown = visible(begin)
    if len(words) <= limit and len(shown) <= limit:
        return shown
    return f"{shown[: max(0, limit - 3)]}..."


def visible(text: object) -> str:
    """Return all of `str(text)` in one line, with terminal control characters escaped."""
    words = str(text)
    return words if words.isprintable() else "".join(_visible(c) for c in words)


def some(names: Sequence[object], *, first: int = 3, counted: bool = True) -> str:
    """Return `5, e.g. a, b, c`, the count and the first names; uncounted, `a, b, c, d, e and 2 more`."""
    if counted:
        return f"{len(names)}, e.g. {', '.join(printable(name) for name in names[:first])}"
    first = max(first, 5)
    shown = ", ".join(printable(name, 80) for name in names[:first])
    return f"{shown} and {len(names) - first} more" if len(names) > first else shown


def _words(value: object) -> str:
    """Return `str(value)` for a scalar, else a short description. Never raises."""
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
    except Exception:  # an unknown class's __str__ may raise anything
        return f"<{type(value).__name__}>"
    return f"<{type(value).__name__}>"


def _item(value: object) -> str:
    """Describe an item of a container; a container within it is shown by its type only."""
    return (
        f"<{type(value).__name__}>" if isinstance(value, list | tuple | dict | set | frozenset) else _words(value)[:80]
    )


def _visible(character: str) -> str:
    if character == " " or unicodedata.category(character) not in _ESCAPED:
        return character
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
