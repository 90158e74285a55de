"""CPU seconds of `backbench report` on 10,000 records, against a budget of 10; also on 100 and 1,000, for its growth.

The records are copies of measured ones under other names, weights and seeds; they have no arrays per test item.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import tempfile
import time
from pathlib import Path

from benchmarks.speed import Comparison, Growth, Row, Setup, in_turn

BUDGET_S = 10.0
_MEASURED = Path(__file__).resolve().parent.parent / "measured" / "photos"
_SEEDS = 5


def report(setup: Setup) -> Comparison:
    """Read the records, make the tables, plots and page, and write them."""
    sizes = [10, 20, 40] if setup.quick else [100, 1_000, 10_000]
    setup = dataclasses.replace(setup, rounds=min(setup.rounds, 3))  # a round takes ten seconds
    with tempfile.TemporaryDirectory() as folder:
        places = {size: write_records(Path(folder) / str(size), size) for size in sizes}
        pairs = in_turn(setup, lambda: _render(places[sizes[-1]]), lambda: BUDGET_S)
        points = [(float(size), _render(place)) for size, place in places.items()]
    setting = f"{sizes[-1]:,} records"
    growth = Growth("result files", points)
    return Comparison("CPU seconds to render", setting, "backbench report", "budget", pairs, "of the budget", growth)


def write_records(out: Path, count: int) -> Path:
    """Write `count` records: five seeds of every cell of a measured backbone, for as many names as it takes."""
    known = [
        (path.parent.name, json.loads(path.read_text())) for path in sorted(_MEASURED.glob("msbreg-*/*/seed0.json"))
    ]
    cells = {cell: record for cell, record in known if record["status"] == "ok"}
    for number in range(count):
        name, rest = divmod(number, len(cells) * _SEEDS)
        cell, seed = sorted(cells)[rest // _SEEDS], rest % _SEEDS
        record = json.loads(json.dumps(cells[cell]))
        record["seed"] = seed
        record["backbone"] |= {"name": f"model{name:04d}", "weights_sha256": f"{name:064x}", "named": True}
        for metric in record["metrics"].values():
            if metric["unit"] == "%":
                metric["value"] = (metric["value"] + 0.1 * number) % 100
        folder = out / f"model{name:04d}-00000000" / cell
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"seed{seed}.json").write_text(json.dumps(record, indent=1))
    return out


def _render(folder: Path) -> float:
    from benchmarks.report.__main__ import main

    start = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        main([str(folder)])
    return time.process_time() - start


def without_records(_setup: Setup) -> str | None:
    """Why there is nothing to copy, or None."""
    return None if _MEASURED.is_dir() else f"no folder {_MEASURED}; run it from a checkout of the repository"


ROWS = (
    Row(
        "report",
        "CPU seconds of `backbench report` on 10,000 records, of 10",
        report,
        at_most=1.0,
        missing=without_records,
    ),
)
