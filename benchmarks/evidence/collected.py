"""Collect the numbers of a finished study from its runs and their records: the JSON that `tables` renders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from backbench import jsonl
from benchmarks.evidence import CELLS
from benchmarks.evidence import runs as trainings
from benchmarks.evidence.runs import Run
from benchmarks.evidence.study import Study
from benchmarks.evidence.tables import MONITORED
from benchmarks.evidence.verdicts import Measured, arms, decide
from pretrain.plan import plan_steps


def collect(name: str, study: Study, runs: Sequence[Run], out: Path, images: int) -> dict[str, Any]:
    """Return the numbers of a finished study. `images` is the number of training images.

    Raises:
        BackbenchError: a run is not measured.
    """
    measured = Measured(out / "results")
    verdicts = [asdict(verdict) | {"verdict": verdict.word} for verdict in decide(study, runs, measured)]
    found = []
    for budget in study.budgets:
        for arm, names in arms(study, runs, budget).items():
            own = [run for run in runs if run.budget == budget and run.arm == arm]
            found.append(
                {
                    "budget": budget,
                    "arm": arm,
                    "steps": plan_steps(own[0].config, images).total if own else 0,
                    "views": len(own[0].config.method.queries()) if own else 0,
                    "runs": names,
                    "monitored": [_last(trainings.folder(out, run)) for run in own],
                    **{cell: [float(measured.right(run, cell).mean()) for run in names] for cell in CELLS},
                }
            )
    config = runs[0].config
    setting = {"images": images, "batch": config.optim.batch, "size": config.data.size}
    return {
        "study": name,
        **study.model_dump(mode="json"),
        "setting": setting | {"backbone": config.model.backbone},
        "results": found,
        "verdicts": verdicts,
    }


def _last(folder: Path) -> dict[str, float]:
    """The last monitored values of a pretraining."""
    found: dict[str, float] = {}
    for _, line in jsonl.records(folder / "metrics.jsonl"):
        found |= {key: float(line[key]) for key in MONITORED if line and key in line}
    return found
