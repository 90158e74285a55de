"""A file to fetch, and the failures that are worth another attempt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

LARGEST = 4 << 30  # bytes of a file whose size nobody announced


class Passing(Exception):
    """A failure that may pass: a lost connection, a server that is busy."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait  # seconds that the server asks for


@dataclass(frozen=True)
class Request:
    """A file to fetch, and the checks on its bytes."""

    url: str
    part: Path  # where the bytes arrive; a `.json` beside it notes whose they are
    label: str
    show: Callable[[int, int | None], None] = lambda _done, _total: None  # called with (bytes there, bytes in all)
    largest: int = LARGEST  # bytes
    accept: Callable[[bytes], None] = lambda _head: None  # raises when the first bytes are not of such a file
    advice: str = "fetch it by other means"  # what to do when the server cannot be reached or refuses
