"""Locks between processes; a waiting process names the holder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from backbench.errors import writing
from backbench.printable import printable

_FIRST_WORD_S, _NEXT_WORD_S = 3.0, 30.0  # between two messages of a waiting process
_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp")  # as mkstemp names them for `atomic_write`


@contextlib.contextmanager
def held(lock: Path, *, timeout: float = -1) -> Iterator[None]:
    """Hold a lock file. Waits for it, at most `timeout` seconds if given, with messages that name the holder.

    Removes the temporary files that killed processes left in the folder.

    Raises:
        BackbenchError: the lock file cannot be written.
        filelock.Timeout: another process held the lock for the whole time.
    """
    from filelock import FileLock, Timeout

    one, card = FileLock(str(lock)), Path(f"{lock}.holder")
    waited, pause = 0.0, _FIRST_WORD_S
    with writing(lock):
        while True:
            step = pause if timeout < 0 else min(pause, max(0.0, timeout - waited))
            try:
                one.acquire(timeout=step)
                break
            except Timeout:
                waited, pause = waited + step, _NEXT_WORD_S
                if 0 <= timeout <= waited:
                    raise
                with contextlib.suppress(OSError):  # nobody can read it: the wait continues
                    print(f"waiting for {holder(lock)}", file=sys.stderr, flush=True)
    with contextlib.suppress(OSError):  # only information for waiting processes
        card.write_text(f"{_identity()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n", encoding="utf-8")
    clear_temporary(Path(lock).parent)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            card.unlink()
        one.release()


def clear_temporary(folder: Path) -> list[Path]:
    """Remove temporary files of `atomic_write` whose process was killed; returns them.

    A file that is still being written is locked by its writer and stays.
    """
    removed = []
    for path in folder.glob(".*.tmp") if folder.is_dir() else ():
        if not _TEMPORARY.fullmatch(path.name) or path.is_symlink() or not path.is_file():
            continue
        with contextlib.suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            removed.append(path)
    return removed


def holder(lock: Path) -> str:
    """Return a sentence: who holds a lock, since when, and what to do about it."""
    try:
        who = Path(f"{lock}.holder").read_text(encoding="utf-8", errors="replace").strip()[:500]
    except OSError:
        who = ""
    number = who.removeprefix("process ").partition(" ")[0]
    cure = f"; wait until it ends, or end it: `kill {number}`" if number.isdigit() else "; wait until it ends"
    return f"{printable(who) or 'another process'}, which holds {printable(lock)}{cure}"


def _identity() -> str:
    words = " ".join(Path(word).name if "/" in word else word for word in sys.argv[:2])
    return f"process {os.getpid()} on {socket.gethostname()} ({words})"
