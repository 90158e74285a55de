"""The overview: every backbone and published baseline in every cell, with what failed, was skipped or is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks.report import render
from benchmarks.report.comparison import Comparison, Line
from benchmarks.report.literature import Published, published
from benchmarks.report.standing import Standing
from benchmarks.report.table import Absent, Column, Row, Table


@dataclass(frozen=True)
class Head:
    """A column of the overview: a metric of a cell, on one set of data."""

    cell: str
    metric: str
    conditions: str  # what tells it apart from other columns of the cell, and the demo or rehearsal mark
    data: str
    group: str  # the task, in words
    name: str  # cell, metric, conditions; and the data, where two columns are alike otherwise
    is_headline: bool
    is_published: bool
    config8: str
    column: Column | None = None  # None: every record of the cell failed or was skipped


@dataclass(frozen=True)
class Entry:
    """What stands at a row and a column."""

    state: str  # "number", "published", "failed", "skipped" or "not measured"
    mean: float | None = None  # None too where sources differ
    text: str = ""  # the number as it is printed; else the state
    spread: str = ""  # `± 1.1 (3 seeds)`
    mark: str = ""  # "best", "second", "level" or empty
    difference: str = ""  # to the report's baseline, with the interval
    is_noise: bool = False  # that difference is known to be within the noise
    why: str = ""  # the reason for a missing number, difference or interval; a published number's setting
    line: Line | None = None


@dataclass(frozen=True)
class MatrixRow:
    """A row of the overview: a measured backbone, or a published one of one source."""

    name: str
    label: str  # the name with its architecture
    kind: str  # "trained", "random" or "published"
    entries: tuple[Entry, ...]  # one per head
    source: str = ""  # of a published row
    rank: float | None = None  # average rank over data sets; None: it lacks a headline number


@dataclass(frozen=True)
class Matrix:
    """The overview."""

    heads: tuple[Head, ...]
    rows: tuple[MatrixRow, ...]
    has_ranks: bool


def matrix(
    table: Table, comparisons: Sequence[Comparison], standings: Sequence[Standing] = (), *, source: str | None = ""
) -> Matrix:
    """Return the overview, its columns grouped by task in the table's order.

    Args:
        comparisons: the columns to show, with their rows.
        standings: the first that has average ranks gives the ranks.
        source: only published rows with this in their source; None: none.
    """
    heads = _heads(table, comparisons)
    lines = {(c.column, id(line.row)): line for c in comparisons for line in c.lines}
    standing = next((found for found in standings if found.ranking), None)
    ranks = standing.ranking.ranks if standing and standing.ranking else ()
    ranked = dict(zip((id(row) for row in standing.rows), ranks, strict=True)) if standing else {}
    absent = {(a.name, a.cell, a.config8): a for a in reversed(table.absent)}
    rows = []
    for row in table.rows:
        entries = tuple(_entry(head, row.name, row, lines, absent) for head in heads)
        kind = "random" if row.name.startswith("random:") else "trained"
        rows.append(MatrixRow(row.name, row.label, kind, entries, rank=ranked.get(id(row))))
    measured = {row.name for row in table.rows}
    for name in dict.fromkeys(a.name for a in table.absent if a.name not in measured):
        rows.append(MatrixRow(name, name, "trained", tuple(_entry(head, name, None, lines, absent) for head in heads)))
    literature = [] if source is None else _published_rows(heads, source)
    return Matrix(heads, (*rows, *literature), has_ranks=bool(ranked))


def _heads(table: Table, comparisons: Sequence[Comparison]) -> tuple[Head, ...]:
    heads = [_head(comparison.column, table) for comparison in comparisons]
    known = {(head.cell, head.config8) for head in heads}
    for absent in table.absent:
        if (absent.cell, absent.config8) not in known:
            known.add((absent.cell, absent.config8))
            heads.append(_head_without_numbers(absent, {head.cell for head in heads}))
    names = [head.name for head in heads]
    groups = list(dict.fromkeys(head.group for head in heads))
    heads = [head if names.count(head.name) == 1 else replace(head, name=f"{head.name}, {head.data}") for head in heads]
    return tuple(sorted(heads, key=lambda head: groups.index(head.group)))


def _head(column: Column, table: Table) -> Head:
    name = render.heading(column, table)
    return Head(
        cell=column.cell,
        metric=column.metric,
        conditions=name.removeprefix(f"{column.cell} {column.metric}").strip(),
        data=render.data_title(column, table),
        group=column.task.replace("_", " "),
        name=name,
        is_headline=column.primary,
        is_published=column.is_published,
        config8=column.config8,
        column=column,
    )


def _head_without_numbers(absent: Absent, cells: set[str]) -> Head:
    conditions = f"[{absent.config8}]" if absent.cell in cells else ""
    return Head(
        cell=absent.cell,
        metric="",
        conditions=conditions,
        data="",
        group=absent.task.replace("_", " "),
        name=f"{absent.cell} {conditions}".strip(),
        is_headline=True,
        is_published=True,
        config8=absent.config8,
    )


def _entry(
    head: Head,
    name: str,
    row: Row | None,
    lines: dict[tuple[Column, int], Line],
    absent: dict[tuple[str, str, str], Absent],
) -> Entry:
    column = head.column
    if column is not None and row is not None and (line := lines.get((column, id(row)))) is not None:
        return _number(line, column)
    if (found := absent.get((name, head.cell, head.config8))) is not None:
        return Entry(found.status, text=found.status, why=found.reason)
    return Entry("not measured", text="–", why="not measured")


def _number(line: Line, column: Column) -> Entry:
    value, found = line.value, line.difference
    text, _, spread = render.number(value, column).partition(" ")
    difference, why = "", ""
    if found is not None:
        difference, why = render.gap(found, column), found.why
    is_noise = found is not None and found.is_noise
    return Entry("number", value.mean, text, spread, line.mark, difference, is_noise, why, line)


def _published_rows(heads: Sequence[Head], source: str) -> list[MatrixRow]:
    """Return a row for each method, pretraining and document; numbers of one place that differ stand side by side."""
    found: dict[tuple[str, str, str], dict[int, list[Published]]] = {}
    for place, head in enumerate(heads):
        for number in published(head.cell, head.metric, source=source) if head.column else []:
            document = number.number.source.split()[0]
            key = (number.label, number.number.variant or "", document)
            found.setdefault(key, {}).setdefault(place, []).append(number)
    nothing = Entry("not measured", text="", why="")
    return [
        MatrixRow(
            label,
            ", ".join(filter(None, (label, variant))),
            "published",
            tuple(_quoted(numbers[place]) if place in numbers else nothing for place in range(len(heads))),
            source=document,
        )
        for (label, variant, document), numbers in sorted(found.items())
    ]


def _quoted(numbers: Sequence[Published]) -> Entry:
    values = list(dict.fromkeys(p.number.value for p in numbers))
    why = "; ".join(dict.fromkeys(f"{p.number.source}: {p.number.setting or 'no setting stated'}" for p in numbers))
    return Entry("published", values[0] if len(values) == 1 else None, " / ".join(map(str, values)), why=why)
