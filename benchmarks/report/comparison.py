"""Rank the measured and published rows of each column and compare them with a baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from backbench.errors import BackbenchError, nearest
from benchmarks.report import literature, paired
from benchmarks.report.intervals import Intervals
from benchmarks.report.literature import Published, published
from benchmarks.report.noise import Noise
from benchmarks.report.paired import Interval
from benchmarks.report.scores import Items
from benchmarks.report.table import Column, Row, Table, Value
from benchmarks.statistics import LEVEL, holm
from benchmarks.statistics.marks import marks


@dataclass(frozen=True)
class Difference:
    """A row minus the baseline, or the reason for a missing interval (published numbers have none) or difference."""

    value: float | None
    interval: Interval | None = None
    why: str = ""
    p: float | None = None  # of "no difference", the largest over all kinds of units; None: the noise is unknown
    over: str = ""  # those units: `400 test items and 3 + 2 seeds`
    detectable: float | None = None  # the smallest true difference that is found in 4 of 5 cases
    p_holm: float | None = None  # corrected for all rows and columns of the comparison

    @property
    def is_told(self) -> bool:
        """Whether it is beyond the noise, all comparisons made at the same time counted."""
        return self.p_holm is not None and self.p_holm < LEVEL

    @property
    def is_noise(self) -> bool:
        """Whether it is known to be within the noise."""
        return self.p is not None and not self.is_told


@dataclass(frozen=True)
class Line:
    """A row of one column's comparison."""

    row: Row | Published
    value: Value
    mark: str  # "best", "second", "level" or empty
    flags: tuple[str, ...] = ()  # conditions of a published row that differ here
    difference: Difference | None = None  # None: not asked for, or this is the baseline


@dataclass(frozen=True)
class Comparison:
    """A column with all its rows, measured ones first."""

    column: Column
    lines: tuple[Line, ...]


def compare(
    table: Table,
    columns: Sequence[Column],
    items: Items | Intervals,
    *,
    to: str | Row | None = None,
    with_literature: bool = True,
    with_marks: bool = True,
    source: str = "",
    resamples: int = paired.RESAMPLES,
    folder: Path | None = None,
) -> list[Comparison]:
    """Compare the rows of each column.

    Args:
        items: the files of arrays per test item, by the record's identity; or the intervals made from them.
        to: the baseline: a measured row, or a published entry or method (`NAME@TEXT`: with TEXT in setting or source).
        with_marks: tell the best from the others; that takes more tests than the differences.
        source: only published rows whose source contains this.
        folder: the folder of results where intervals are kept for the next comparison.

    Raises:
        BackbenchError: the baseline is neither measured nor published for these columns.
    """
    is_asked = with_literature or isinstance(to, str)  # reading the zoo takes longer than a column without scores
    found = {c: published(c.cell, c.metric, source=source) if is_asked else [] for c in columns}
    if isinstance(to, str):
        _refuse_unknown(to, table, [row for rows in found.values() for row in rows])
    intervals = items if isinstance(items, Intervals) else Intervals(items, resamples, folder)
    made = []
    noise = Noise(intervals)
    try:
        for column in columns:
            base = _Baseline(to, table, column, found[column]) if to is not None else None
            beside = found[column] if with_literature else []
            made.append(_compared(table, column, beside, base, noise, with_marks=with_marks))
    finally:
        intervals.save()
    return _corrected(made)


def _corrected(made: Sequence[Comparison]) -> list[Comparison]:
    """Add Holm's p-values: all tested differences of the comparison are one family."""
    tested = [p for c in made for line in c.lines if line.difference and (p := line.difference.p) is not None]
    corrected = iter(holm.adjusted(tested))

    def with_p(line: Line) -> Line:
        if line.difference is None or line.difference.p is None:
            return line
        return replace(line, difference=replace(line.difference, p_holm=next(corrected)))

    return [replace(c, lines=tuple(with_p(line) for line in c.lines)) for c in made]


def _compared(
    table: Table,
    column: Column,
    beside: Sequence[Published],
    base: _Baseline | None,
    noise: Noise,
    *,
    with_marks: bool,
) -> Comparison:
    """Return a column's rows, each with its difference to the baseline, if there is one."""
    rows: list[Row | Published] = [row for row in table.rows if column in row.values]
    archs = literature.archs_of(table, [column])
    higher = column.higher_is_better
    beside = sorted(beside, key=lambda p: -p.number.value if higher else p.number.value)
    values = {id(row): _value(row, column) for row in (*rows, *beside)}
    marked = _marks(column, rows, beside, noise) if with_marks else {}
    lines = [
        Line(
            row,
            values[id(row)],
            marked.get(id(row), ""),
            literature.flags(row, [column], archs) if isinstance(row, Published) else (),
            base.difference(row, values[id(row)], noise) if base else None,
        )
        for row in (*rows, *beside)
    ]
    return Comparison(column, tuple(lines))


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


def _value(row: Row | Published, column: Column) -> Value:
    return row.value if isinstance(row, Published) else row.values[column]


def _marks(
    column: Column, rows: Sequence[Row | Published], beside: Sequence[Published], noise: Noise
) -> dict[int, str]:
    """Rank all rows together if they are all on the published data; else ours and the literature's separately."""
    same = [row for row in beside if column.is_published and column.profile == "full" and not row.number.data]
    other = [row for row in beside if row not in same]
    marked: dict[int, str] = {}
    for group in ([*rows, *same], other):
        marked |= _of_group(column, group, noise)
    return marked


def _of_group(column: Column, group: Sequence[Row | Published], noise: Noise) -> dict[int, str]:
    values = [_value(row, column) for row in group]
    names = marks(
        [value.mean for value in values],
        lambda one, other: noise.p(column.metric, values[one], values[other]),
        higher=column.higher_is_better,
    )
    return {id(row): name for row, name in zip(group, names, strict=True)}


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

    def __init__(self, to: str | Row, table: Table, column: Column, beside: Sequence[Published]) -> None:
        self.column, self.why = column, ""
        self.row: Row | Published | None = None
        own = to if isinstance(to, Row) else next((row for row in table.rows if to in (row.name, row.label)), None)
        called = [row for row in beside if row.is_called(to)] if isinstance(to, str) else []
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

    def difference(self, row: Row | Published, value: Value, noise: Noise) -> Difference | None:
        """Return a row's difference to the baseline; None for the baseline itself."""
        if row is self.row:
            return None
        if self.row is None or self.why:
            return Difference(None, why=self.why)
        measured_alike = self.column.is_published and self.column.profile == "full"
        if isinstance(row, Published) and (row.number.data or not measured_alike):
            return Difference(None, why="published for other data")
        base = _value(self.row, self.column)
        if isinstance(row, Published):
            return Difference(value.mean - base.mean)
        gap = noise.gap(self.column.metric, value, base)
        why = "" if isinstance(self.row, Published) else gap.why  # that it has no scores is said once, for all rows
        return Difference(value.mean - base.mean, gap.interval, why, gap.p, gap.over, gap.detectable)
