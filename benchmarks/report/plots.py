"""Plots as SVG elements of the page: dots and curves of a cell, curves of pretrainings."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import matplotlib
from cycler import cycler
from markupsafe import escape as escaped

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from backbench import jsonl
from backbench.errors import BackbenchError
from backbench.printable import printable
from backbench.progress import say
from benchmarks.report import escape
from benchmarks.report.table import Column, Row, Table

T = TypeVar("T")

_NAME = 60  # characters of a name beside a line
_LARGEST = 64 * 2**20  # bytes of a run's curves
_HIGHEST = 1e30  # the largest value that is drawn; NaN is never below it
_MOST_DOTTED = 30  # trained backbones in a plot of dots; the tables have them all
_MOST_CURVES = 8
INK, OURS, RANDOM = "#333333", "#1f6f8b", "#b0b0b0"
_CYCLE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c564b", "#6a6a6a")  # Okabe and Ito 2008
# The page draws each colour by a variable of its own, which is another one in the dark.
_VARIABLES = {INK: "ink", OURS: "ours", RANDOM: "random", **{hue: f"hue{n}" for n, hue in enumerate(_CYCLE)}}
STYLE: dict[Any, Any] = {
    "axes.prop_cycle": cycler(color=_CYCLE),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}


def attempt(make: Callable[[], T | None], what: object) -> T | None:
    """Draw; on failure say so and return None: the report is complete without a picture.

    Args:
        what: the file or cell that is drawn.
    """
    try:
        return make()
    except Exception as error:  # a file may have any content, and libraries may raise anything
        reason = str(error) if isinstance(error, BackbenchError) else f"{what}: {type(error).__name__}: {error}"
        say(f"not in the report: {escape.plain(reason)}")
        return None


def cell_plot(table: Table, column: Column) -> str:
    """Draw a cell's headline metric: a dot per number, a line per mean; only the best of very many backbones."""
    all_rows = [row for row in table.rows if column in row.values]
    rows = _best(all_rows, column)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6.4, 0.32 * len(rows) + 0.8))
        axes.grid(axis="y", color=RANDOM, linewidth=0.4)
        for colour, is_random in ((OURS, False), (RANDOM, True)):
            kind = [(y, row) for y, row in enumerate(rows) if row.name.startswith("random:") == is_random]
            dots = [(number, y) for y, row in kind for number in row.values[column].numbers]
            axes.plot([x for x, _ in dots], [y for _, y in dots], "o", color=colour, markersize=5, alpha=0.7)
        means = [row.values[column].mean for row in rows]
        axes.plot(means, range(len(rows)), "|", color=INK, markersize=14, markeredgewidth=1.6)
        if len(rows) < len(all_rows):
            axes.set_title(f"the best {_MOST_DOTTED} of {len(all_rows)}, and random baselines", fontsize=8)
        axes.set_yticks(range(len(rows)), [printable(row.name, _NAME) for row in rows], parse_math=False)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(f"{column.metric} ({column.unit})" if column.unit else column.metric)
        axes.margins(x=0.06)
        return svg(figure, f"{column.cell} {column.metric}: a dot per number, a line per mean")


def curves_plot(curves: Mapping[str, Sequence[tuple[float, float]]], *, x: str, y: str) -> str:
    """Draw a curve of (x, y) per backbone over a logarithmic x; only the first of very many."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6.4, 2.8))
        for name, points in list(curves.items())[:_MOST_CURVES]:
            axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=plain(name))
        if all(at > 0 for points in curves.values() for at, _ in points):
            axes.set_xscale("log")
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.legend(fontsize=7)
        return svg(figure, f"{y} by {x}")


def _best(rows: list[Row], column: Column) -> list[Row]:
    """Return the _MOST_DOTTED rows with the best numbers and the random baselines, in the table's order."""
    trained = [row for row in rows if not row.name.startswith("random:")]
    if len(trained) <= _MOST_DOTTED:
        return rows
    sign = -1 if column.higher_is_better else 1
    best = {row.name for row in sorted(trained, key=lambda row: sign * row.values[column].mean)[:_MOST_DOTTED]}
    return [row for row in rows if row.name in best or row not in trained]


_CURVES = (
    ("losses", ("loss", "centroid", "brownian", "cross_view")),
    ("singular value loss", ("singular",)),
    ("spread of the predictions (1: even, 0: collapsed)", ("std",)),
    ("effective rank", ("effective_rank",)),
    ("online 20-NN on the training split (%)", ("online_knn20",)),
)


def pretraining_plot(metrics: Path) -> str | None:
    """Draw the curves of a run's `metrics.jsonl`; None if it has none. Raises DataError: it is not a text file."""
    records = numbers_by(metrics, "epoch")
    present = [
        (title, [n for n in names if any(n in r for r in records)])
        for title, names in _CURVES
        if any(name in record for record in records for name in names)
    ]
    if not present:
        say(f"not in the report: {metrics}: no curves of a pretraining run of this program")
        return None
    with plt.rc_context(STYLE):
        figure, all_axes = plt.subplots(1, len(present), figsize=(3.4 * len(present), 2.6), squeeze=False)
        for axes, (title, names) in zip(all_axes[0], present, strict=True):
            for name in names:
                points = [(r["epoch"], r[name]) for r in records if name in r]
                axes.plot(
                    *zip(*points, strict=True), label=name, marker="o" if len(points) < 10 else None, markersize=3
                )
            axes.set_title(title, fontsize=8)
            axes.set_xlabel("epoch", fontsize=8)
            axes.tick_params(labelsize=7)
            if len(names) > 1:  # below: the first values of a loss fill the panel's corners
                axes.legend(
                    loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=len(names), fontsize=7,
                    handlelength=1.2, columnspacing=1.0,
                )  # fmt: skip
        figure.tight_layout()
        return svg(figure, "curves of a pretraining by epoch")


def plain(name: str) -> str:
    """Return a legend's text: no formula, and not hidden by a leading underscore."""
    words = printable(name, _NAME).replace("$", r"\$")
    return f" {words}" if words.startswith("_") else words


def numbers_by(file: Path, over: str) -> list[dict[str, float]]:
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


def svg(figure: Figure, label: str) -> str:
    """Return the figure as an SVG element of a page; the same figure gives the same text."""
    buffer = io.StringIO()
    style: dict[Any, Any] = {
        "svg.hashsalt": label,
        "svg.fonttype": "none",
    }  # text stays text: it can be found, copied and read aloud
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    try:
        with plt.rc_context(style), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing")  # a name in a script that the font lacks
            figure.savefig(buffer, format="svg", bbox_inches="tight", metadata=nothing, transparent=True)
    finally:
        plt.close(figure)
    text = re.sub(r"^.*?(?=<svg)", "", buffer.getvalue(), flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # the ids of several plots would be the same
    text = re.sub(r"(stroke|fill): (#\w{6})", lambda found: f"{found[1]}: {_variable(found[2])}", text)
    return text.replace("<svg", f'<svg role="img" aria-label="{escaped(printable(label))}"', 1)


def _variable(hue: str) -> str:
    return f"var(--{_VARIABLES[hue]}, {hue})" if hue in _VARIABLES else hue
