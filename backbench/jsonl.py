"""Training logs as lines of JSON, one record each. A kill may cut the last line; another program may add its own lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from backbench.errors import writing
from backbench.files import read_bytes
from backbench.files.atomic import atomic_write_text

_LARGEST = 1 << 30  # bytes: more than any run writes


def records(file: Path, limit: int = _LARGEST) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """Yield every line that is not empty with its record, or None where it is not a JSON object.

    Raises:
        DataError: not a regular file, or larger than `limit` bytes.
    """
    for line in read_bytes(file, limit=limit).decode("utf-8-sig", errors="replace").splitlines():
        if line.strip():
            yield line, _record(line)


def cut(file: Path, key: str, end: int) -> int:
    """Keep the lines whose `key` is a whole number below `end`; returns how many other lines were not records with a `key`.

    The last line is not counted: a kill cuts it. Nothing happens where the file is absent.

    Raises:
        BackbenchError: the file cannot be read or written.
    """
    if not file.exists():
        return 0
    with writing(file):  # a folder in its place, or no permission
        found = list(records(file))
    at = [_whole(record, key) for _, record in found]
    kept = [line for (line, _), number in zip(found, at, strict=True) if number is not None and number < end]
    atomic_write_text(file, "".join(f"{line}\n" for line in kept))
    return sum(number is None for number in at[:-1])


def _record(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _whole(record: dict[str, Any] | None, key: str) -> int | None:
    number = record.get(key) if record else None
    return number if isinstance(number, int) and not isinstance(number, bool) else None
