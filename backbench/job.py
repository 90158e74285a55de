"""Start several processes of this machine as one job, as torchrun does: `python backbench/job.py N SCRIPT ARGUMENTS`.

When one of them fails the others are stopped, and one sentence says which failed and how. Only this file reads the
environment that describes a job (torchrun's RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT, LOCAL_RANK).
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports: a signal ends them without a traceback
    import signal
    import sys
    from pathlib import Path

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # in place of this folder

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from backbench import processes
from backbench.errors import ConfigError, JobError, run_cli

LOST = 75  # exit code of a rank that lost the connection to another one; the launcher reports which one ended
RENDEZVOUS = "BACKBENCH_RENDEZVOUS_S"  # environment: seconds that a process waits for the others of its job
_PATIENCE_S = 300
MOST = 256  # processes on one machine; more are a typing error and would overload it
_FIRST_WORD_S, _NEXT_WORD_S = 5.0, 30.0
_SETTLE_S = 3.0  # a rank that lost another one may end before the other one is seen to end


@dataclass(frozen=True)
class Job:
    """This process's place in a job of several processes."""

    rank: int
    size: int
    address: str  # of rank 0, which the others join
    port: int


def local_rank(environment: Mapping[str, str]) -> int:
    """Return LOCAL_RANK, this process's number on its machine, or 0 where it is not set.

    Raises:
        ConfigError: it is not a rank's number.
    """
    return _number("LOCAL_RANK", environment) if environment.get("LOCAL_RANK") else 0


def from_environment(environment: Mapping[str, str]) -> Job | None:
    """Return the job that torchrun's variables describe; None for a single process or no job.

    Raises:
        ConfigError: a variable is missing or not a number, or they contradict each other.
    """
    given = {name: environment[name] for name in ("RANK", "WORLD_SIZE") if environment.get(name)}
    if not given:
        local_rank(environment)
        return None
    missing = [name for name in ("RANK", "WORLD_SIZE") if name not in given]
    if missing and given.get("WORLD_SIZE") != "1" and given.get("RANK") != "0":
        raise ConfigError(f"{_shown(given)} without {missing[0]}; {_cure(given)}")
    numbers = {name: _number(name, given) for name in given}
    rank, size = numbers.get("RANK", 0), numbers.get("WORLD_SIZE", 1)
    if size < 1 or rank >= size:
        raise ConfigError(f"{_shown(given)} cannot be: ranks are numbered from 0 to WORLD_SIZE - 1; {_cure(given)}")
    local = local_rank(environment)
    if local >= size:
        raise ConfigError(f"LOCAL_RANK={local} of {size} processes cannot be; unset LOCAL_RANK, or start by torchrun")
    if size == 1:
        return None
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not environment.get(name):
            raise ConfigError(f"{_shown(given)} without {name}; {_cure(given)}")
    port = _number("MASTER_PORT", environment)
    if not 0 < port < 2**16:
        raise ConfigError(f"the environment sets MASTER_PORT={port}, which is not a port (1 to 65535); {_cure(given)}")
    return Job(rank, size, environment["MASTER_ADDR"], port)


def _number(name: str, environment: Mapping[str, str]) -> int:
    text = environment[name]
    if not (text.isascii() and text.isdigit()) or len(text) > 9:
        raise ConfigError(f"the environment sets {name}={text[:40]!r}, which is not a number; {_cure([name])}")
    return int(text)


def _shown(given: Mapping[str, str]) -> str:
    return "the environment sets " + ", ".join(f"{name}={text[:40]}" for name, text in given.items())


def _cure(names: Sequence[str] | Mapping[str, str]) -> str:
    return f"for a single process `unset {' '.join(names)}`, for several start by torchrun"


def patience(environment: Mapping[str, str]) -> int:
    """Seconds to wait for the other processes of a job.

    Raises:
        ConfigError: the environment's value is not a number of seconds.
    """
    text = environment.get(RENDEZVOUS, str(_PATIENCE_S))
    if not (text.isascii() and text.isdigit()) or not 0 < int(text) < 10**7:
        raise ConfigError(
            f"the environment sets {RENDEZVOUS}={text[:40]!r}, which is not a number of seconds; unset it"
        )
    return int(text)


