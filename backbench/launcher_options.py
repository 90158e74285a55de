"""The options `--launcher` and `--slurm` of every command that starts long work. Imports nothing heavy."""

from __future__ import annotations

import argparse

LAUNCHERS = ("local", "slurm")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add both options; `backbench.slurm.parse` reads the words of `--slurm`."""
    parser.add_argument("--launcher", choices=LAUNCHERS, default="local", help="slurm: submit an array of jobs and "
                        "return; --dry-run prints it")  # fmt: skip
    parser.add_argument("--slurm", action="append", default=[], metavar="'key=value ...'", help="what a job asks for: "
                        "partition, account, qos, constraint, nodes, gpus, cpus, memory, time, timeouts, notice, "
                        "extra.NAME")  # fmt: skip
