"""Results -> one Table -> Markdown, CSV, HTML page, plots. Reads only result files; no other code formats a number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.records.store import Result

LEFT_OUT = "Left out:"  # files that hold no record, or one again
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
    from backbench.files.atomic import atomic_write_text
    from benchmarks.records.store import items_path, scan_folder
    from benchmarks.report import html, render
    from benchmarks.report.comparison import compare, first_random
    from benchmarks.report.table import gather, made_apart

    found = scan_folder(out)
    chosen = {path: result for path, result in found.records.items() if _is_chosen(result, only)}
    results = list(chosen.values())
    table = gather(results)
    items = {result.identity(): items_path(path) for path, result in chosen.items()}
    to = first_random(table)
    comparisons = compare(table, render.shown(table), items, to=to, with_literature=False)
    text = render.markdown(table, comparisons)
    if to:
        text += "\n" + render.differences_markdown(comparisons, table, to=to)
    text += listed("Means over numbers that were not made alike:", made_apart(table))
    text += listed(LEFT_OUT, found.left_out)
    atomic_write_text(out / "report.md", text + render.literature_markdown(table))
    atomic_write_text(out / "report.csv", render.csv_text(table))
    page = out / "report.html"
    text = html.page(
        table,
        results,
        suite=suite,
        curves=curves,
        out=out,
        comparisons=comparisons,
        baseline=to,
        left_out=found.left_out,
    )
    atomic_write_text(page, text)
    return page


def text(out: Path, *, only: Planned | None = None) -> str:
    """The table for a terminal."""
    from benchmarks.records.store import scan_folder
    from benchmarks.report import render
    from benchmarks.report.table import gather

    found = scan_folder(out)
    table = gather(result for result in found.records.values() if _is_chosen(result, only))
    return render.markdown(table) + listed(LEFT_OUT, found.left_out)


def listed(title: str, words: Sequence[str]) -> str:
    """A list in Markdown; nothing of no words."""
    from benchmarks.report import escape

    return "\n".join(["", title, "", *(f"- {escape.item(word)}" for word in words), ""]) if words else ""


def _is_chosen(result: Result, only: Planned | None) -> bool:
    task, backbone = result.task, result.backbone
    own = (backbone.name, backbone.weights_sha256, result.cell, task.config_sha256, task.version, result.seed)
    return only is None or own in only
