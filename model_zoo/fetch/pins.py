"""`pins.json` in the cache: checksums of first downloads, for files without a published checksum."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from backbench.errors import BackbenchError
from backbench.files.folders import cache_folder

_LARGEST = 64 << 20  # bytes, about 300,000 pins


def folder() -> Path:
    """Return the folder of downloads and `pins.json`."""
    return cache_folder() / "zoo"


def file() -> Path:
    """Return the path of `pins.json`."""
    return folder() / "pins.json"


def read() -> dict[str, dict[str, Any]]:
    """Return the pins by name (of an entry, or a URL): {"sha256", "size", "url"}.

    Raises:
        BackbenchError: the file cannot be read, or is malformed.
    """
    path = file()
    advice = "remove it, and every file is pinned at its next download"
    if not path.exists():
        return {}
    if not path.is_file():
        raise BackbenchError(f"{path}: is not a file; {advice}")
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError("too large")
        known = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise BackbenchError(f"{path}: cannot be read ({str(error)[:100] or type(error).__name__}); {advice}") from None
    if not isinstance(known, dict):
        raise BackbenchError(f"{path}: contains a {type(known).__name__}, not pins by name; {advice}")
    for name, pin in known.items():
        if not isinstance(pin, dict) or not isinstance(pin.get("sha256"), str) or len(pin["sha256"]) != 64:
            raise BackbenchError(f"{path}: the pin of {name[:100]!r} has no sha256; {advice}")
    return known


def add(name: str, sha256: str, size: int, url: str) -> None:
    """Pin the file downloaded under a name."""
    from backbench.files.atomic import atomic_write_text, make_folder
    from backbench.files.locks import held

    with held(make_folder(folder()) / ".pins.lock"):
        known = {**read(), name: {"sha256": sha256, "size": size, "url": url}}
        atomic_write_text(file(), json.dumps(known, indent=2, sort_keys=True) + "\n")
