"""Processor seconds of a process until it knows that there is nothing to do, beside the goal of three."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.speed import Comparison, Row, Setup, processor_seconds

_GOAL = 3.0
_ROOT = Path(__file__).resolve().parents[2]
_TWELVE = ("imagenet_knn", "imagenet_linear", "imagenet_semi1", "imagenet_semi10", "imagenet_uniformity", "voc07_svm",
           "voc07_lowshot", "voc0712_detection", "coco_instance_segmentation", "stl10_knn",
           "voc0712_detection_mmdet", "coco_instance_segmentation_mmdet")  # fmt: skip


def dry_run(setup: Setup) -> Comparison:
    """`run --dry-run` of twelve cells on the rendered scenes."""
    from backbench.data import demo

    words = ["-m", "backbench", "run", "--dry-run", "--tasks", ",".join(_TWELVE), "--data-root", str(demo.root())]
    words += ["--baselines", "random:resnet18", "*.data.expect=any", "imagenet_semi*.list=drawn"]
    return _beside_the_goal(setup, "run --dry-run of 12 cells", words)


def warm_cell(setup: Setup) -> Comparison:
    """`run_one` of a cell whose record is there."""
    from backbench.data import demo

    with tempfile.TemporaryDirectory(prefix="backbench-speed-") as out:
        words = [str(_ROOT / "benchmarks" / "run_one.py"), "--ckpt", "random:resnet18", "--cell", "imagenet_knn"]
        words += ["--profile", "smoke", "--data-root", str(demo.root()), "--out", out, "size=32", "data.limit=32"]
        words += ["k=[3]", "headline_k=3", "data.expect=any"]
        return _beside_the_goal(setup, "run_one of a cell that is kept", words)


def _beside_the_goal(setup: Setup, what: str, words: list[str]) -> Comparison:
    pairs = []
    for _ in range(1 + (1 if setup.quick else setup.rounds)):  # the first one fills caches, and is not counted
        start = processor_seconds()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(_ROOT)}
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False, env=environment)
        if done.returncode:
            raise RuntimeError(f"{what}: {' '.join(done.stderr.split())[-300:]}")
        pairs.append((processor_seconds() - start, _GOAL))
    return Comparison("processor seconds of a process", what, "backbench", "goal", pairs[1:], "of the goal")


ROWS = (
    Row("startup_dry_run", "processor seconds of a dry run of twelve cells, against 3", dry_run, at_most=1),
    Row("startup_cell", "processor seconds of a cell's process with nothing to do, against 3", warm_cell, at_most=1),
)
