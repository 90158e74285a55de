"""Average rows over cells, and tell which averages are apart over the cells."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.report import literature, paired
from benchmarks.report.literature import Published, published
from benchmarks.report.table import Column, Row, Table, Value
from benchmarks.statistics.marks import marks
from benchmarks.statistics.signs import sign_flip


@dataclass(frozen=True)
class Average:
    """Headline numbers of a row over the cells, and their mean if no cell is missing."""

    row: Row | Published
    values: tuple[Value | None, ...]
    cells: tuple[float | None, ...]  # by cell, each the mean of its columns
    mean: float | None
    mark: str = ""  # "best", "second", "level" or empty; over the cells


def averages(
    table: Table, columns: Sequence[Column], *, with_literature: bool = True, source: str = ""
) -> list[Average]:
    """Average rows over the headline columns in percent; published ones by entry and setting. A gap means no average.

    A cell counts once, however many configurations, engines or data it was measured with: by the mean of its columns.
    """
    rows: list[tuple[Row | Published, list[Value | None]]] = [
        (row, [row.values.get(column) for column in columns]) for row in table.rows
    ]
    if with_literature and all(column.is_published for column in columns):
        grouped: dict[tuple[str, str | None], dict[Column, list[Published]]] = {}
        for column in columns:
            for p in published(column.cell, column.metric, source=source):
                if not p.number.data and p.number.cell == column.cell:  # next to the engine it was measured with
                    grouped.setdefault((p.entry.name, p.number.variant), {}).setdefault(column, []).append(p)
        for cells in grouped.values():
            alone = {column: found[0] for column, found in cells.items() if len(found) == 1}  # two sources: use neither
            if len({column.cell for column in alone}) > 1:
                values = [alone[c].value if c in alone else None for c in columns]
                rows.append((next(iter(alone.values())), values))
    made = [_average(row, values, columns) for row, values in rows if any(values)]
    whole = [average for average in made if average.mean is not None]
    names = iter(marks([a.mean or 0.0 for a in whole], lambda i, j: _over_cells(whole[i], whole[j]), higher=True))
    return [average if average.mean is None else replace(average, mark=next(names)) for average in made]


def _over_cells(one: Average, other: Average) -> float:
    """Return the p-value of a gap over the cells; with fewer than six it is never below 5%."""
    gaps = [(a or 0.0) - (b or 0.0) for a, b in zip(one.cells, other.cells, strict=True)]
    return sign_flip(np.array(gaps), resamples=paired.RESAMPLES)


def _average(row: Row | Published, values: Sequence[Value | None], columns: Sequence[Column]) -> Average:
    """Average over the cells, each by the mean of its columns; a published number counts for one engine only."""
    by_cell: dict[str, list[float | None]] = {}
    for column, value in zip(columns, values, strict=True):
        by_cell.setdefault(literature.filed_under(column.cell), []).append(value.mean if value else None)
    cells = []
    for found in by_cell.values():
        there = [number for number in found if number is not None]
        gap = not there or (len(there) < len(found) and isinstance(row, Row))
        cells.append(None if gap else statistics.fmean(there))
    whole = [mean for mean in cells if mean is not None]
    return Average(row, tuple(values), tuple(cells), statistics.fmean(whole) if len(whole) == len(cells) else None)
