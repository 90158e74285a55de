"""Predicted beside measured processor seconds of rehearsed cells on the rendered scenes: does `run --estimate` fit?

Each cell is a process of its own, as a run starts it, and is calibrated for just before. Processor time, with one thread,
is compared: other programs hardly change it. A round is a cell, so the range of the ratio is over cells.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.speed import Comparison, Row, Setup, processor_seconds

_CELLS = ("imagenet_knn", "imagenet_linear", "imagenet_uniformity", "imagenet_semi10")
_ROOT = Path(__file__).resolve().parents[2]


def estimate(setup: Setup) -> Comparison:
    """Processor seconds of smoke cells with a ResNet-18 at 96 px."""
    import torch

    from backbench.data import demo
    from backbench.data.catalogue import DataPlaces
    from benchmarks.plan import load_cell
    from benchmarks.price.machines import find
    from benchmarks.price.work import work_of
    from benchmarks.subjects import find_subjects
    from model_zoo.choice import NO_CHOICE

    size = 32 if setup.quick else 96
    places = DataPlaces(demo.root())
    (subject,) = find_subjects((), "random:resnet18", 1, NO_CHOICE)
    torch.set_num_threads(1)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pairs = []
    for name in _CELLS[:1] if setup.quick else _CELLS:
        words = [f"size={size}", "data.limit=64" if setup.quick else "data.limit=256"]
        cell = load_cell(name, words, "smoke")
        machine = find("here", subject.backbones[0], size, again=True)
        predicted = machine.start_s + sum(map(machine.cpu_seconds, work_of(cell, subject.backbones[0], places)))
        with tempfile.TemporaryDirectory(prefix="backbench-speed-") as out:
            command = [sys.executable, str(_ROOT / "benchmarks" / "run_one.py"), "--ckpt", "random:resnet18", "--cell", name,
                       "--profile", "smoke", "--data-root", str(demo.root()), "--out", out, *words]  # fmt: skip
            start = processor_seconds()
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
            if done.returncode:
                raise RuntimeError(f"{name}: {done.stderr.strip().splitlines()[-1:]}")
            pairs.append((predicted, processor_seconds() - start))
    setting = f"{', '.join(_CELLS[: len(pairs)])} (smoke, resnet18, {size} px), {setup.device}"
    return Comparison("processor seconds of a cell", setting, "predicted", "measured", pairs, "times the measured time")


ROWS = (
    Row(
        "estimate",
        "predicted beside measured processor seconds of smoke cells",
        estimate,
        at_most=1.3,
        at_least=1 / 1.3,
    ),
)
