"""A file that has arrived in part: whose bytes it holds, so that parts of two versions are never joined."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from backbench.errors import writing


@dataclass(frozen=True)
class Note:
    """Whose bytes a part holds."""

    validator: str  # a strong ETag or a Last-Modified
    total: int | None


def forget(part: Path) -> None:
    """Delete a part and the note of whose bytes it holds."""
    part.unlink(missing_ok=True)
    _beside(part).unlink(missing_ok=True)


def _beside(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _validator_of(headers: Mapping[str, str]) -> str:
    """A strong ETag, else Last-Modified, else nothing: a weak ETag does not promise equal bytes."""
    etag = headers.get("etag", "")
    return etag if etag and not etag.startswith("W/") else headers.get("last-modified", "")


def begin(part: Path, url: str, headers: Mapping[str, str], total: int | None) -> None:
    """Note whose bytes follow; a part of an older answer is deleted first."""
    part.unlink(missing_ok=True)  # never bytes of one file under the note of another
    note = {"url": url, "validator": _validator_of(headers), "total": total}
    with writing(part):
        _beside(part).write_text(json.dumps(note), encoding="utf-8")


def noted(part: Path, url: str) -> Note | None:
    """The validator that lets the server resume only the same bytes; None: begin at 0."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        found = json.loads(_beside(part).read_text(encoding="utf-8"))
        if found["url"] == url and isinstance(found["validator"], str) and found["validator"]:
            return Note(found["validator"], found.get("total"))
    return None


def is_same(note: Note, headers: Mapping[str, str], total: int | None) -> bool:
    """Whether the answer to a range names the file that the part is of."""
    if note.validator not in (headers.get("etag"), headers.get("last-modified")):
        return False
    return note.total is None or total is None or note.total == total
