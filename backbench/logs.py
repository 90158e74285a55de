"""Keep what libraries log and warn about in a file, and keep the terminal quiet about it."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from backbench.distributed import is_main
from backbench.printable import visible

# Loggers of the engines: the file gets their INFO lines, the terminal only their errors.
ENGINES = ("detectron2", "fvcore", "iopath", "mmcv", "mmdet", "mmengine", "mmseg")


def write_line(log: Path, text: str) -> None:
    """Append `text` with the time, without control characters; a full disk does not end the work."""
    with contextlib.suppress(OSError), log.open("a", encoding="utf-8", errors="replace") as file:
        file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {_clean(text)}\n")


def _clean(text: str) -> str:
    return "\n".join(visible(line) for line in text.splitlines())  # a traceback has several lines


class _ToFile(logging.Handler):
    """Opens the file for each record, so that a folder can be moved or removed meanwhile."""

    def __init__(self, log: Path) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        write_line(self._log, f"{record.levelname} {record.name}: {self.format(record)}")


class _ToTerminal(logging.Handler):
    """Prints to the current sys.stderr, which a progress bar may have replaced."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):
            print(_clean(self.format(record)), file=sys.stderr, flush=True)


@contextlib.contextmanager
def kept(log: Path) -> Iterator[None]:
    """Write log records and Python warnings of rank 0 to `log`; restore every logger at the end.

    The terminal shows what it showed before, except that the engines' loggers print errors only.
    """
    with contextlib.ExitStack() as stack:
        to_file = _ToFile(log)
        root = logging.getLogger()
        if not root.handlers:  # else nothing would be printed: logging has a handler now
            _attach(stack, root, _ToTerminal(logging.WARNING))
        if is_main():
            _attach(stack, root, to_file)
            stack.enter_context(_warnings_in(log))
        for name in ENGINES:
            logger = logging.getLogger(name)
            stack.callback(setattr, logger, "propagate", logger.propagate)
            stack.callback(logger.setLevel, logger.level)
            logger.propagate = False
            logger.setLevel(logger.level or logging.INFO)
            _attach(stack, logger, _ToTerminal(logging.ERROR))
            if is_main():
                _attach(stack, logger, to_file)
        yield


def _attach(stack: contextlib.ExitStack, logger: logging.Logger, handler: logging.Handler) -> None:
    logger.addHandler(handler)
    stack.callback(logger.removeHandler, handler)


@contextlib.contextmanager
def _warnings_in(log: Path) -> Iterator[None]:
    """Write shown warnings to `log` too. A nested `catch_warnings` that records them keeps them for itself."""
    show = warnings.showwarning

    def also(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        write_line(log, f"{category.__name__} {filename}:{lineno}: {message}")
        show(message, category, filename, lineno, file, line)

    warnings.showwarning = also
    try:
        yield
    finally:
        warnings.showwarning = show
