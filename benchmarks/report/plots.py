"""Plots as SVG text for the page: one per cell, and the pretraining curves."""

from __future__ import annotations

import io
import re
import warnings
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from backbench import jsonl
from backbench.printable import printable
from backbench.progress import say
from benchmarks.report.table import Column, Row, Table

_NAME = 60  # characters of a name beside a bar
_LARGEST = 64 * 2**20  # bytes of a run's curves
_HIGHEST = 1e30  # the largest value that is drawn; NaN is never below it
_MOST_LOSSES = 20
_MOST_BARS = 30  # trained backbones in a plot; the tables have them all
INK, OURS, RANDOM = "#333333", "#1f6f8b", "#b0b0b0"


def cell_plot(table: Table, column: Column) -> str:
    """Draw a cell's headline metric: one bar per backbone, a dot per number in its mean; only the best of very many."""
    all_rows = [row for row in table.rows if column in row.values]
    rows = _best(all_rows, column)
    figure, axes = plt.subplots(figsize=(6.4, 0.55 * len(rows) + 0.9))
    colours = [RANDOM if row.name.startswith("random:") else OURS for row in rows]
    axes.barh(range(len(rows)), [row.values[column].mean for row in rows], color=colours, height=0.6)
    points = [(number, y) for y, row in enumerate(rows) for number in row.values[column].numbers]
    axes.plot(*zip(*points, strict=True), "o", color=INK, markersize=4, alpha=0.8)
    if len(rows) < len(all_rows):
        axes.set_title(f"the best {_MOST_BARS} of {len(all_rows)}, and random baselines", fontsize=8)
    axes.set_yticks(range(len(rows)), [printable(row.name, _NAME) for row in rows], parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel(f"{column.metric} ({column.unit})" if column.unit else column.metric)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.margins(x=0.1)
    if not any(number for row in rows for number in row.values[column].numbers):
        axes.set_xlim(0, 1)  # else matplotlib puts the zeros in the middle of a scale of its own
    return svg(figure)


def _best(rows: list[Row], column: Column) -> list[Row]:
    """Return the _MOST_BARS rows with the best numbers and the random baselines, in the table's order."""
    trained = [row for row in rows if not row.name.startswith("random:")]
    if len(trained) <= _MOST_BARS:
        return rows
    sign = -1 if column.higher_is_better else 1
    best = {row.name for row in sorted(trained, key=lambda row: sign * row.values[column].mean)[:_MOST_BARS]}
    return [row for row in rows if row.name in best or row not in trained]


_CURVES = (
    ("losses", ("loss", "centroid", "brownian", "cross_view")),
    ("singular value loss", ("singular",)),
    ("spread of the predictions (1: even, 0: collapsed)", ("std",)),
    ("effective rank", ("effective_rank",)),
    ("online 20-NN on the training split (%)", ("online_knn20",)),
    ("rank of the features", ("online_rankme", "online_effective_rank")),
)


def pretraining_plot(metrics: Path) -> str | None:
    """Draw the curves of a run's `metrics.jsonl`; None if it has none. Raises DataError: it is not a text file."""
    records = _records(metrics, "epoch")
    present = [
        (title, [n for n in names if any(n in r for r in records)])
        for title, names in _CURVES
        if any(name in record for record in records for name in names)
    ]
    if not present:
        say(f"not in the report: {metrics}: no curves of a pretraining run of this program")
        return None
    figure, all_axes = plt.subplots(1, len(present), figsize=(3.4 * len(present), 2.6), squeeze=False)
    for axes, (title, names) in zip(all_axes[0], present, strict=True):
        for name in names:
            points = [(r["epoch"], r[name]) for r in records if name in r]
            axes.plot(*zip(*points, strict=True), label=name, marker="o" if len(points) < 10 else None, markersize=3)
        axes.set_title(title, fontsize=8)
        axes.set_xlabel("epoch", fontsize=8)
        axes.tick_params(labelsize=7)
        if len(names) > 1:
            axes.legend(fontsize=7)
    figure.tight_layout()
    return svg(figure)


def losses_plot(losses: Path) -> str | None:
    """Draw a detector's losses by iteration from its `losses.jsonl`; None if it has none."""
    records = _records(losses, "iteration")
    names = list(dict.fromkeys(n for r in records for n in r if n not in ("iteration", "lr")))[:_MOST_LOSSES]
    if not names:
        return None
    figure, axes = plt.subplots(figsize=(6.4, 2.8))
    for name in names:
        points = [(r["iteration"], r[name]) for r in records if name in r]
        axes.plot(*zip(*points, strict=True), label=printable(name, _NAME).replace("$", r"\$"))
    axes.set_xlabel("iteration")
    axes.legend(fontsize=7, ncols=2)
    return svg(figure)


def _records(file: Path, over: str) -> list[dict[str, float]]:
    """Return the numbers of every line with one for `over`; torn lines and those of another program are left out.

    Raises:
        DataError: it is not a regular file, or larger than any run's.
    """
    numbers = [
        {str(name): value for name, value in record.items() if _is_number(value)}
        for _, record in jsonl.records(file, _LARGEST)
        if record is not None
    ]
    return [record for record in numbers if over in record]


def _is_number(value: object) -> bool:
    """Return whether a value can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _HIGHEST


def svg(figure: Figure) -> str:
    """Return a figure as SVG text and close it; the same figure gives the same text."""
    buffer = io.StringIO()
    try:
        with plt.rc_context({"svg.hashsalt": "backbench"}), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing")  # a name in a script that the font lacks
            figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    finally:
        plt.close(figure)
    return re.sub(r"^.*?(?=<svg)", "", buffer.getvalue(), flags=re.DOTALL)