@contextlib.contextmanager
def waiting(message: str) -> Iterator[None]:
    """Print a message on stderr while the body waits: after some seconds, then repeatedly. Every rank prints it."""
    done = threading.Event()

    def speak() -> None:
        pause = _FIRST_WORD_S
        while not done.wait(pause):
            with contextlib.suppress(OSError):
                print(message, file=sys.stderr, flush=True)
            pause = _NEXT_WORD_S

    speaker = threading.Thread(target=speak, daemon=True)
    speaker.start()
    try:
        yield
    finally:
        done.set()
        speaker.join()


def is_ours(environment: Mapping[str, str]) -> bool:
    """Whether this process is a rank that `run` started."""
    return environment.get(processes.IN_OUR_JOB) == "1"


def run(command: Sequence[str], count: int, environment: Mapping[str, str]) -> int:
    """Run `count` ranks of a command; returns 0 when all succeed, 130 when a signal asked to stop.

    Raises:
        ConfigError: more ranks than one machine can run.
        JobError: a rank failed and the others were stopped; the sentence says which and how.
    """
    if count > MOST:
        raise ConfigError(f"--nproc {count}: more than {MOST} processes are not meant for one machine, are they?")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "WORLD_SIZE": count,
        "LOCAL_WORLD_SIZE": count,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        processes.IN_OUR_JOB: 1,
    }
    base = {
        "OMP_NUM_THREADS": "1",
        **processes.alone(environment),
        **{name: str(value) for name, value in shared.items()},
    }
    ranks: list[subprocess.Popen[bytes]] = []
    with processes.stop_on_signal() as asked:
        try:
            for rank in range(count):
                ranks.append(processes.start(command, {**base, "RANK": str(rank), "LOCAL_RANK": str(rank)}))
            codes = _wait(ranks, asked)
            if asked:
                _forward(asked[0], ranks)
                return processes.INTERRUPTED
        finally:
            processes.end(ranks, grace=0)  # they cannot finish a step without the rank that ended
    bad = {rank: code for rank, code in enumerate(codes) if code}
    if not bad:
        return 0
    rank, code = next(((r, c) for r, c in bad.items() if c != LOST), next(iter(bad.items())))
    if code == processes.INTERRUPTED:
        return code
    raise JobError(f"rank {rank} of {count} {how(code)}; the other ranks were stopped")


def _wait(ranks: Sequence[subprocess.Popen[bytes]], asked: Sequence[int]) -> list[int | None]:
    """Wait until all ranks have succeeded or one has failed; returns their exit codes, None for those still running."""
    while not asked:
        codes = [process.poll() for process in ranks]
        if None not in codes or any(code not in (None, 0, LOST) for code in codes):
            return codes
        if LOST in codes:  # the rank that caused it has ended, or will within moments
            deadline = time.monotonic() + _SETTLE_S
            while time.monotonic() < deadline and all(process.poll() in (None, 0, LOST) for process in ranks):
                processes.pause()
            return [process.poll() for process in ranks]
        processes.pause()
    return []


def _forward(number: int, ranks: Sequence[subprocess.Popen[bytes]]) -> None:
    """Send the stop signal to the ranks and wait while they write a checkpoint; a second signal ends all."""
    for process in ranks:
        if process.poll() is None:
            process.send_signal(number)
    while any(process.poll() is None for process in ranks):
        processes.pause()


def how(code: int) -> str:
    """Describe how a process ended, from the exit code that `subprocess` gives."""
    if code == -signal.SIGKILL:
        return "was ended by SIGKILL (by hand, or out of memory: `dmesg` says so)"
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}" if -code in set(signal.Signals) else f"ended with {code}"
    if code == LOST:
        return "lost the connection to another rank"
    return f"ended with code {code}, for the reason that it printed"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `N SCRIPT ARGUMENTS`."""
    words = list(sys.argv[1:] if argv is None else argv)
    if len(words) < 2 or not words[0].isdigit() or int(words[0]) < 1:
        raise ConfigError("expected: python backbench/job.py N SCRIPT ARGUMENTS")
    return run([sys.executable, *words[1:]], int(words[0]), os.environ)


if __name__ == "__main__":
    run_cli(main)
