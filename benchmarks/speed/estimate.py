"""Predicted beside measured seconds of rehearsed cells on the rendered scenes: does `run --estimate` fit?

Each cell is a process of its own, as a run starts it, and is calibrated for just before. A round is a cell, so the range of
the ratio is over cells. `estimate` compares processor time with one thread, which other programs hardly change;
`estimate_wall` compares wall time with the threads and workers of a run, and needs a machine without other programs.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from benchmarks.speed import Comparison, Row, Setup, processor_seconds

_CELLS = ("imagenet_knn", "imagenet_linear", "imagenet_uniformity", "imagenet_semi10", "voc07_svm", "voc0712_detection",
          "voc0712_detection_mmdet")  # fmt: skip
_ROOT = Path(__file__).resolve().parents[2]


def estimate(setup: Setup, *, wall: bool) -> Comparison:
    """Seconds of smoke cells with a ResNet-18: detectors at their rehearsal's sizes, the others at 96 px."""
    import torch

    from backbench.data import demo
    from backbench.data.catalogue import DataPlaces
    from benchmarks.plan import load_cell
    from benchmarks.price.cells import work_of
    from benchmarks.price.machines import find
    from benchmarks.subjects import find_subjects
    from model_zoo.choice import NO_CHOICE

    places = DataPlaces(demo.root())
    backbone = find_subjects((), "random:resnet18", 1, NO_CHOICE)[0].backbones[0]
    environment = dict(os.environ)
    if not wall:
        torch.set_num_threads(1)
        environment["OMP_NUM_THREADS"] = "1"
    names, pairs = [], []
    for name in _CELLS[:1] if setup.quick else _CELLS:
        words = _words(name, setup)
        cell = load_cell(name, words, "smoke")
        if cell.task.missing(cell.config, places):
            continue
        machine = find("here", backbone, getattr(cell.config, "size", None) or backbone.input.size, again=True)
        parts = work_of(cell, backbone, places)
        predicted = sum(map(machine.seconds if wall else machine.cpu_seconds, parts))
        measured = _measured(name, words, environment, wall=wall)
        pairs.append((machine.start(parts[0] + parts[1]) + predicted, measured))
        names.append(f"{name} {pairs[-1][0] / measured:.2f}")
    unit = "wall" if wall else "processor"
    setting = f"{', '.join(names)} (smoke, resnet18), {setup.device}, {torch.get_num_threads()} threads"
    return Comparison(f"{unit} seconds of a cell", setting, "predicted", "measured", pairs, "times the measured time")


def _words(name: str, setup: Setup) -> list[str]:
    """The fields of a cell: few and small images, of which the scenes have enough."""
    if "detection" in name:
        return ["train=trainval"]
    return [f"size={32 if setup.quick else 96}", f"data.limit={64 if setup.quick else 256}"]


def _measured(name: str, words: list[str], environment: dict[str, str], *, wall: bool) -> float:
    """Seconds of the cell's process."""
    from backbench.data import demo

    with tempfile.TemporaryDirectory(prefix="backbench-speed-") as out:
        command = [sys.executable, str(_ROOT / "benchmarks" / "run_one.py"), "--ckpt", "random:resnet18", "--cell", name,
                   "--profile", "smoke", "--data-root", str(demo.root()), "--out", out, *words]  # fmt: skip
        clock = time.perf_counter if wall else processor_seconds
        start = clock()
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if done.returncode:
            raise RuntimeError(f"{name}: {done.stderr.strip().splitlines()[-1:]}")
        return clock() - start


ROWS = tuple(
    Row(
        name,
        f"predicted beside measured {clock} seconds of smoke cells",
        partial(estimate, wall=name == "estimate_wall"),
        at_most=1.3,
        at_least=1 / 1.3,
    )
    for name, clock in (("estimate", "processor"), ("estimate_wall", "wall"))
)
