"""Commands as processes on this machine, a few at a time: one per GPU, or sharing the cores."""

from __future__ import annotations

import os
import subprocess
from collections import deque
from collections.abc import Sequence

from backbench import processes


def run(commands: Sequence[Sequence[str]], *, jobs: int, gpus: int, gpus_each: int = 1) -> list[int]:
    """Run every command, `jobs` at a time, with `gpus_each` GPUs each; returns their exit codes in order.

    A stop signal ends the running commands; these and the ones not yet started get exit code 130. The child processes
    end when this process ends, even if it is killed. Call it from the main thread.
    """
    jobs = min(jobs, max(1, len(commands)))
    waiting, free = deque(enumerate(commands)), deque(range(jobs))
    running: dict[int, tuple[int, subprocess.Popen[bytes]]] = {}
    codes = [processes.INTERRUPTED] * len(commands)
    with processes.stop_on_signal("stopping (again: at once)") as asked:
        try:
            while not asked and (waiting or running):
                while waiting and free:
                    number, command = waiting.popleft()
                    slot = free.popleft()
                    running[number] = slot, processes.start(command, _environment(slot, jobs, gpus, gpus_each))
                for number, (slot, process) in list(running.items()):
                    if (code := process.poll()) is not None:
                        del running[number]
                        free.append(slot)
                        codes[number] = processes.INTERRUPTED if asked else code
                processes.pause()
        finally:
            processes.end(process for _, process in running.values())
    return codes


def _environment(slot: int, jobs: int, gpus: int, gpus_each: int) -> dict[str, str]:
    environment = processes.alone(os.environ)
    if gpus:
        visible = environment.get("CUDA_VISIBLE_DEVICES")
        devices = visible.split(",") if visible else [str(i) for i in range(gpus)]
        mine = [devices[(slot * gpus_each + i) % len(devices)] for i in range(min(gpus_each, len(devices)))]
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
    elif jobs > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    return environment
