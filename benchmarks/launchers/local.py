"""Cells as processes on this machine, a few at a time: one per GPU, or sharing the cores."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue


def run(commands: Sequence[Sequence[str]], *, jobs: int, gpus: int, gpus_each: int = 1) -> list[int]:
    """Run every command, `jobs` at a time, with `gpus_each` GPUs each; returns their exit codes in order.

    Ctrl-C ends the running ones; they and those not started yet have exit code 130.
    """
    slots: SimpleQueue[int] = SimpleQueue()
    for slot in range(jobs):
        slots.put(slot)
    running: dict[int, subprocess.Popen[bytes]] = {}
    stopped: list[bool] = []

    def one(command: Sequence[str]) -> int:
        slot = slots.get()
        try:
            if stopped:
                return 130
            process = subprocess.Popen(command, env=_environment(slot, jobs, gpus, gpus_each), start_new_session=True)
            running[slot] = process
            code = process.wait()
            return 130 if stopped else code
        finally:
            running.pop(slot, None)
            slots.put(slot)

    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(one, command) for command in commands]
        try:
            return [future.result() for future in futures]
        except KeyboardInterrupt:
            stopped.append(True)
            for process in list(running.values()):
                process.terminate()
            return [future.result() for future in futures]


def _environment(slot: int, jobs: int, gpus: int, gpus_each: int) -> dict[str, str]:
    environment = dict(os.environ)
    if gpus:
        visible = environment.get("CUDA_VISIBLE_DEVICES")
        devices = visible.split(",") if visible else [str(i) for i in range(gpus)]
        mine = [devices[(slot * gpus_each + i) % len(devices)] for i in range(min(gpus_each, len(devices)))]
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
    elif jobs > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    return environment
