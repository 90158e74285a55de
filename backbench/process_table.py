"""Other processes of this machine, by their numbers. Imports nothing heavy."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def status(number: int) -> list[str]:
    """Return the fields of /proc/NUMBER/stat after the command: state, parent, ... Raises OSError if they are absent."""
    text = Path(f"/proc/{number}/stat").read_text(encoding="utf-8", errors="replace")
    return text.rpartition(")")[2].split()


def start_of(number: int) -> str:
    """Return when a process started, in the system's own unit; empty if it has ended, "alive" on systems without /proc.

    Two processes that had the same number one after the other differ in it.
    """
    try:
        fields = status(number)
        return "" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        if sys.platform == "linux":
            return ""
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return ""
    except OSError:
        pass
    return "alive"
