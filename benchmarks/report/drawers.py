"""What the page shows of one cell: its protocol, numbers, plots, classes, published numbers, notes and failures."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report import classes, learning, plots, protocol_text, render
from benchmarks.report.classes import Confusion, PerClass
from benchmarks.report.comparison import Comparison, Line
from benchmarks.report.literature import Published, literature
from benchmarks.report.matrix import Head, Matrix
from benchmarks.report.pictures import Pictures, pictures
from benchmarks.report.scores import Items, Scores
from benchmarks.report.table import Column, Row, Table

_MOST_BACKBONES = 8  # in curves and per-class tables: the best ones
_BY_K = re.compile(r"^(?P<stem>\w+?)_k(?P<k>\d+)$")


@dataclass(frozen=True)
class Literature:
    """Published numbers of one metric, best first."""

    name: str
    common: tuple[str, ...]  # conditions that differ in all of them
    rows: tuple[tuple[Published, tuple[str, ...], str], ...]  # number, further conditions that differ, mark


@dataclass(frozen=True)
class Drawer:
    """One cell with one configuration, on one set of data."""

    key: str  # of its element in the page
    cell: str
    config8: str
    title: str
    data: str
    is_published: bool
    about: tuple[str, ...]  # the protocol: its first sentence, then paragraphs
    fields: tuple[tuple[str, str], ...]  # of the configuration
    columns: tuple[Column, ...]  # the headline first
    headings: tuple[str, ...]
    heads: tuple[int, ...]  # their places in the overview
    rows: tuple[tuple[int, Row, tuple[Line | None, ...]], ...]  # with the row's place in the overview
    tuned: tuple[str, ...]  # what the choices were made on
    detectable: str  # the difference that the tests find, in words
    notes: tuple[str, ...]
    plots: tuple[tuple[str, str], ...]  # caption, SVG
    pictures: Pictures
    per_class: PerClass | None
    confusions: tuple[Confusion, ...]
    literature: tuple[Literature, ...]
    absent: tuple[str, ...]  # rows without a number, and why


def drawers(
    table: Table,
    matrix: Matrix,
    comparisons: Sequence[Comparison],
    items: Items,
    *,
    source: str | None,
    out: Path | None = None,
) -> dict[Head, Drawer]:
    """Return the drawer of each column of the overview; the metrics of one cell share one.

    Args:
        out: the folder of results, in which runs left losses and pictures.
    """
    groups: dict[tuple[object, ...], list[Head]] = {}
    for head in matrix.heads:
        groups.setdefault(_place(head), []).append(head)
    by_column = {comparison.column: comparison for comparison in comparisons}
    given = _Given(table, matrix, by_column, Scores(items), source, out)
    made: dict[Head, Drawer] = {}
    for number, heads in enumerate(groups.values(), 1):
        drawer = _drawer(f"cell-{number}", heads, given)
        made |= dict.fromkeys(heads, drawer)
    return made


def _place(head: Head) -> tuple[object, ...]:
    column = head.column
    more = (column.data, column.manifest, column.engine, column.version, column.task) if column else ()
    return head.cell, head.config8, *more


@dataclass(frozen=True)
class _Given:
    """What all drawers are made of."""

    table: Table
    matrix: Matrix
    by_column: Mapping[Column, Comparison]
    scores: Scores
    source: str | None
    out: Path | None


def _drawer(key: str, heads: Sequence[Head], given: _Given) -> Drawer:
    table, scores, out = given.table, given.scores, given.out
    numbered = sorted((head for head in heads if head.column), key=lambda head: not head.is_headline)
    columns = tuple(head.column for head in numbered if head.column)
    places = [n for n, row in enumerate(table.rows) if any(column in row.values for column in columns)]
    rows = [table.rows[place] for place in places]
    lines = {(c, id(line.row)): line for c in columns for line in given.by_column[c].lines}
    first = heads[0]
    records = [record for row in rows for c in columns if c in row.values for record in row.values[c].records]
    headline = next((column for column in columns if column.primary), None)
    best = _best([row for row in rows if headline in row.values], headline) if headline else []
    task = columns[0].task if columns else first.group.replace(" ", "_")
    return Drawer(
        key=key,
        cell=first.cell,
        config8=first.config8,
        title=f"{first.cell} {first.conditions}".strip(),
        data=first.data,
        is_published=first.is_published,
        about=protocol_text.about(task),
        fields=columns[0].fields if columns else (),
        columns=columns,
        headings=tuple(column.metric for column in columns),
        heads=tuple(given.matrix.heads.index(head) for head in numbered),
        rows=tuple(
            (n, row, tuple(lines.get((c, id(row))) for c in columns)) for n, row in zip(places, rows, strict=True)
        ),
        tuned=tuple(sorted({str(r.task.tuned["on"]) for r in records if "on" in r.task.tuned})),
        detectable=render.detectable(given.by_column[headline]) if headline else "",
        notes=tuple(dict.fromkeys(note for record in records for note in record.task.notes)),
        plots=_plots(table, headline, best, out) if headline else (),
        pictures=pictures(best, headline, out),
        per_class=classes.per_class(best, headline, scores) if headline else None,
        confusions=tuple(classes.confusions(best, headline, scores)) if headline else (),
        literature=() if given.source is None else tuple(_literature(table, columns, given.source)),
        absent=_absent(table, first),
    )


def _absent(table: Table, head: Head) -> tuple[str, ...]:
    """Return the rows without a number in a cell, and why."""
    own = (a for a in table.absent if (a.cell, a.config8) == (head.cell, head.config8))
    return tuple(dict.fromkeys(f"{a.name}: {a.status}: {a.reason}" for a in own))


def _best(rows: Sequence[Row], column: Column) -> list[Row]:
    """Return the rows with the best numbers, best first, and the first random baseline at the end."""
    ordered = sorted(rows, key=lambda row: row.values[column].mean, reverse=column.higher_is_better)
    random = [row for row in ordered if row.name.startswith("random:")][:1]
    trained = [row for row in ordered if not row.name.startswith("random:")]
    return [*trained[: _MOST_BACKBONES - len(random)], *random]


def _literature(table: Table, columns: Sequence[Column], source: str) -> list[Literature]:
    """Return the published numbers of these columns; conditions that differ in all of them are listed once."""
    found = []
    for name, rows in literature(Table(table.rows, tuple(columns), ()), source=source):
        common = tuple(flag for flag in rows[0][1] if all(flag in flags for _, flags, _ in rows))
        others = ((row, tuple(flag for flag in flags if flag not in common), mark) for row, flags, mark in rows)
        found.append(Literature(name, common, tuple(others)))
    return found


def _plots(table: Table, column: Column, best: Sequence[Row], out: Path | None) -> tuple[tuple[str, str], ...]:
    unit = f" ({column.unit})" if column.unit else ""
    made: list[tuple[str, Callable[[], str | None]]] = []
    made.append(("a dot per number, a line per mean", lambda: plots.cell_plot(table, column)))
    if curves := learning.runs(best, column, out) if out else {}:
        made.append((learning.CAPTION, lambda: learning.plot(curves)))
    if sweep := _sweep(best, column):
        made.append(
            (
                "head sweep: each rate on the images that chose it",
                lambda: plots.curves_plot(sweep, x="rate of the head", y=f"accuracy there{unit}"),
            )
        )
    if by_k := _by_k(best, column):
        stem = _BY_K.match(column.metric)
        assert stem
        made.append((f"{stem['stem']} by k", lambda: plots.curves_plot(by_k, x="k", y=f"{stem['stem']}{unit}")))
    drawn = ((caption, plots.attempt(make, column.cell)) for caption, make in made)
    return tuple((caption, svg) for caption, svg in drawn if svg)


def _sweep(rows: Sequence[Row], column: Column) -> dict[str, list[tuple[float, float]]]:
    """Return each backbone's accuracy by rate where the rate was chosen, over its records; empty without a sweep."""
    curves = {}
    for row in rows:
        found: dict[float, list[float]] = {}
        for record in row.values[column].records:
            for name, by_rate in record.task.tuned.items():
                for rate, number in _numbers(by_rate) if name.endswith("_there") else ():
                    found.setdefault(rate, []).append(number)
        if len(found) > 1:
            curves[row.label] = [(rate, statistics.fmean(numbers)) for rate, numbers in sorted(found.items())]
    return curves


def _numbers(by_rate: object) -> list[tuple[float, float]]:
    """Return (key, value) where every one of both is a number, else nothing: a choice per class has names as keys."""
    try:
        return [(float(rate), float(number)) for rate, number in by_rate.items()] if isinstance(by_rate, dict) else []
    except (TypeError, ValueError):
        return []


def _by_k(rows: Sequence[Row], column: Column) -> dict[str, list[tuple[float, float]]]:
    """Return each backbone's metric by k (images per class, or neighbours); empty for a metric without k."""
    if (headline := _BY_K.match(column.metric)) is None:
        return {}
    curves = {}
    for row in rows:
        found: dict[float, list[float]] = {}
        for record in row.values[column].records:
            for name, metric in record.metrics.items():
                if (parts := _BY_K.match(name)) and parts["stem"] == headline["stem"]:
                    found.setdefault(float(parts["k"]), []).append(metric.value)
        if len(found) > 1:
            curves[row.label] = [(k, statistics.fmean(numbers)) for k, numbers in sorted(found.items())]
    return curves
