"""Results -> one Table -> Markdown, CSV, HTML page, plots. Reads only result files; no other code formats a number."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.result import Result

Planned = set[tuple[str, str, str, str, int, int]]


def write(out: Path, *, suite: str = "", curves: Mapping[str, Path] | None = None, only: Planned | None = None) -> Path:
    """Write `report.md`, `report.csv` and `report.html` from the result files below `out`; returns the page's path.

    Rows are set against the first random baseline, where there is one.

    Args:
        out: a folder of results.
        suite: named in the page's title.
        curves: `metrics.jsonl` files of pretraining runs, by the name to show.
        only: (name, weights, cell, configuration, version, seed) of the records to show; all below `out` unless given.
    """
    from benchmarks.report import html, render
    from benchmarks.report.comparison import compare, first_random
    from benchmarks.report.table import gather
    from benchmarks.result import items_path, read_all, record_path
    from core.artifacts import atomic_write_text

    results = list(_chosen(read_all(out), only))
    table = gather(results)
    items = {result.identity(): items_path(record_path(out, result)) for result in results}
    to = first_random(table)
    comparisons = compare(table, render.shown(table), items, to=to, with_literature=False)
    text = render.markdown(table, comparisons)
    if to:
        text += "\n" + render.differences_markdown(comparisons, table, to=to)
    atomic_write_text(out / "report.md", text + render.literature_markdown(table))
    atomic_write_text(out / "report.csv", render.csv_text(table))
    page = out / "report.html"
    text = html.page(table, results, suite=suite, curves=curves, out=out, comparisons=comparisons, baseline=to)
    atomic_write_text(page, text)
    return page


def text(out: Path, *, only: Planned | None = None) -> str:
    """The table for a terminal."""
    from benchmarks.report import render
    from benchmarks.report.table import gather
    from benchmarks.result import read_all

    return render.markdown(gather(_chosen(read_all(out), only)))


def _chosen(results: Iterable[Result], only: Planned | None) -> Iterable[Result]:
    for result in results:
        task = result.task
        backbone = result.backbone
        own = (backbone.name, backbone.weights_sha256, result.cell, task.config_sha256, task.version, result.seed)
        if only is None or own in only:
            yield result
