"""Turn the places that a text names into links (addresses, GitHub repositories, the paper), and `words` into code."""

from __future__ import annotations

import re

from markupsafe import Markup
from markupsafe import escape as escaped

from benchmarks.report import escape

PAPERS = {"MSBReg": "https://arxiv.org/abs/2207.03552"}

_PLACE = re.compile(
    r"""
    (?P<url>https?://[^\s<>"')\]]+[^\s<>"')\].,;:])
    | (?<![\w./@-])(?P<repository>[A-Za-z][\w-]*/[A-Za-z][\w.-]*[\w-])(?:@(?P<commit>[0-9a-f]{7,40}))?(?=$|[\s;,)#:'])
    | \b(?P<paper>MSBReg)(?=\s(?:Table|section)\b|$)
    | `(?P<code>[^`]+)`
    """,
    re.VERBOSE,
)
_FILE = re.compile(r"\.(py|md|ya?ml|json|txt|sh|ipynb)$")  # `eval/knn.py` is a file, not a repository


def linked(text: object) -> Markup:
    """Return the text as HTML with a link for every place that it names; words in backquotes are code."""
    words = escape.plain(text)
    parts: list[Markup] = []
    end = 0
    for found in _PLACE.finditer(words):
        if (made := _made(found)) is not None:
            parts += [escaped(words[end : found.start()]), made]
            end = found.end()
    return Markup("").join([*parts, escaped(words[end:])])


def _made(found: re.Match[str]) -> Markup | None:
    """Return what stands for a found place; None for a file's name, which looks like a repository."""
    if found["code"]:
        return Markup("<code>{}</code>").format(found["code"])
    repository, commit = found["repository"] or "", found["commit"]
    if found["url"]:
        address = found["url"]
    elif found["paper"]:
        address = PAPERS[found["paper"]]
    elif _FILE.search(repository) or repository.count("/") != 1:
        return None
    else:
        address = f"https://github.com/{repository}" + (f"/tree/{commit}" if commit else "")
    return Markup('<a href="{}" rel="noreferrer">{}</a>').format(address, found[0])
