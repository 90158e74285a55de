"""Run commands as a user does, with limits on time and memory; returns their output and exit code."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
HANG = 60.0  # seconds; a hang is longer than 20 on an idle machine, and tests run side by side


def run(
    *argv: str,
    env: dict[str, str] | None = None,
    memory: int | None = None,
    cwd: Path = ROOT,
    within: float = HANG,
) -> subprocess.CompletedProcess[str]:
    """Run `python ARGV` in this checkout with its output as text; raises TimeoutExpired after `within` seconds.

    Args:
        env: variables set on top of the test's own.
        memory: bytes of data that the process may use; beyond that it gets a MemoryError.
    """

    def bounded() -> None:
        if memory is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))

    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **(env or {})}
    return subprocess.run(
        [sys.executable, *argv], cwd=cwd, env=environment, capture_output=True, text=True, errors="replace",
        timeout=within, preexec_fn=bounded, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def ends_in_a_sentence(*argv: str, **bounds: object) -> str:
    """Return the sentence on stderr of a command that must end with code 2 and without a traceback."""
    done = run(*argv, **bounds)
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    last = done.stderr.strip().splitlines()[-1]
    assert "error: " in last, done.stderr
    return last
