"""Time the demo's step when threads wait briefly for each other, and with libgomp's default; alone and with others.

Each side is a process of its own, since libgomp reads its settings once. The steps are taken in turn, and both sides must
end with the same weights.
"""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from backbench.processes import SPINS
from benchmarks.speed import Comparison, Row, Setup, in_turn, step

_NAMES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
_BUSY_THREADS = 2


def beside(setup: Setup, others: int) -> Comparison:
    """Time a step next to `others` processes that keep two threads busy each."""
    with contextlib.ExitStack() as stack:
        ours, theirs = (stack.enter_context(_stepping(setup, spins)) for spins in (SPINS, None))
        setting = ours.recv()
        theirs.recv()
        for _ in range(others):
            stack.enter_context(_process(_keep_busy, (), {}))
        pairs = in_turn(setup, partial(_seconds, ours), partial(_seconds, theirs))
        assert _weights(ours) == _weights(theirs), "the weights of both sides differ"
    busy = f", beside {others} busy process{'es' if others > 1 else ''}" if others else ""
    return Comparison(
        "seconds per step", f"{setting}{busy}{_priority()}", "short wait", "libgomp's wait", pairs, "times as long"
    )


def _priority() -> str:
    """A process with a real-time priority is alone on a machine where others compute."""
    real_time = hasattr(os, "sched_getscheduler") and os.sched_getscheduler(0) in (os.SCHED_FIFO, os.SCHED_RR)
    return ", real-time priority" if real_time else ""


@contextlib.contextmanager
def _stepping(setup: Setup, spins: str | None) -> Iterator[Connection]:
    """A process that takes a step for each True that it is sent, and answers with its seconds."""
    here, there = multiprocessing.get_context("spawn").Pipe()
    environment = {"GOMP_SPINCOUNT": spins} if spins else {}
    if setup.quick:
        environment["OMP_NUM_THREADS"] = "1"  # no thread waits: the row ends within seconds beside any load
    with _process(_take_steps, (there, setup), environment):
        yield here


@contextlib.contextmanager
def _process(target: Any, arguments: tuple[Any, ...], environment: dict[str, str]) -> Iterator[None]:
    """Run a function in a new process, with these settings of threads and no others, until the block ends."""
    before = dict(os.environ)
    for name in (*_NAMES, "OMP_NUM_THREADS"):
        os.environ.pop(name, None)
    os.environ.update(environment)
    try:
        process = multiprocessing.get_context("spawn").Process(target=target, args=arguments, daemon=True)
        process.start()
    finally:
        os.environ.clear()
        os.environ.update(before)
    try:
        yield
    finally:
        process.kill()
        process.join()


def _take_steps(connection: Connection, setup: Setup) -> None:
    import torch

    from backbench.files.hashes import tensors_sha256

    torch.manual_seed(0)
    whole, _, setting = step.sides(setup, "demo", ["optim.batch=8" if setup.quick else "optim.batch=16"])
    connection.send(f"{setting}, {torch.get_num_threads()} threads")
    online: Any = None
    while connection.recv():
        start = time.perf_counter()
        online = whole()
        connection.send(time.perf_counter() - start)
    connection.send(tensors_sha256(online.state_dict()))


def _seconds(connection: Connection) -> float:
    connection.send(True)
    return connection.recv()


def _weights(connection: Connection) -> str:
    connection.send(False)
    return connection.recv()


def _keep_busy() -> None:
    """Two threads that hash without end; hashing releases the GIL."""

    def work() -> None:
        data = bytes(2**20)
        while True:
            hashlib.sha256(data).digest()

    for _ in range(_BUSY_THREADS - 1):
        threading.Thread(target=work, daemon=True).start()
    work()


def _missing(setup: Setup) -> str | None:
    if setup.device != "cpu":
        return "it is about threads on a CPU"
    return None if len(os.sched_getaffinity(0)) > 1 else "one core: no thread waits for another"


ROWS = (
    Row("waiting_alone", "training step with a short wait of threads beside libgomp's default, alone",
        partial(beside, others=0), at_most=1.1, missing=_missing),
    Row("waiting_beside_1", "the same beside a process with two busy threads",
        partial(beside, others=1), at_most=1.0, missing=_missing),
)  # fmt: skip
