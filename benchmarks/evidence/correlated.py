"""Pairs of a diagnostic and a transfer number, correlated over the backbones that have both."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from backbench.config import digest
from backbench.errors import BackbenchError
from benchmarks.evidence.derived import with_derived
from benchmarks.records.schema import Result
from benchmarks.report.render import data_title, heading
from benchmarks.report.table import Column, Table, gather
from benchmarks.statistics.rank_correlation import Correlation, kendall, spearman

FEWEST = 5  # backbones of a correlation
WITHOUT_LABELS = ("diagnostics", "uniformity")  # tasks


@dataclass(frozen=True)
class Pair:
    """A diagnostic, a transfer number, and how their orders of the same backbones agree."""

    diagnostic: str
    transfer: str
    backbones: tuple[str, ...]  # names
    spearman: Correlation
    kendall: Correlation


def correlate(records: Iterable[Result], resamples: int) -> tuple[list[Pair], list[str]]:
    """Return all pairs of a diagnostic and a transfer number, the best predictor first, and sentences on those left out.

    Raises:
        BackbenchError: there are no diagnostics, no transfer numbers, or too few backbones with both.
    """
    table = gather(with_derived([record for record in records if record.status == "ok"]))
    diagnostics = [column for column in table.columns if column.task in WITHOUT_LABELS]
    transfers = [column for column in table.columns if column.task not in WITHOUT_LABELS and column.primary]
    if not diagnostics or not transfers:
        lacking, cell = ("transfer numbers", "imagenet_knn") if diagnostics else ("diagnostics", "imagenet_diagnostics")
        raise BackbenchError(
            f"the records have no {lacking}: run `backbench run --tasks {cell}` for the same backbones into the same folder"
        )
    pairs: list[Pair] = []
    left_out: list[str] = []
    most = 0
    for transfer in transfers:
        found = []
        for diagnostic in (column for column in diagnostics if column.profile == transfer.profile):
            ours, theirs = _numbers(table, diagnostic), _numbers(table, transfer)
            both = sorted(ours.keys() & theirs.keys())
            most = max(most, len(both))
            pair = _pair(table, diagnostic, transfer, [(ours[key], theirs[key]) for key in both], resamples)
            if isinstance(pair, str):
                left_out.append(pair)
            else:
                found.append(pair)
        pairs += sorted(found, key=lambda pair: -pair.spearman.value)
    if not pairs and most < FEWEST:
        raise BackbenchError(
            f"{most} backbones have both a diagnostic and a transfer number, and a rank correlation needs {FEWEST}: measure "
            f"{FEWEST - most} more (random baselines count with --random)"
        )
    if not pairs:
        raise BackbenchError(f"no rank correlation is defined: {left_out[0]}")
    return pairs, left_out


@dataclass(frozen=True)
class _Number:
    """A backbone's number: the mean over its seeds; larger is better."""

    name: str
    value: float


def _numbers(table: Table, column: Column) -> dict[tuple[str, str, str], _Number]:
    """Return a column's number of each backbone: weights as they were built and fed."""
    sign = 1 if column.higher_is_better else -1
    found: dict[tuple[str, str, str], list[Result]] = {}
    for row in table.rows:
        for record in row.values[column].records if column in row.values else ():
            backbone = record.backbone
            key = backbone.weights_sha256, digest(backbone.arch), digest(backbone.input)
            found.setdefault(key, []).append(record)
    return {
        key: _Number(of[0].backbone.name, sign * sum(r.metrics[column.metric].value for r in of) / len(of))
        for key, of in found.items()
    }


def _pair(
    table: Table, diagnostic: Column, transfer: Column, numbers: Sequence[tuple[_Number, _Number]], resamples: int
) -> Pair | str:
    """Correlate two columns, or return why they cannot be."""
    names = title(diagnostic, table), title(transfer, table)
    words = f"{names[0]} and {names[1]}"
    if len(numbers) < FEWEST:
        return f"{words}: {len(numbers)} backbones have both, and {FEWEST} are needed"
    x, y = (np.array([number.value for number in side]) for side in zip(*numbers, strict=True))
    rho, tau = spearman(x, y, resamples), kendall(x, y, resamples)
    if rho is None or tau is None:
        return f"{words}: all {len(numbers)} backbones have the same number"
    return Pair(*names, tuple(ours.name for ours, _ in numbers), rho, tau)


def title(column: Column, table: Table) -> str:
    """Return cell, metric and what tells the column apart; the data too, unless they are the published ones."""
    return heading(column, table) + ("" if column.is_published else f" ({data_title(column, table)})")
