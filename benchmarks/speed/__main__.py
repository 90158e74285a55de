"""Measure speed on this machine: each figure next to a peer, the bare limit or a goal in the same run."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
from pathlib import Path
from typing import Any

from backbench.errors import BackbenchError, ConfigError, explain, nearest, run_cli
from backbench.files import folder_option
from backbench.processes import usable_cores
from benchmarks import speed
from benchmarks.speed import Row, Setup


def parser(prog: str = "backbench speed") -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(prog=prog, description=__doc__)
    p.add_argument("--list", action="store_true", help="list the rows with their goals, then exit")
    p.add_argument("--rows", metavar="a,b", help="only these rows (default: all)")
    p.add_argument("--quick", action="store_true", help="tiny sizes: shows that every row runs, not how fast it is")
    p.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda where there is one")
    p.add_argument(
        "--images", type=Path, metavar="DIR", help="photographs for the rows that read images (default: rendered ones)"
    )
    p.add_argument("--rounds", type=int, default=7, metavar="N", help="rounds in turn; the median counts (default: 7)")
    p.add_argument("--out", type=folder_option, metavar="DIR", help="write one JSON a row into this folder")
    return p


def main(argv: list[str] | None = None, *, prog: str = "backbench speed") -> int:
    """Measure each row in a process of its own; a goal that is missed is printed; it changes no exit code.

    Returns 1 when a row broke.
    """
    args = parser(prog).parse_args(argv)
    if args.rounds < 1:
        raise BackbenchError(f"--rounds {args.rounds}: give 1 or more")
    if args.images and not args.images.is_dir():
        raise BackbenchError(f"--images {args.images}: no such folder")
    known = speed.rows()
    if args.list:
        for row in known.values():
            print(f"{row.name:<22} {row.what}{f'; goal {row.goal()}' if row.goal() else ''}")
        return 0
    chosen = [_row(name, known) for name in args.rows.split(",")] if args.rows else list(known.values())
    setup = Setup(_device(args.device), args.quick, args.images, args.rounds)
    broken = 0
    for row in chosen:
        if gap := row.missing(setup):
            print(f"{row.name}: skipped: {gap}", flush=True)
            continue
        record = _apart(row, setup)
        broken += "error" in record
        print(f"{row.name}: {record.get('error') or speed.sentence(record)}", flush=True)
        if args.out and "error" not in record:
            from backbench.files.atomic import atomic_write_text

            atomic_write_text(args.out / f"{row.name}.json", json.dumps(record, indent=1) + "\n")
    return int(broken > 0)


def measure(name: str, setup: Setup) -> dict[str, Any]:
    """The record of a row, measured in this process; `error` where it broke."""
    row = speed.rows()[name]
    try:
        figures = row.run(setup).figures()
    except Exception as error:
        return {"error": explain(error) or f"{type(error).__name__}: {error}"}
    judged = row.goal() and not setup.quick and row.judged_on in ("any", setup.device)
    goal = {"goal": row.goal(), "met": row.met(figures["ratio"]["median"])} if judged else {}
    return {"name": name, **figures, **goal, "quick": setup.quick, "machine": machine(setup.device)}


def machine(device: str) -> dict[str, Any]:
    """The device's name, threads and versions, and the load of the machine: others may have been computing beside."""
    import torch

    from benchmarks.records import provenance

    name = torch.cuda.get_device_name() if device != "cpu" else _processor()
    return {
        "device": name,
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "commit": provenance.commit()[0],
        "packages": provenance.packages(),
    }


def _processor() -> str:
    """The processor's name; Linux tells it in a file only."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _row(name: str, known: dict[str, Row]) -> Row:
    if name not in known:
        raise ConfigError(f"--rows {name}: unknown row{nearest(name, known)}")
    return known[name]


def _device(asked: str | None) -> str:
    import torch

    if asked == "cuda" and not torch.cuda.is_available():
        raise BackbenchError("--device cuda: torch sees no GPU here; leave the option out, or check `nvidia-smi`")
    return asked or ("cuda" if torch.cuda.is_available() else "cpu")


def _apart(row: Row, setup: Setup) -> dict[str, Any]:
    """The record of a row, measured in a new process: threads and memory of one row are no matter of the next."""
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    run = importlib.import_module("benchmarks.speed.__main__").measure  # under this name the new process finds it
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            found: dict[str, Any] = pool.submit(run, row.name, setup).result()
            return found
        except BrokenProcessPool:
            return {"error": "its process died: out of memory?"}


if __name__ == "__main__":
    run_cli(main, single=True)
