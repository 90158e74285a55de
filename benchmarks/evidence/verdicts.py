"""Decide claims from records: paired differences over seeds of the pretraining and test items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from backbench.errors import BackbenchError
from benchmarks.evidence import CELLS, UNTRAINED
from benchmarks.evidence.runs import Run
from benchmarks.evidence.study import Budget, Study
from benchmarks.records import store
from benchmarks.records.schema import Result
from benchmarks.report.scores import NoScores, Scores
from benchmarks.statistics.crossed import Crossed, crossed

Word = Literal["holds", "does not hold here", "not decided"]


@dataclass(frozen=True)
class Verdict:
    """One claim under one budget, in one cell."""

    claim: int  # its place in the study
    budget: Budget
    cell: str
    interval: Crossed  # points of better - worse

    @property
    def word(self) -> Word:
        """`holds` if the interval lies above 0, `does not hold here` if it lies below, else `not decided`."""
        if self.interval.low > 0:
            return "holds"
        return "does not hold here" if self.interval.high < 0 else "not decided"


class Measured:
    """The records of a results folder, by the name of the model."""

    def __init__(self, results: Path) -> None:
        self._records: dict[tuple[str, str], list[Result]] = {}
        items = {}
        for path, record in store.read_paths([results]).items():
            if record.status != "ok":
                continue
            untrained = record.backbone.source.startswith("random:")
            name = f"{UNTRAINED}-{record.seed}" if untrained else record.backbone.name
            self._records.setdefault((name, record.cell), []).append(record)
            items[record.identity()] = store.items_path(path)
        self._scores = Scores(items)

    def right(self, name: str, cell: str) -> np.ndarray:
        """(N,) per test item, the percentage of a run's evaluations that are right; `untrained-SEED` is a run too.

        Raises:
            BackbenchError: it is not measured, or its scores per item are not stored.
        """
        records = self._records.get((name, cell))
        if not records:
            raise BackbenchError(f"{name} has no result of {cell}: run the study to its end")
        try:
            answers = [self._scores.answers(record, record.primary or "", 0) for record in records]
        except NoScores as reason:
            raise BackbenchError(f"{name} {cell}: {reason}") from None
        return 100.0 * np.mean([answer.values for answer in answers], axis=0)


def arms(study: Study, runs: Sequence[Run], budget: Budget) -> Mapping[str, list[str]]:
    """Return the names of every arm's runs, by seed, with the untrained networks."""
    found = {arm: [run.name for run in runs if run.budget == budget and run.arm == arm] for arm in study.arms}
    return {**found, UNTRAINED: [f"{UNTRAINED}-{seed}" for seed in range(study.seeds)]}


def decide(study: Study, runs: Sequence[Run], measured: Measured) -> list[Verdict]:
    """Return a verdict for every claim, budget and cell.

    Raises:
        BackbenchError: a run is not measured.
    """
    found = []
    for number, claim in enumerate(study.claims):
        for budget in study.budgets:
            names = arms(study, runs, budget)
            for cell in CELLS:
                sides = [
                    np.stack([measured.right(name, cell) for name in names[arm]]) for arm in (claim.better, claim.worse)
                ]
                found.append(Verdict(number, budget, cell, crossed(sides[0] - sides[1])))
    return found
