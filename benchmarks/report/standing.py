"""Where backbones stand over all cells: average ranks over data sets, and how often each is told from each other one."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.report.comparison import headlines_alike
from benchmarks.report.intervals import Intervals
from benchmarks.report.noise import Noise
from benchmarks.report.table import Column, Row, Table
from benchmarks.statistics.marks import Tally, tally
from benchmarks.statistics.ranks import Ranking, ranking

_MOST = 16  # rows of the matrix, the best on average: a pair is tested in every cell


@dataclass(frozen=True)
class Standing:
    """Rows that have every headline number of one kind, best first."""

    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    data: tuple[str, ...]  # the data sets, which are the units of the ranks
    ranking: Ranking | None  # of all whole rows, in the order of `rows`; None for a single data set
    wins: tuple[tuple[Tally | None, ...], ...]  # of the first rows: by row and column; None on the diagonal


def standing(table: Table, columns: Sequence[Column], noise: Noise) -> Standing | None:
    """Return where the rows stand over headline columns of one kind; None for fewer than two whole rows or two columns.

    Cells of one data set share its images, so they count once for the ranks, by their mean.
    """
    whole = [row for row in table.rows if all(column in row.values for column in columns)]
    if min(len(whole), len(columns)) < 2:
        return None
    rows = sorted(whole, key=lambda row: -statistics.fmean(row.values[column].mean for column in columns))
    data = sorted({column.dataset for column in columns})
    scores = [
        [statistics.fmean(row.values[c].mean for c in columns if c.dataset == name) for row in rows] for name in data
    ]
    ranks = ranking(np.array(scores)) if len(data) > 1 else None
    if ranks is not None:
        order = sorted(range(len(rows)), key=ranks.ranks.__getitem__)
        rows = [rows[place] for place in order]
        ranks = Ranking(tuple(ranks.ranks[place] for place in order), ranks.blocks, ranks.p, ranks.critical)
    shown = rows[:_MOST]
    return Standing(tuple(rows), tuple(columns), tuple(data), ranks, _wins(shown, columns, noise))


def _wins(rows: Sequence[Row], columns: Sequence[Column], noise: Noise) -> tuple[tuple[Tally | None, ...], ...]:
    """Test every pair once, the better row first."""
    wins: list[list[Tally | None]] = [[None] * len(rows) for _ in rows]
    for (i, one), (j, other) in itertools.combinations(enumerate(rows), 2):
        found = _tally(one, other, columns, noise)
        wins[i][j], wins[j][i] = found, Tally(found.lost, found.won, found.level)
    return tuple(map(tuple, wins))


def standings(table: Table, columns: Sequence[Column], intervals: Intervals) -> list[Standing]:
    """Return the standing of each kind of headline numbers: results, rehearsals and a demo's are never ranked together."""
    try:
        made = (standing(table, alike, Noise(intervals)) for alike in headlines_alike(columns))
        return [found for found in made if found]
    finally:
        intervals.save()


def _tally(one: Row, other: Row, columns: Sequence[Column], noise: Noise) -> Tally:
    sides = [(column, one.values[column], other.values[column]) for column in columns]
    return tally([(a.mean - b.mean, noise.p(column.metric, a, b)) for column, a, b in sides])
