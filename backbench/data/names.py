"""Check names of image files in lists, and explain why one may not be found."""

from __future__ import annotations

import posixpath
import unicodedata
from collections.abc import Collection, Sequence
from pathlib import Path

from backbench.errors import DataError
from backbench.printable import printable


def spelled_otherwise(names: Collection[str], there: Collection[str]) -> str:
    """Return an addition for a sentence on absent names if files differ only in how accents are written; else ''."""
    odd = [name for name in names if not name.isascii()]
    if not odd:
        return ""
    known = {unicodedata.normalize("NFC", name) for name in there}
    alike = sum(unicodedata.normalize("NFC", name) in known for name in odd)
    return (
        f"; {alike} of them there with accents written otherwise (Unicode NFC and NFD): rename the files"
        if alike
        else ""
    )


def check_paths(file: Path, paths: Sequence[str], *, lines: bool = False) -> None:
    """Raise DataError if a list names a file outside its folder, or one file twice in any spelling.

    Args:
        lines: each line of the file is a path, so that errors can name the line.
    """
    first: dict[str, str] = {}
    for number, path in enumerate(paths, start=1):
        name, where = posixpath.normpath(path), f"{file}:{number}" if lines else str(file)
        if name.startswith("/") or name == ".." or name.startswith("../"):
            raise DataError(f"{where}: '{printable(path)}' leads out of the images' folder; write paths relative to it")
        if name in first:
            other = "" if first[name] == path else f", as '{printable(first[name])}'"
            raise DataError(f"{where}: '{printable(path)}' is listed before{other}: there twice; remove one")
        first[name] = path
