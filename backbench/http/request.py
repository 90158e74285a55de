"""A file to fetch, and the failures that are worth another attempt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

LARGEST = 4 << 30  # bytes of a file of unknown size


class Passing(Exception):
    """A failure that may pass: a lost connection, a busy server."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait  # seconds that the server asks for


@dataclass(frozen=True)
class Request:
    """A file to fetch, and the checks on its bytes."""

    url: str
    part: Path  # receives the bytes; a `.json` beside it notes their version
    label: str
    show: Callable[[int, int | None], None] = lambda _done, _total: None  # called with (bytes received, total bytes)
    largest: int = LARGEST  # bytes
    accept: Callable[[bytes], None] = lambda _head: None  # raises when the first bytes are not those of such a file
    advice: str = "fetch it by other means"  # ends the error when the server cannot be reached or refuses
