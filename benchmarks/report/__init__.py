"""Report: result files -> one Table -> Markdown, CSV, HTML page, plots. No other code formats a number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.records.store import Result
    from benchmarks.report.table import Table

LEFT_OUT = "Left out:"  # files without a record or with a repeated one
Planned = set[tuple[str, str, str, str, int, int]]


def render_all(
    out: Path, *, suite: str = "", curves: Mapping[str, Path] | None = None, only: Planned | None = None
) -> tuple[str, Path]:
    """Write `report.md`, `report.csv` and `report.html` from the result files below `out`.

    Rows are compared with the first random baseline, if there is one.

    Args:
        out: a folder of results.
        suite: named in the page's title.
        curves: `metrics.jsonl` files of pretraining runs, by the name to show.
        only: (name, weights, cell, configuration, version, seed) of the records to show; all below `out` unless given.

    Returns:
        The table for a terminal, and the path of the page.
    """
    from benchmarks.report.table import gather

    chosen, left_out = _read(out, only)
    table = gather(chosen.values())
    return _text(table, left_out), _write(out, chosen, table, left_out, suite, curves)


def write(out: Path, *, suite: str = "", curves: Mapping[str, Path] | None = None, only: Planned | None = None) -> Path:
    """Like `render_all`; returns only the path of the page."""
    return render_all(out, suite=suite, curves=curves, only=only)[1]


def text(out: Path, *, only: Planned | None = None) -> str:
    """The table for a terminal; writes nothing."""
    from benchmarks.report.table import gather

    chosen, left_out = _read(out, only)
    return _text(gather(chosen.values()), left_out)


def _read(out: Path, only: Planned | None) -> tuple[dict[Path, Result], Sequence[str]]:
    """Return the records to show, by file, and what was left out."""
    from benchmarks.records.store import scan_folder

    found = scan_folder(out)
    return {path: result for path, result in found.records.items() if _is_chosen(result, only)}, found.left_out


def _text(table: Table, left_out: Sequence[str]) -> str:
    from benchmarks.report import render

    return render.markdown(table) + listed(LEFT_OUT, left_out)


def _write(
    out: Path,
    chosen: Mapping[Path, Result],
    table: Table,
    left_out: Sequence[str],
    suite: str,
    curves: Mapping[str, Path] | None,
) -> Path:
    from backbench.files.atomic import atomic_write_text
    from benchmarks.records.store import items_path
    from benchmarks.report import html, render, spreadsheet
    from benchmarks.report.comparison import compare, first_random
    from benchmarks.report.intervals import Intervals
    from benchmarks.report.paired import RESAMPLES
    from benchmarks.report.standing import standings
    from benchmarks.report.table import made_apart

    results = list(chosen.values())
    items = {result.identity(): items_path(path) for path, result in chosen.items()}
    intervals = Intervals(items, RESAMPLES, out)
    to = first_random(table)
    comparisons = compare(table, render.shown(table), intervals, to=to, with_literature=False)
    text = render.markdown(table, comparisons)
    if to:
        text += "\n" + render.differences_markdown(comparisons, table, to=to)
    text += listed("Means over numbers that were not made alike:", made_apart(table))
    text += listed(LEFT_OUT, left_out)
    atomic_write_text(out / "report.md", text + render.literature_markdown(table))
    atomic_write_text(out / "report.csv", spreadsheet.csv_text(table))
    page = html.page(
        table,
        results,
        suite=suite,
        curves=curves,
        out=out,
        comparisons=comparisons,
        baseline=to,
        left_out=left_out,
        standings=standings(table, table.columns, intervals),
    )
    atomic_write_text(out / "report.html", page)
    return out / "report.html"


def listed(title: str, words: Sequence[str]) -> str:
    """A list in Markdown; empty for no words."""
    from benchmarks.report import escape

    return "\n".join(["", title, "", *(f"- {escape.item(word)}" for word in words), ""]) if words else ""


def _is_chosen(result: Result, only: Planned | None) -> bool:
    task, backbone = result.task, result.backbone
    own = (backbone.name, backbone.weights_sha256, result.cell, task.config_sha256, task.version, result.seed)
    return only is None or own in only
