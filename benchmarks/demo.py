"""Pretrain on rendered scenes, measure the backbone and a random one, and write the report. Needs no data."""

from __future__ import annotations

import argparse
from pathlib import Path

from backbench.files import folder_option
from backbench.processes import INTERRUPTED


def parser(prog: str = "backbench demo") -> argparse.ArgumentParser:
    """Return the parser of the command."""
    p = argparse.ArgumentParser(prog=prog, description=__doc__)
    p.add_argument(
        "--out",
        type=folder_option,
        default=Path(),
        metavar="DIR",
        help="folder for runs/demo and results/demo (default: this one)",
    )
    p.add_argument(
        "--all",
        action="store_true",
        help="also the random network's detector, the second detection engine, a Mask R-CNN on both, and segmentation",
    )
    return p


def main(argv: list[str] | None = None, *, prog: str = "backbench demo") -> int:
    """Pretrain if no finished run exists, then run the demo suite; returns the exit code."""
    args = parser(prog).parse_args(argv)
    from benchmarks import run_all
    from benchmarks.report import __main__ as report
    from pretrain import run as pretraining

    suite = "demo_all" if args.all else "demo"
    run, results = args.out / "runs" / "demo", args.out / "results" / "demo"
    if code := pretraining.main(["--out", str(run), "--resume"]):
        return code
    words = ["--ckpt", f"msbreg={run / 'model.pth'}", "--suite", suite, "--out", str(results)]
    if args.all:
        return run_all.main([*words, "--baselines", "random"])
    # the random network's detector would take the demo beyond ten minutes
    frozen = run_all.main([*words, "--baselines", "random", "--tasks", "imagenet_knn,imagenet_linear"])
    if frozen == INTERRUPTED:
        return frozen
    detector = run_all.main([*words, "--tasks", "voc0712_detection"])
    if detector == INTERRUPTED:
        return detector
    # each of the two runs reported its own cells: the page is of both
    return report.main([str(results), "--curves", f"msbreg={run / 'metrics.jsonl'}"]) or detector or frozen
