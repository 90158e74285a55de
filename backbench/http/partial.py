"""Notes beside a partly fetched file: which version its bytes are, so that parts of two versions are never joined."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from backbench.errors import writing


@dataclass(frozen=True)
class Note:
    """The version of the file that a part belongs to."""

    validator: str  # a strong ETag or a Last-Modified
    total: int | None


def forget(part: Path) -> None:
    """Delete a part and its note."""
    part.unlink(missing_ok=True)
    _beside(part).unlink(missing_ok=True)


def _beside(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _validator_of(headers: Mapping[str, str]) -> str:
    """Return a strong ETag, else Last-Modified, else nothing: a weak ETag does not promise equal bytes."""
    etag = headers.get("etag", "")
    return etag if etag and not etag.startswith("W/") else headers.get("last-modified", "")


def begin(part: Path, url: str, headers: Mapping[str, str], total: int | None) -> None:
    """Write the note for the bytes that follow; an older part is deleted first."""
    part.unlink(missing_ok=True)  # never bytes of one file under the note of another
    note = {"url": url, "validator": _validator_of(headers), "total": total}
    with writing(part):
        _beside(part).write_text(json.dumps(note), encoding="utf-8")


def noted(part: Path, url: str) -> Note | None:
    """Return the note with which the server resumes only the same bytes; None: begin at 0."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        found = json.loads(_beside(part).read_text(encoding="utf-8"))
        if found["url"] == url and isinstance(found["validator"], str) and found["validator"]:
            return Note(found["validator"], found.get("total"))
    return None


def is_same(note: Note, headers: Mapping[str, str], total: int | None) -> bool:
    """Whether the answer to a range is about the same version as the part."""
    if note.validator not in (headers.get("etag"), headers.get("last-modified")):
        return False
    return note.total is None or total is None or note.total == total
