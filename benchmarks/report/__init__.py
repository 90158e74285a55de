"""Results -> one Table -> Markdown, CSV, HTML page, plots. Reads only result files; no other code formats a number."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def write(out: Path, *, suite: str = "", curves: Mapping[str, Path] | None = None) -> Path:
    """Write `report.md`, `report.csv` and `report.html` from the result files below `out`; returns the page's path.

    Args:
        out: a folder of results.
        suite: named in the page's title.
        curves: `metrics.jsonl` files of pretraining runs, by the name to show.
    """
    from benchmarks.report import html, render
    from benchmarks.report.table import gather
    from benchmarks.result import read_all
    from core.artifacts import atomic_write_text

    results = list(read_all(out))
    table = gather(results)
    atomic_write_text(out / "report.md", render.markdown(table) + render.literature_markdown(table))
    atomic_write_text(out / "report.csv", render.csv_text(table))
    page = out / "report.html"
    atomic_write_text(page, html.page(table, results, suite=suite, curves=curves))
    return page


def text(out: Path) -> str:
    """The table for a terminal."""
    from benchmarks.report import render
    from benchmarks.report.table import gather
    from benchmarks.result import read_all

    return render.markdown(gather(list(read_all(out))))
