"""Errors that are for the user to read: one clear sentence, no traceback."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterable

from core.printable import visible


class BackbenchError(Exception):
    """Something the user can act on. Entry points print its kind and text (what, where, what to do) and exit with 2."""

    kind = "error"

    def __init__(self, text: str = "") -> None:
        # Names in it come from strangers: no escape code reaches a terminal, no half of a character a record.
        super().__init__(visible(text))


class ConfigError(BackbenchError):
    """A configuration that does not fit its model."""

    kind = "configuration error"


class DataError(BackbenchError):
    """A data set that is absent, half there or unreadable."""

    kind = "data error"


class CheckpointError(BackbenchError):
    """A checkpoint file that cannot be trusted to hold the backbone it should."""

    kind = "checkpoint error"


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the closest of `known`, or the whole list when nothing is close."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known: {', '.join(known)}" if known else ""


def run_cli(main: Callable[[], int | None]) -> None:
    """Run an entry point: a BackbenchError becomes one line on stderr and exit code 2, Ctrl-C exits with 130."""
    try:
        code = main() or 0
    except BackbenchError as error:
        print(f"{error.kind}: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # `| head` closed our output: nothing left to say
        sys.stderr.close()
        code = 0
    sys.exit(code)
