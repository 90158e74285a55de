"""Progress and messages: rich bars on a terminal, plain lines elsewhere, silence off rank 0."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from core.distributed import is_main

T = TypeVar("T")
_LINE_EVERY_S = 15.0


def say(message: str) -> None:
    """One line of information on stderr, from rank 0 only: stdout is for results."""
    if is_main():
        print(message, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """`75` -> `1m15s`; at most two units."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"


def track(items: Iterable[T], *, total: int, label: str) -> Iterator[T]:
    """Iterate with a bar and an estimate of the time left; without a terminal, a plain line every 15 s."""
    if not is_main():
        yield from items
        return
    if sys.stderr.isatty():
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
            yield from bar.track(items, total=total, description=label)
        return
    start = last = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last >= _LINE_EVERY_S:
            last = now
            say(f"{label}: {done} of {total}, {duration((now - start) / done * (total - done))} left")
