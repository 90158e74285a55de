"""The board as a static site: one page and one CSV file, from entries and the zoo's published numbers. Needs no network."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.board.entry import Entry
from benchmarks.records.schema import Result
from benchmarks.report import escape, literature, render
from benchmarks.report.literature import Published
from benchmarks.report.noise import without_items
from benchmarks.report.table import Column, Value, gather
from benchmarks.report.templates import environment
from benchmarks.statistics.marks import marks
from model_zoo import entries as zoo

_LOWER = {"alignment", "uniformity"}  # of the published metrics: lower is better


@dataclass(frozen=True)
class BoardRow:
    """A number of the board."""

    kind: str  # "published" or "submitted"
    backbone: str
    arch: str
    by: str  # a submitter, or the source of a published number
    link: str | None
    value: Value
    text: str
    setting: str
    note: str
    evidence: str  # hashes and versions behind a submitted number
    mark: str = ""


@dataclass(frozen=True)
class BoardTable:
    """All numbers of a cell and metric, best first."""

    cell: str
    metric: str
    rows: tuple[BoardRow, ...]


def tables(entries: Sequence[Entry]) -> list[BoardTable]:
    """Return a table for each cell and metric that is published or submitted."""
    found: dict[tuple[str, str], list[tuple[BoardRow, Column | None]]] = {}
    for key, row in _published():
        found.setdefault(key, []).append((row, None))
    for entry in entries:
        for key, row, column in _submitted(entry):
            if column.primary or key in found:
                found.setdefault(key, []).append((row, column))
    return [_ranked(*key, rows) for key, rows in sorted(found.items())]


def _ranked(cell: str, metric: str, rows: Sequence[tuple[BoardRow, Column | None]]) -> BoardTable:
    columns = [column for _, column in rows if column is not None]
    higher = columns[0].higher_is_better if columns else metric not in _LOWER
    ordered = sorted((row for row, _ in rows), key=lambda row: (-1 if higher else 1) * row.value.mean)
    noise = without_items()
    names = marks(
        [row.value.mean for row in ordered],
        lambda one, other: noise.p(metric, ordered[one].value, ordered[other].value),
        higher=higher,
    )
    marked = (BoardRow(**{**vars(row), "mark": name}) for row, name in zip(ordered, names, strict=True))
    return BoardTable(cell, metric, tuple(marked))


def _published() -> list[tuple[tuple[str, str], BoardRow]]:
    rows = []
    for entry in zoo.all_entries():
        for number in entry.published:
            own = Published(entry, number)
            row = BoardRow("published", entry.method, own.arch, number.source, None, own.value, f"{number.value}",
                           number.setting, "", "")  # fmt: skip
            rows.append(((number.cell, number.metric), row))
    return rows


def _submitted(entry: Entry) -> list[tuple[tuple[str, str], BoardRow, Column]]:
    """Return the rows of an entry: one for each column, however many seeds and pretrainings it has."""
    named = [r.model_copy(update={"backbone": r.backbone.model_copy(update={"named": True})}) for r in entry.records]
    rows = []
    for row in gather(named).rows:
        for column, value in row.values.items():
            key = literature.filed_under(column.cell), column.metric
            made = BoardRow("submitted", entry.name, row.arch, entry.by, entry.link, value, render.number(value, column),
                            _setting(column), entry.note, _evidence(column, value.records))  # fmt: skip
            rows.append((key, made, column))
    return rows


def _setting(column: Column) -> str:
    fields: Mapping[str, str] = dict(column.fields)
    preset = fields.get("preset", "").strip('"')
    words = [f"preset {preset}" if preset else "", column.engine, *literature.changed(column)]
    return ", ".join(filter(None, words))


def _evidence(column: Column, records: Sequence[Result]) -> str:
    weights = sorted({record.backbone.weights_sha256[:8] for record in records})
    commits = sorted({record.provenance.commit[:8] for record in records if record.provenance})
    return (f"{column.task} version {column.version}, configuration {column.config8}, data {column.manifest}, weights "
            f"{' '.join(weights)}, commit {' '.join(commits)}")  # fmt: skip


def page(found: Sequence[BoardTable], *, title: str, refused: Sequence[str] = ()) -> str:
    """Return the text of the page: no scripts, no addresses that are loaded, every word escaped."""
    template = environment(Path(__file__).parent).get_template("board.html.j2")
    return template.render(title=title, tables=found, refused=refused, legend=render.MARKS)


def csv_text(found: Sequence[BoardTable]) -> str:
    """Return every number as CSV, one line each; no cell is a formula."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["cell", "metric", "kind", "backbone", "arch", "mean", "spread", "n", "over", "mark", "by", "link",
                     "setting", "note", "evidence"])  # fmt: skip
    for table in found:
        for row in table.rows:
            v = row.value
            cells = [table.cell, table.metric, row.kind, row.backbone, row.arch, v.mean, v.spread, len(v.numbers), v.over,
                     row.mark, row.by, row.link or "", row.setting, row.note, row.evidence]  # fmt: skip
            writer.writerow(escape.row(cells))
    return buffer.getvalue()
