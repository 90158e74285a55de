"""One self-contained HTML page: tables, a plot per cell, pretraining curves, the literature apart, provenance."""

from __future__ import annotations

import base64
import io
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from backbench.errors import BackbenchError
from backbench.files import read_bytes
from backbench.progress import say
from benchmarks.records.store import Result, marks, run_folder
from benchmarks.report import escape, plots, render, standing_text
from benchmarks.report.comparison import Comparison, Line, compare
from benchmarks.report.literature import literature
from benchmarks.report.rank_plot import rank_plot
from benchmarks.report.standing import Standing
from benchmarks.report.table import Column, Row, Table, made_apart

_LARGEST_PICTURE = 64 * 2**20  # bytes


def page(
    table: Table,
    results: Sequence[Result],
    *,
    suite: str,
    curves: Mapping[str, Path] | None = None,
    out: Path | None = None,
    comparisons: Sequence[Comparison] | None = None,
    baseline: str | None = None,
    source: str | None = "",
    left_out: Sequence[str] = (),
    standings: Sequence[Standing] = (),
) -> str:
    """Return the text of the page.

    Args:
        curves: a run's name and its `metrics.jsonl`.
        out: where detectors left losses and pictures.
        comparisons: marks and differences of the columns to show; default: made without a baseline.
        baseline: the row that differences refer to.
        source: only published rows with this in their source; None: no literature.
        left_out: files without a record, each with the reason.
        standings: where the rows stand over all cells, one for each kind of numbers.
    """
    if comparisons is None:
        comparisons = compare(table, render.shown(table), {}, with_literature=False)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        finalize=escape.html,
    )
    measured = [r for r in results if r.status == "ok"]
    drawn = {name: _optional(plots.pretraining_plot, path) for name, path in (curves or {}).items()}
    return environment.get_template("page.html.j2").render(
        suite=suite,
        is_demo=any(column.is_demo for column in table.columns),
        is_smoke=any(column.profile == "smoke" for column in table.columns),
        sections=_sections(table, comparisons),
        baseline=baseline,
        legend=render.MARKS,
        standings=[_standing(standing) for standing in standings],
        intervals=render.intervals_made(comparisons),
        absent=table.absent,
        left_out=left_out,
        curves={name: svg for name, svg in drawn.items() if svg},
        detectors=_detectors(results, out) if out else [],
        made_apart=made_apart(table),
        notes=_notes(results),
        literature=[] if source is None else _literature(table, source),
        comparable=any(column.is_published for column in table.columns),
        results=measured,
        marks=marks,
        packages=_packages(measured),
        commands=sorted({shlex.join(r.provenance.argv) for r in measured if r.provenance}),
    )


def _sections(table: Table, comparisons: Sequence[Comparison]) -> list[dict[str, object]]:
    """Return a section per data set: heading, table cells, plots."""
    lines = {(c.column, id(line.row)): line for c in comparisons for line in c.lines}
    made = []
    for title, columns in render.sections(table):
        rows = [row for row in table.rows if any(column in row.values for column in columns)]
        made.append(
            {
                "data": title,
                "published": columns[0].is_published,
                "headings": [render.heading(column, table) for column in columns],
                "tuned": _tuned(columns, rows),
                "rows": [
                    {
                        "label": row.label,
                        "random": row.name.startswith("random:"),
                        "cells": [_cell(lines.get((c, id(row))), c) for c in columns],
                    }
                    for row in rows
                ],
                "plots": [(render.heading(c, table), svg) for c in columns if c.primary and (svg := _plot(table, c))],
            }
        )
    return made


def _tuned(columns: Sequence[Column], rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Return (cell, the images a choice was made on) for the cells that chose something."""
    records = (r for row in rows for column in columns if column in row.values for r in row.values[column].records)
    return sorted({(r.cell, str(r.task.tuned["on"])) for r in records if "on" in r.task.tuned})


def _packages(results: Sequence[Result]) -> list[str]:
    """Return every set of package versions; with the number of records if there are several."""
    sets = Counter(", ".join(f"{k} {v}" for k, v in r.provenance.packages.items()) for r in results if r.provenance)
    return [line if len(sets) == 1 else f"{line} ({count} records)" for line, count in sets.most_common()]


def _cell(line: Line | None, column: Column) -> dict[str, str]:
    """Return a number, its mark, and its difference to the baseline."""
    if line is None:
        return {"text": "–", "mark": "", "difference": "", "why": ""}
    found = line.difference
    beside = render.difference(found, column).partition(" (")[0] if found and found.value is not None else ""
    text = render.row_number(line, column) + (f" {render.LEVEL_WITH_BEST}" if line.mark == "level" else "")
    return {"text": text, "mark": line.mark, "difference": beside, "why": found.why if found else ""}


def _literature(table: Table, source: str) -> list[dict[str, Any]]:
    """Return published rows by cell and metric; conditions that differ in all of them are listed once."""
    made = []
    for name, rows in literature(table, source=source):
        common = [flag for flag in rows[0][1] if all(flag in flags for _, flags, _ in rows)]
        shown = [(row, [flag for flag in flags if flag not in common], mark) for row, flags, mark in rows]
        made.append({"name": name, "common": common, "rows": shown})
    return made


def _notes(results: Sequence[Result]) -> list[tuple[str, str]]:
    """Return the protocols' notes as (cell, note), each once."""
    return sorted({(result.cell, note) for result in results for note in result.task.notes})


def _detectors(results: Sequence[Result], out: Path) -> list[dict[str, str | None]]:
    """Return the losses and pictures of every run that has some."""
    found: list[dict[str, str | None]] = []
    for result in results:
        folder = run_folder(out, result)
        pictures, losses = folder / "pictures.png", folder / "losses.jsonl"
        if pictures.exists() and (picture := _optional(_embedded, pictures)):
            title = f"{result.backbone.name}, {result.cell}, seed {result.seed}"
            drawn = _optional(plots.losses_plot, losses) if losses.exists() else None
            found.append({"title": title, "losses": drawn, "pictures": picture})
    return found


def _standing(standing: Standing) -> Markup:
    return standing_text.section(standing, _optional(lambda _: rank_plot(standing), Path("average ranks")))


def _plot(table: Table, column: Column) -> str | None:
    return _optional(lambda _: plots.cell_plot(table, column), Path(column.cell))


def _optional(make: Callable[[Path], str | None], file: Path) -> str | None:
    """Draw from a file; on failure say so and return None: the report is complete without it."""
    try:
        return make(file)
    except Exception as error:  # the file may have any content, and libraries may raise anything
        reason = str(error) if isinstance(error, BackbenchError) else f"{file}: {type(error).__name__}: {error}"
        say(f"not in the report: {escape.plain(reason)}")
        return None


def _embedded(picture: Path) -> str:
    """Return a picture as a JPEG data URL, so that the page stays one file."""
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(read_bytes(picture, limit=_LARGEST_PICTURE))) as image:
        image.convert("RGB").save(buffer, "JPEG", quality=80)
    return Markup("data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii"))
