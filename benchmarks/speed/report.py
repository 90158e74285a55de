"""CPU seconds of `backbench report` on 10,000 records, against a budget of 10; also on 100 and 1,000, for its growth.

The records are copies of measured ones under other names, weights and seeds. They have no arrays per test item in the row
`report`. In `report_scores` they have, of the published test sets' sizes, and each number has an interval of its difference
to a random row: the second report, which finds the intervals in their file, is against a budget of 15.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.speed import Comparison, Growth, Row, Setup, in_turn

BUDGET_S = 10.0
SECOND_S = 15.0
_MEASURED = Path(__file__).resolve().parent.parent / "measured" / "photos"
_SEEDS = 5
_FILES = 8  # different arrays of a protocol; every record's file is a link to one of them

Linked = Mapping[
    str, list[tuple[Path, dict[str, float]]]
]  # by protocol: files of arrays, and the metrics that they give


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


def report_scores(setup: Setup) -> Comparison:
    """The same with scores per test item: the first report computes the intervals, the others find them."""
    count = 40 if setup.quick else 10_000
    setup = dataclasses.replace(setup, rounds=min(setup.rounds, 3))
    with tempfile.TemporaryDirectory() as folder:
        linked = write_arrays(Path(folder) / "arrays", *((100, 300) if setup.quick else (50_000, 4_952)))
        place = write_records(Path(folder) / "results", count, linked)
        first = _render(place)
        pairs = in_turn(setup, lambda: _render(place), lambda: SECOND_S)
    setting = f"{count:,} records with scores per test item, the second time (the first took {first:.0f})"
    return Comparison("CPU seconds to render", setting, "backbench report", "budget", pairs, "of the budget")


def write_records(out: Path, count: int, linked: Linked | None = None) -> Path:
    """Write `count` records: all cells of a measured backbone, for as many names as it takes.

    Args:
        linked: arrays to put beside the records. The first name is then a random network's, and deterministic protocols have
            one seed; without arrays every cell has five.
    """
    known = [
        (path.parent.name, json.loads(path.read_text())) for path in sorted(_MEASURED.glob("msbreg-*/*/seed0.json"))
    ]
    cells = {cell: record for cell, record in known if record["status"] == "ok"}
    pairs = [(cell, seed) for cell in sorted(cells) for seed in range(_seeds(cells[cell], linked))]
    for number in range(count):
        name, rest = divmod(number, len(pairs))
        cell, seed = pairs[rest]
        record = json.loads(json.dumps(cells[cell]))
        record["seed"] = seed
        who = f"model{name:04d}" if name or not linked else "random:resnet18"
        record["backbone"] |= {"name": who, "weights_sha256": f"{name:064x}", "named": True}
        for metric in record["metrics"].values():
            if metric["unit"] == "%":
                metric["value"] = (metric["value"] + 0.1 * number) % 100
        folder = out / f"model{name:04d}-00000000" / cell
        folder.mkdir(parents=True, exist_ok=True)
        for file, values in (linked or {}).get(record["task"]["name"], [])[number % _FILES :][:1]:
            os.link(file, folder / f"seed{seed}.items.npz")
            for metric in {record["primary"], "top5"} & set(record["metrics"]):
                record["metrics"][metric]["value"] = values.get(metric, values["headline"])
        (folder / f"seed{seed}.json").write_text(json.dumps(record, indent=1))
    return out


def _seeds(record: Mapping[str, Any], linked: Linked | None) -> int:
    from transfer import tasks

    return 1 if linked and tasks.get(record["task"]["name"]).deterministic else _SEEDS


def write_arrays(out: Path, images: int, multi_label: int) -> Linked:
    """Write arrays of every protocol that stores some: 1,000 classes, or 20 with several labels per image."""
    import numpy as np

    from transfer.metrics import area_ap, class_aps

    out.mkdir(parents=True)
    found: dict[str, list[tuple[Path, dict[str, float]]]] = {"knn": [], "linear_probe": [], "voc07_svm": []}
    labels = np.arange(images, dtype=np.int32) % 1000
    present = np.where(np.random.default_rng(0).random((multi_label, 20)) < 0.1, 1, -1).astype(np.int8)
    for number in range(_FILES):
        rng = np.random.default_rng(number)
        best = (labels[:, None] + rng.integers(1, 1000, (images, 5))) % 1000
        right = rng.random(images)
        place = np.where(right < 0.5, 0, rng.integers(1, 5, images))
        kept = right < 0.8
        best[kept, place[kept]] = labels[kept]
        values = {"headline": 100 * float((best[:, 0] == labels).mean()),
                  "top5": 100 * float((best == labels[:, None]).any(axis=1).mean())}  # fmt: skip
        for task, shown in (("knn", 1), ("linear_probe", 5)):
            file = out / f"{task}{number}.npz"
            np.savez_compressed(file, best=best[:, :shown].astype(np.int32), labels=labels)
            found[task].append((file, values))
        scores = (rng.normal(size=present.shape) + present).astype(np.float32)
        file = out / f"voc07_svm{number}.npz"
        np.savez_compressed(file, scores=scores, labels=present)
        found["voc07_svm"].append((file, {"headline": 100 * float(class_aps(area_ap, scores, present).mean())}))
    return {**found, "semi_supervised": found["linear_probe"]}


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
    Row(
        "report_scores",
        "CPU seconds of the second `backbench report` on 10,000 records with scores, of 15",
        report_scores,
        at_most=1.0,
        missing=without_records,
    ),
)
