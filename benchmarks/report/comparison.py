"""Rank the measured and published rows of each column and compare them with a baseline."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from backbench.errors import BackbenchError, nearest
from benchmarks.report import literature, paired
from benchmarks.report.intervals import Intervals
from benchmarks.report.literature import Published, published
from benchmarks.report.paired import Interval
from benchmarks.report.scores import Items
from benchmarks.report.table import Column, Row, Table, Value


@dataclass(frozen=True)
class Difference:
    """A row minus the baseline, or the reason for a missing interval (published numbers have none) or difference."""

    value: float | None
    interval: Interval | None = None
    why: str = ""


@dataclass(frozen=True)
class Line:
    """A row of one column's comparison."""

    row: Row | Published
    value: Value
    mark: str  # "best", "second" or empty
    flags: tuple[str, ...] = ()  # conditions of a published row that differ here
    difference: Difference | None = None  # None: not asked for, or this is the baseline


@dataclass(frozen=True)
class Comparison:
    """A column with all its rows, measured ones first."""

    column: Column
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Average:
    """Headline numbers of a row over the cells, and their mean if no cell is missing."""

    row: Row | Published
    values: tuple[Value | None, ...]
    mean: float | None


def compare(
    table: Table,
    columns: Sequence[Column],
    items: Items,
    *,
    to: str | None = None,
    with_literature: bool = True,
    source: str = "",
    resamples: int = paired.RESAMPLES,
    folder: Path | None = None,
) -> list[Comparison]:
    """Compare the rows of each column.

    Args:
        items: the files of arrays per test item, by the record's identity.
        to: the baseline: a measured row, or a published entry or method (`NAME@TEXT`: with TEXT in setting or source).
        source: only published rows whose source contains this.
        folder: the folder of results where intervals are kept for the next comparison.

    Raises:
        BackbenchError: the baseline is neither measured nor published for these columns.
    """
    found = {c: published(c.cell, c.metric, source=source) for c in columns}
    if to is not None:
        _refuse_unknown(to, table, [row for rows in found.values() for row in rows])
    intervals, made = Intervals(items, resamples, folder), []
    try:
        for column in columns:
            base = _Baseline(to, table, column, found[column]) if to is not None else None
            made.append(_compared(table, column, found[column] if with_literature else [], base, intervals))
    finally:
        intervals.save()
    return made


def _compared(
    table: Table, column: Column, beside: Sequence[Published], base: _Baseline | None, intervals: Intervals
) -> Comparison:
    """Return a column's rows, each with its difference to the baseline, if there is one."""
    rows: list[Row | Published] = [row for row in table.rows if column in row.values]
    archs = literature.archs_of(table, [column])
    higher = column.higher_is_better
    beside = sorted(beside, key=lambda p: -p.number.value if higher else p.number.value)
    values = {id(row): _value(row, column) for row in (*rows, *beside)}
    marked = _marks(column, rows, beside)
    lines = [
        Line(
            row,
            values[id(row)],
            marked[id(row)],
            literature.flags(row, [column], archs) if isinstance(row, Published) else (),
            base.difference(row, values[id(row)], intervals) if base else None,
        )
        for row in (*rows, *beside)
    ]
    return Comparison(column, tuple(lines))


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
    return [Average(row, tuple(values), _mean(row, values, columns)) for row, values in rows if any(values)]


def headlines(columns: Sequence[Column]) -> list[Column]:
    """Return the columns that can be averaged: headline metrics in percent."""
    return [column for column in columns if column.primary and column.unit == "%" and column.higher_is_better]


def headlines_alike(columns: Sequence[Column]) -> list[list[Column]]:
    """`headlines` by kind: a rehearsal's and a demo's numbers are never averaged with results."""
    kinds: dict[tuple[bool, str], list[Column]] = {}
    for column in headlines(columns):
        kinds.setdefault((column.is_demo, column.profile), []).append(column)
    return list(kinds.values())


def cells_of(columns: Sequence[Column]) -> set[str]:
    """Return the cells that an average counts, on any engine."""
    return {literature.filed_under(column.cell) for column in columns}


def first_random(table: Table) -> str | None:
    """Return the report's baseline: the name of the first random row, or None."""
    return next((row.name for row in table.rows if row.name.startswith("random:")), None)


