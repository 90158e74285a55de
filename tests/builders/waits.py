"""Wait for what another process does, and ask whether it still runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path


def wait_for(done: Callable[[], bool], within: float, *, every: float = 0.02) -> None:
    """Ask until it is done; fails after `within` seconds."""
    deadline = time.monotonic() + within
    while not done():
        assert time.monotonic() < deadline, "a hang"
        time.sleep(every)


def is_running(number: int) -> bool:
    """Whether a process of this machine has not ended."""
    try:
        return ") Z" not in Path(f"/proc/{number}/stat").read_text()
    except OSError:
        return False
