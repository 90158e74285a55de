"""Strangers' words (names of backbones, cells, files; reasons) made fit for each target, where each is written."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from markupsafe import Markup

from backbench.printable import printable

_LIMIT = 10_000  # characters: of a command or a reason; a row's name has far fewer
_MARKDOWN = re.compile(
    r"""
    [\\`*|$]                    # escapes, code, emphasis, columns, formulas
    | ~~                        # struck out
    | (?<![^\W_])_ | _(?![^\W_])  # emphasis; within a word an underscore is one
    | \](?=[(\[:])              # a link's text
    | !(?=\[)                   # a picture
    | (?<=:)//                  # an address that would become a link
    | (?<=\bwww)\.
    """,
    re.VERBOSE | re.IGNORECASE,
)
_AT_START = re.compile(r"^([-+#>]|\d+(?=[.)](\s|$)))")  # a list, a heading, a quotation
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def plain(text: object) -> str:
    """One line without anything that a terminal obeys."""
    return printable(text, _LIMIT)


def markdown(text: object) -> str:
    """Text within a line of Markdown that is shown as it is: no markup, no HTML, no link, no formula, no column."""
    words = printable(" ".join(str(text).split()), _LIMIT)
    words = _MARKDOWN.sub(lambda found: "".join(f"\\{c}" for c in found[0]), words)
    return re.sub(r"&(?=#|\w+;)", "&amp;", words).replace("<", "&lt;")


def item(text: object) -> str:
    """`markdown` for what a line or the item of a list begins with: no list, heading or quotation of its own."""
    return _AT_START.sub(lambda found: f"{found[0]}\\" if found[0].isdigit() else f"\\{found[0]}", markdown(text))


def csv(text: object) -> str:
    """A cell that no spreadsheet takes for a formula."""
    words = str(text)
    shown = printable(words, _LIMIT)
    return f"'{shown}" if words.startswith(_FORMULA) or words.lstrip().startswith(_FORMULA) else shown


def row(cells: Iterable[object]) -> list[object]:
    """A row of a CSV file: words fit for a spreadsheet, numbers unrounded, nothing where there is no number."""
    return [csv(cell) if isinstance(cell, str) else repr(cell) if isinstance(cell, float) else cell for cell in cells]


def html(value: Any) -> Any:
    """For a template that escapes by itself: what a browser would not show, or show in another order, is spelled out."""
    return value if isinstance(value, Markup) else printable(str(value), _LIMIT)
