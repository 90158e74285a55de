"""The torchrun agent that started this process as a rank. Imports nothing heavy."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from pathlib import Path

from backbench.process_table import start_of, status

RUN_ID = "TORCHELASTIC_RUN_ID"
_POLL_S = 1.0

_agent: str | None = None


def begin() -> None:
    """Called by an entry point in a rank: kill this process soon after its agent has ended.

    A shell that the agent started, and that started this process, would outlive the agent, and so would this process.
    """
    global _agent
    number = _find()
    start = start_of(number)
    _agent = f"{socket.gethostname()} {number} {start}"
    if start and number not in (1, os.getppid()):  # its own children are told by the system
        threading.Thread(target=_watch, args=(number, start), daemon=True).start()


def agent() -> str | None:
    """Host, number and start time of the agent, the same for all ranks that it starts; None without torchrun."""
    return _agent


def _find() -> int:
    """The agent's process number: the first process above this one whose environment does not name this rank.

    Where /proc cannot be read it is the parent.
    """
    own = {f"{name}={os.environ[name]}".encode() for name in ("RANK", RUN_ID) if name in os.environ}
    number = os.getppid()
    try:
        while number > 1 and own <= set(Path(f"/proc/{number}/environ").read_bytes().split(b"\0")):
            number = int(status(number)[1])
    except (OSError, IndexError):
        return os.getppid()
    return number


def _watch(number: int, start: str) -> None:
    while start_of(number) == start:
        time.sleep(_POLL_S)
    os.kill(os.getpid(), signal.SIGKILL)
