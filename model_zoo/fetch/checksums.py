"""Checksums of files, computed once per process while a file does not change: a dry run and the load after it share them."""

from __future__ import annotations

from pathlib import Path

_seen: dict[tuple[str, str, int, int, int, int, int], str] = {}


def sha256(path: Path) -> str:
    """Return the SHA-256 of a regular file, hexadecimal. Raises BackbenchError: it cannot be read."""
    return _cached("sha256", path)


def md5(path: Path) -> str:
    """Return the MD5 of a regular file, hexadecimal. Raises BackbenchError: it cannot be read."""
    return _cached("md5", path)


def _cached(algorithm: str, path: Path) -> str:
    from backbench.files.hashes import file_digest

    try:
        found = path.stat()
    except OSError:
        return file_digest(path, algorithm)  # raises with our words
    key = (
        algorithm,
        str(path.absolute()),
        found.st_dev,
        found.st_ino,
        found.st_size,
        found.st_mtime_ns,
        found.st_ctime_ns,
    )
    if key not in _seen:
        _seen[key] = file_digest(path, algorithm)
    return _seen[key]
