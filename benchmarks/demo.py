"""Pretrain on rendered scenes, measure the backbone and a random one, and write the report. Needs no data."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from backbench.files import folder_option


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
    p.add_argument("--all", action="store_true", help="also the second detection engine, and a Mask R-CNN on both")
    return p


def main(argv: list[str] | None = None, *, prog: str = "backbench demo") -> int:
    """Pretrain if no finished run exists, then run the demo suite; returns the exit code."""
    args = parser(prog).parse_args(argv)
    from benchmarks import run_all
    from pretrain import run as pretraining

    suite = "demo_all" if args.all else "demo"
    run, results = args.out / "runs" / "demo", args.out / "results" / "demo"
    if code := pretraining.main(["--out", str(run), "--resume"]):
        return code
    words = ["--ckpt", f"msbreg={run / 'model.pth'}", "--suite", suite, "--baselines", "random", "--out", str(results)]
    return run_all.main([*words, "--jobs", str(_jobs())])


def _jobs() -> int:
    """Cells at a time: one per GPU; without one two, since two detectors on a core each end sooner than one after the other."""
    import torch

    return torch.cuda.device_count() or min(2, os.cpu_count() or 1)
