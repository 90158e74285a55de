"""Escape text from outside (names of backbones, cells, files; reasons) for each target format."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from markupsafe import Markup

from backbench.printable import printable

_LIMIT = 10_000  # characters of a command or a reason; names of rows are much shorter
_MARKDOWN = re.compile(
    r"""
    [\\`*|$]                    # escapes, code, emphasis, columns, formulas
    | ~~                        # struck out
    | (?<![^\W_])_ | _(?![^\W_])  # emphasis; an underscore within a word is none
    | \](?=[(\[:])              # a link's text
    | !(?=\[)                   # a picture
    | (?<=:)//                  # an address that would become a link
    | (?<=\bwww)\.
    """,
    re.VERBOSE | re.IGNORECASE,
)
_LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}", "±": r"$\pm$", "–": "--",
    **{c: f"\\{c}" for c in "{}$&#%_"},
}  # fmt: skip
_AT_START = re.compile(r"^([-+#>]|\d+(?=[.)](\s|$)))")  # a list, a heading, a quotation
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def plain(text: object) -> str:
    """Return one line without control characters."""
    return printable(text, _LIMIT)


def markdown(text: object) -> str:
    """Escape text within a line of Markdown: no markup, no HTML, no link, no formula, no column."""
    words = printable(" ".join(str(text).split()), _LIMIT)
    words = _MARKDOWN.sub(lambda found: "".join(f"\\{c}" for c in found[0]), words)
    return re.sub(r"&(?=#|\w+;)", "&amp;", words).replace("<", "&lt;")


def item(text: object) -> str:
    """Escape text at the start of a line or list item: like `markdown`, and no list, heading or quotation."""
    return _AT_START.sub(lambda found: f"{found[0]}\\" if found[0].isdigit() else f"\\{found[0]}", markdown(text))


def latex(text: object) -> str:
    """Escape text for LaTeX: no command, no formula, no comment."""
    return "".join(_LATEX.get(c, c) for c in printable(text, _LIMIT))


def csv(text: object) -> str:
    """Escape a CSV cell so that no spreadsheet reads it as a formula."""
    words = str(text)
    shown = printable(words, _LIMIT)
    return f"'{shown}" if words.startswith(_FORMULA) or words.lstrip().startswith(_FORMULA) else shown


def row(cells: Iterable[object]) -> list[object]:
    """Return a CSV row: escaped text, unrounded numbers, empty cells for missing numbers."""
    return [csv(cell) if isinstance(cell, str) else repr(cell) if isinstance(cell, float) else cell for cell in cells]


def html(value: Any) -> Any:
    """Spell out characters that a browser hides or reorders, for a template that escapes HTML itself."""
    return value if isinstance(value, Markup) else printable(str(value), _LIMIT)
