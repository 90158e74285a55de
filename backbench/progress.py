"""Progress and messages: rich bars on a terminal, plain lines elsewhere, silence off rank 0."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from backbench import logs
from backbench.distributed import is_main
from backbench.printable import visible

T = TypeVar("T")


class _Console(Console):
    """Keep the cursor visible: a hidden one would stay hidden when a signal ends the process."""

    def show_cursor(self, show: bool = True) -> bool:
        return False


_LINE_EVERY_S = 15.0
_prefix = ""
_log: Path | None = None


def say(message: str) -> None:
    """One line of information on stderr, from rank 0 only: stdout is for results."""
    if is_main():
        with contextlib.suppress(OSError):  # the disk is full or the terminal is gone: the work continues
            print(visible(_prefix + message), file=sys.stderr, flush=True)
        if _log is not None:
            logs.write_line(_log, _prefix + message)


@contextlib.contextmanager
def logged(prefix: str, log: Path) -> Iterator[None]:
    """Put `prefix` before every line that `say` prints; `log` gets these lines and the libraries' logs and warnings."""
    global _prefix, _log
    before = _prefix, _log
    _prefix, _log = prefix, log
    try:
        with logs.kept(log):
            yield
    finally:
        _prefix, _log = before


def duration(seconds: float) -> str:
    """`75` -> `1m15s`; at most two units."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"


def track(items: Iterable[T], *, total: int, label: str, size: Callable[[T], int] | None = None) -> Iterator[T]:
    """Iterate with a bar and an estimate of the time left; without a terminal, a plain line every 15 s.

    Args:
        total: the total in `done of total`.
        size: how much an item counts (the images of a batch); one unless given.
    """
    if not is_main():
        yield from items
        return
    if sys.stderr.isatty():
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, TimeRemainingColumn(), console=_Console(stderr=True), transient=True) as bar:
            task = bar.add_task(label, total=total)
            for item in items:
                yield item
                bar.advance(task, size(item) if size else 1)
        return
    start = last = time.monotonic()
    done = 0
    for item in items:
        yield item
        done += size(item) if size else 1
        now = time.monotonic()
        if now - last >= _LINE_EVERY_S and done:
            last = now
            say(f"{label}: {done} of {total}, {duration((now - start) / done * (total - done))} left")


class Transfers:
    """Bars of bytes, one per file, several at once; without a terminal, a plain line per file every 15 s."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        on = is_main() and sys.stderr.isatty()
        self._bars = Progress(
            *columns, TimeRemainingColumn(), console=_Console(stderr=True), transient=True, disable=not on
        )
        self._stopped = threading.Event()

    def __enter__(self) -> Transfers:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def add(self, label: str) -> Callable[[int, int | None], None]:
        """Add a file; call the result with (bytes received, total bytes or None), from any thread.

        After `stop` that call raises KeyboardInterrupt, which ends the thread at its next bytes.
        """
        show = self._shower(label)

        def tell(done: int, total: int | None) -> None:
            if self._stopped.is_set():
                raise KeyboardInterrupt
            show(done, total)

        return tell

    def stop(self) -> None:
        """End every thread that is still transferring."""
        self._stopped.set()

    def _shower(self, label: str) -> Callable[[int, int | None], None]:
        if not self._bars.disable:
            task = self._bars.add_task(label, total=None)
            return lambda done, total: self._bars.update(task, completed=done, total=total, visible=done != total)
        last = time.monotonic()

        def line(done: int, total: int | None) -> None:
            nonlocal last
            if time.monotonic() - last >= _LINE_EVERY_S:
                last = time.monotonic()
                say(f"{label}: {done / 1e6:.0f} MB" + (f" of {total / 1e6:.0f}" if total else ""))

        return line
