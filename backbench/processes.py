"""Process endings: our processes end with the process that started them, and on signals. Imports nothing heavy.

A signal never raises an exception in the middle of an import or of garbage collection. Outside `stop_on_signal` the
operating system ends the process at once; this is safe at any moment, because every file is written whole or not at all.
Inside, the first signal is noted for the loop to check, and the next one ends the process at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import FrameType

from backbench import elastic

INTERRUPTED = 130  # the exit code after a signal that asked to stop
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))
SPINS = "1000"  # rounds in which a waiting thread looks again before it sleeps
_PARENT = "BACKBENCH_PARENT"  # environment of a process of ours that is to end with the one of this number
IN_OUR_JOB = "BACKBENCH_JOB"  # environment of a rank that `backbench.job` started
_JOB = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK"),
    *("ROLE_NAME", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", IN_OUR_JOB),
)  # what torchrun, and we, tell a rank
_GRACE_S = 10.0  # between SIGTERM and SIGKILL
_POLL_S = 0.05
_PR_SET_PDEATHSIG = 1  # linux/prctl.h

_forking: tuple[int, bool] = (0, False)  # the process that forks, and whether its main thread does
_began = False
_under_torchrun = elastic.RUN_ID in os.environ  # before `begin` may drop it


def begin(*, single: bool = False) -> None:
    """Call at an entry point: signals end this process at once, it ends with its starter, and its forks end with it.

    Args:
        single: drop the job's variables from the environment.
    """
    global _began
    for number in STOP_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup keeps its effect
            signal.signal(number, signal.SIG_DFL)
    parent = os.environ.pop(_PARENT, "")  # the processes that this one starts do not inherit it
    if elastic.RUN_ID in os.environ:  # first: torchrun's agent passes its own BACKBENCH_PARENT to its ranks
        end_with_parent(os.getppid())
        elastic.begin()
    elif parent.isascii() and parent.isdigit():
        end_with_parent(int(parent))
    if single:
        for name in set(os.environ) - set(alone(os.environ)):
            del os.environ[name]
    wait_briefly()
    if sys.platform == "linux":  # Python 3.14's way puts a server between us and our workers: both would outlive us
        multiprocessing.set_start_method("fork", force=True)
    if not _began:
        _began = True
        os.register_at_fork(before=_before_fork, after_in_child=_after_fork)


def wait_briefly() -> None:
    """Before torch is imported: its threads wait for each other in a short loop and then sleep.

    libgomp's default loop has 300,000 rounds. It wastes the processor's time when other programs compute, and a training
    step can take 20 times as long and more (`backbench speed --rows waiting_beside_1`). Settings of the user stay.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)


def usable_cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_under_torchrun() -> bool:
    """Whether torchrun started this process or an ancestor of it."""
    return _under_torchrun


def alone(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without the variables of a job, for a process that is not one of its ranks."""
    return {n: v for n, v in environment.items() if n not in _JOB and not n.startswith("TORCHELASTIC_")}


def end_with_parent(parent: int) -> None:
    """End this process, by SIGKILL, when process `parent`, which started it, has ended."""
    if sys.platform == "linux":
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    if os.getppid() != parent:  # it had ended before we asked
        os.kill(os.getpid(), signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    assert _LIBC is not None, "of Linux alone"
    _LIBC.prctl(option, value, 0, 0, 0)


_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGKILL)


def _before_fork() -> None:
    global _forking
    _forking = os.getpid(), threading.current_thread() is threading.main_thread()


def _after_fork() -> None:
    for number in STOP_SIGNALS:
        if callable(signal.getsignal(number)):  # the parent's own notes
            signal.signal(number, signal.SIG_IGN)
    parent, by_main_thread = _forking
    if by_main_thread:  # Linux signals the end of the parent's thread, not of its process
        end_with_parent(parent)


def start(
    command: Sequence[str], environment: Mapping[str, str], *, ignored: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """Start one of our entry points in a new session; it ends when this process ends, for any reason.

    Call it from the main thread.

    Args:
        ignored: signals that the new process ignores.
    """

    def ignore() -> None:
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)

    own = {**environment, _PARENT: str(os.getpid())}
    return subprocess.Popen(command, env=own, start_new_session=True, preexec_fn=ignore if ignored else None)


def end(started: Iterable[subprocess.Popen[bytes]], *, grace: float | None = None) -> None:
    """End processes of `start`: SIGTERM, then SIGKILL after `grace` (10) seconds. Waits until they have ended."""
    alive = [process for process in started if process.poll() is None]
    grace = _GRACE_S if grace is None else grace
    for process in alive if grace else ():
        process.terminate()
    deadline = time.monotonic() + grace
    while any(process.poll() is None for process in alive) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    for process in alive:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # the whole session, what it started included
        process.wait()


def pause() -> None:
    """Wait a moment before the started processes are checked again."""
    time.sleep(_POLL_S)


@contextlib.contextmanager
def stop_on_signal(message: str = "") -> Iterator[list[int]]:
    """Append the first SIGINT, SIGTERM or SIGHUP to the given list, with a message; the next one ends the process.

    Ignored signals stay ignored. Outside the main thread nothing changes: the caller handles signals.
    """
    asked: list[int] = []
    before: dict[int, object] = {}

    def note(number: int, _frame: FrameType | None) -> None:
        for taken in before:
            signal.signal(taken, signal.SIG_DFL)
        if asked:
            os.kill(os.getpid(), number)
        asked.append(number)
        if message:
            with contextlib.suppress(OSError):  # a print here could interrupt another print
                os.write(2, f"{message}\n".encode())

    if threading.current_thread() is threading.main_thread():
        for number in STOP_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.getsignal(number)
                signal.signal(number, note)
    try:
        yield asked
    finally:
        for noted, handler in before.items():
            signal.signal(noted, handler)  # type: ignore[arg-type]