def _mean(row: Row | Published, values: Sequence[Value | None], columns: Sequence[Column]) -> float | None:
    """Average over the cells, each by the mean of its columns; a published number counts for one engine only."""
    by_cell: dict[str, list[float | None]] = {}
    for column, value in zip(columns, values, strict=True):
        by_cell.setdefault(literature.filed_under(column.cell), []).append(value.mean if value else None)
    each = []
    for found in by_cell.values():
        there = [number for number in found if number is not None]
        if not there or (len(there) < len(found) and isinstance(row, Row)):
            return None
        each.append(statistics.fmean(there))
    return statistics.fmean(each)


def _value(row: Row | Published, column: Column) -> Value:
    return row.value if isinstance(row, Published) else row.values[column]


def _marks(column: Column, rows: Sequence[Row | Published], beside: Sequence[Published]) -> dict[int, str]:
    """Rank all rows together if they are all on the published data; else ours and the literature's separately."""
    same = [row for row in beside if column.is_published and column.profile == "full" and not row.number.data]
    other = [row for row in beside if row not in same]
    marked: dict[int, str] = {}
    for group in ([*rows, *same], other):
        values = [_value(row, column).mean for row in group]
        names = literature.marks(values, higher=column.higher_is_better)
        marked |= {id(row): name for row, name in zip(group, names, strict=True)}
    return marked


def _refuse_unknown(to: str, table: Table, beside: Sequence[Published]) -> None:
    measured = {row.name for row in table.rows}
    if to in measured | {row.label for row in table.rows} or any(row.is_called(to) for row in beside):
        return
    known = measured | {row.entry.name for row in beside} | {row.entry.method for row in beside}
    close = nearest(to.partition("@")[0], known)
    if "did you mean" not in close:
        close = (
            f"; measured: {', '.join(sorted(measured))}; published: {len(known - measured)} names, see `model_zoo list`"
        )
    elif to.partition("@")[0] in known:
        close = "; no published row of it has that in its setting or source"
    raise BackbenchError(f"no row '{to}' to compare to{close}")


class _Baseline:
    """The baseline's number in a column, or the reason for a missing one."""

    def __init__(self, to: str, table: Table, column: Column, beside: Sequence[Published]) -> None:
        self.column, self.why = column, ""
        self.row: Row | Published | None = None
        own = next((row for row in table.rows if to in (row.name, row.label)), None)
        called = [row for row in beside if row.is_called(to)]
        if own is not None:
            self.row = own if column in own.values else None
            self.why = "" if self.row else self._elsewhere(own)
        elif len(called) > 1:
            self.why = f"{len(called)} published rows of {to}: say which, by a part of setting or source: NAME@TEXT"
        elif not called:
            self.why = f"{to} has no published number here"
        else:
            self.row = called[0]
            if not column.is_published or column.profile != "full" or called[0].number.data:
                self.why = f"{to} was published for other data"

    def _elsewhere(self, own: Row) -> str:
        """Return why a measured baseline has no number in this column."""
        column = self.column
        alike = [c for c in own.values if (c.cell, c.metric) == (column.cell, column.metric)]
        if not alike:
            return f"{own.name} has no number here"
        same_data = [c for c in alike if (c.data, c.manifest) == (column.data, column.manifest)]
        if not same_data:
            return f"{own.name} was measured on other data ({alike[0].data}, manifest {alike[0].manifest})"
        return f"{own.name} was measured with another configuration ({same_data[0].config8})"

    def difference(self, row: Row | Published, value: Value, intervals: Intervals) -> Difference | None:
        """Return a row's difference to the baseline; None for the baseline itself."""
        if row is self.row:
            return None
        if self.row is None or self.why:
            return Difference(None, why=self.why)
        measured_alike = self.column.is_published and self.column.profile == "full"
        if isinstance(row, Published) and (row.number.data or not measured_alike):
            return Difference(None, why="published for other data")
        base = _value(self.row, self.column)
        if isinstance(row, Published) or isinstance(self.row, Published):
            return Difference(value.mean - base.mean)
        found = intervals.between(value.records, base.records, self.column.metric)
        if isinstance(found, str):
            return Difference(value.mean - base.mean, why=found)
        return Difference(value.mean - base.mean, found)
