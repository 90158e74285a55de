"""Report: result files -> one Table -> Markdown, LaTeX, CSV, JSON, HTML page, plots. No other code formats a number."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.records.store import Result
    from benchmarks.report.baselines import Choices
    from benchmarks.report.comparison import Comparison
    from benchmarks.report.intervals import Intervals
    from benchmarks.report.standing import Standing
    from benchmarks.report.table import Table

LEFT_OUT = "Left out:"  # files without a record or with a repeated one
Planned = set[tuple[str, str, str, str, int, int]]


def render_all(
    out: Path,
    *,
    suite: str = "",
    curves: Mapping[str, Path] | None = None,
    only: Planned | None = None,
    to: str | None = None,
) -> tuple[str, Path]:
    """Write `report.md`, `report.csv` and `report.html` from the result files below `out`.

    Args:
        out: a folder of results.
        suite: named in the page's title.
        curves: `metrics.jsonl` files of pretraining runs, by the name to show.
        only: (name, weights, cell, configuration, version, seed) of the records to show; all below `out` unless given.
        to: the row to compare with; the first random baseline unless given.

    Returns:
        The table for a terminal, and the path of the page.

    Raises:
        BackbenchError: `to` is neither measured nor published.
    """
    report = Report(out, only=only, to=to)
    return report.text(), report.write(suite=suite, curves=curves)


def write(out: Path, *, suite: str = "", curves: Mapping[str, Path] | None = None, only: Planned | None = None) -> Path:
    """Like `render_all`; returns only the path of the page."""
    return Report(out, only=only).write(suite=suite, curves=curves)


def text(out: Path, *, only: Planned | None = None) -> str:
    """The table for a terminal; writes nothing."""
    return Report(out, only=only).text()


class Report:
    """The records of a folder as a table, compared with a baseline when that is asked for."""

    def __init__(self, out: Path, *, only: Planned | None = None, to: str | None = None) -> None:
        """Read the records. The arguments are those of `render_all`."""
        from benchmarks.records.store import scan_folder
        from benchmarks.report.comparison import first_random
        from benchmarks.report.table import gather

        found = scan_folder(out)
        self.out, self.left_out = out, found.left_out
        self._chosen = {path: result for path, result in found.records.items() if _is_chosen(result, only)}
        self.table: Table = gather(self._chosen.values())
        self.baseline = to or first_random(self.table)

    def text(self) -> str:
        """Return the tables for a terminal."""
        from benchmarks.report import render

        return render.markdown(self.table) + listed(LEFT_OUT, self.left_out)

    def export(self, form: str) -> str:
        """Return the overview in a format of `exports.FORMS`."""
        from benchmarks.report import exports
        from benchmarks.report.matrix import matrix

        return exports.as_shown(form, matrix(self.table, self.comparisons, self.standings, source=None))

    def page(
        self,
        *,
        suite: str = "",
        curves: Mapping[str, Path] | None = None,
        source: str | None = "",
        version: str = "",
    ) -> str:
        """Return the page. The arguments are those of `html.page`."""
        from benchmarks.report import html, learning

        return html.page(
            self.table,
            list(self._chosen.values()),
            suite=suite,
            curves=learning.pretrainings(self._chosen.values(), curves or {}),
            out=self.out,
            comparisons=self.comparisons,
            standings=self.standings,
            baseline=self.baseline,
            source=source,
            left_out=self.left_out,
            items=self._items,
            choices=self.choices,
            version=version,
        )

    def write(self, *, suite: str = "", curves: Mapping[str, Path] | None = None) -> Path:
        """Write the report's files into the folder of results; returns the path of the page."""
        from backbench.files.atomic import atomic_write_text
        from benchmarks.report import render, spreadsheet
        from benchmarks.report.table import made_apart

        table, to = self.table, self.baseline
        text = render.markdown(table, self.comparisons)
        if to:
            text += "\n" + render.differences_markdown(self.comparisons, table, to=to)
        text += listed("Means over numbers that were not made alike:", made_apart(table))
        text += listed(LEFT_OUT, self.left_out)
        atomic_write_text(self.out / "report.md", text + render.literature_markdown(table))
        atomic_write_text(self.out / "report.csv", spreadsheet.csv_text(table))
        atomic_write_text(self.out / "report.html", self.page(suite=suite, curves=curves))
        return self.out / "report.html"

    @functools.cached_property
    def comparisons(self) -> list[Comparison]:
        """The columns to show, compared with the baseline."""
        from benchmarks.report import render
        from benchmarks.report.comparison import compare

        columns = render.shown(self.table)
        return compare(self.table, columns, self._intervals, to=self.baseline, with_literature=False)

    @functools.cached_property
    def standings(self) -> list[Standing]:
        """Where the rows stand over all cells."""
        from benchmarks.report.standing import standings

        return standings(self.table, self.table.columns, self._intervals)

    @functools.cached_property
    def choices(self) -> Choices:
        """The differences to the other rows that a reader of the page may choose."""
        from benchmarks.report import baselines

        columns = [comparison.column for comparison in self.comparisons]
        return baselines.choices(self.table, columns, self._intervals, to=self.baseline)

    @functools.cached_property
    def _intervals(self) -> Intervals:
        from benchmarks.report.intervals import Intervals
        from benchmarks.report.paired import RESAMPLES

        return Intervals(self._items, RESAMPLES, self.out)

    @functools.cached_property
    def _items(self) -> dict[str, Path]:
        from benchmarks.records.store import items_path

        return {result.identity(): items_path(path) for path, result in self._chosen.items()}


def listed(title: str, words: Sequence[str]) -> str:
    """A list in Markdown; empty for no words."""
    from benchmarks.report import escape

    return "\n".join(["", title, "", *(f"- {escape.item(word)}" for word in words), ""]) if words else ""


def _is_chosen(result: Result, only: Planned | None) -> bool:
    task, backbone = result.task, result.backbone
    own = (backbone.name, backbone.weights_sha256, result.cell, task.config_sha256, task.version, result.seed)
    return only is None or own in only
