"""Learning curves: the training losses of a cell's runs, and the pretrainings that lie beside the checkpoints.

A run's folder has `losses.jsonl`, a line for each logged iteration or each point of an epoch; a run without one is not drawn.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from benchmarks.records.schema import Result
from benchmarks.records.store import run_folder
from benchmarks.report import plots
from benchmarks.report.table import Column, Row

FILE = "losses.jsonl"
CAPTION = "training losses, a thin line for each seed; every point is a mean over a stretch of the training"
_OVER = ("iteration", "epoch")  # what a line's numbers are a function of
_NO_LOSS = (*_OVER, "lr", "rate")
_MOST_PANELS, _MOST_POINTS, _ACROSS = 6, 80, 2

Lines = list[dict[str, float]]


def runs(rows: Sequence[Row], column: Column, out: Path) -> dict[str, list[Lines]]:
    """Return the logged lines of every run that has some, by the label of its row, in the rows' order."""
    found: dict[str, list[Lines]] = {}
    for row in rows:
        for record in row.values[column].records:
            file = run_folder(out, record) / FILE
            if lines := (plots.attempt(partial(_lines, file), file) if file.exists() else None):
                found.setdefault(row.label, []).append(lines)
    return found


def _lines(file: Path) -> Lines:
    """Return the lines over the first of `_OVER` that the file has."""
    return next((lines for over in _OVER if (lines := plots.numbers_by(file, over))), [])


def plot(found: Mapping[str, Sequence[Lines]]) -> str | None:
    """Draw a panel for each loss, a colour for each backbone, a line for each run; None without any loss."""
    every = [lines for several in found.values() for lines in several]
    names = list(dict.fromkeys(n for lines in every for line in lines for n in line if n not in _NO_LOSS))
    names = names[:_MOST_PANELS]
    if not names:
        return None
    over = next(over for over in _OVER if over in every[0][0])
    across = min(_ACROSS, len(names))
    down = -(-len(names) // across)
    size = (
        (4.8, 2.6) if len(names) == 1 else (2.4 * across, 1.9 * down)
    )  # inches: narrow, so that a telephone shows the text
    with plt.rc_context(plots.STYLE):
        figure, panels = plt.subplots(down, across, figsize=size, squeeze=False)
        for panel, name in zip(panels.flat, names, strict=False):
            _panel(panel, found, name, over)
        for panel in list(panels.flat)[len(names) :]:
            panel.set_visible(False)
        handles, labels = panels.flat[0].get_legend_handles_labels()
        figure.tight_layout()
        figure.legend(handles, labels, loc="upper left", bbox_to_anchor=(0.05, 0.0), fontsize=7, ncols=2)
        return plots.svg(figure, f"training losses by {over}")


def _panel(panel: Axes, found: Mapping[str, Sequence[Lines]], name: str, over: str) -> None:
    """Draw one loss of all runs."""
    for place, (label, several) in enumerate(found.items()):
        colour = plots.RANDOM if label.startswith("random:") else f"C{place}"
        shown = plots.plain(label)  # of the first run with this loss
        for lines in several:
            points = _thinned([(line[over], line[name]) for line in lines if name in line and over in line])
            if points:
                panel.plot(*zip(*points, strict=True), color=colour, linewidth=0.9, alpha=0.9, label=shown)
                shown = "_nolegend_"
    panel.set_title(plots.plain(name).strip(), fontsize=8)
    panel.set_xlabel(over, fontsize=8)
    panel.tick_params(labelsize=7)


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return means over equal stretches of successive points, each at the end of its stretch; few points stay as they are."""
    length = -(-len(points) // _MOST_POINTS)
    stretches = [points[start : start + length] for start in range(0, len(points), max(1, length))]
    return [(stretch[-1][0], sum(y for _, y in stretch) / len(stretch)) for stretch in stretches]


def pretrainings(records: Iterable[Result], known: Mapping[str, Path]) -> dict[str, Path]:
    """Return `known` and the `metrics.jsonl` beside each record's checkpoint that is still where it was, by a name to show."""
    found = dict(known)
    files = {path.resolve() for path in known.values()}
    for name, source in dict.fromkeys((r.backbone.name, r.backbone.source) for r in records):
        with contextlib.suppress(OSError, ValueError, RuntimeError):  # a name of another machine, or no file's at all
            checkpoint = Path(source).expanduser()
            metrics = checkpoint.parent / "metrics.jsonl"
            if source and checkpoint.is_file() and metrics.is_file() and metrics.resolve() not in files:
                files.add(metrics.resolve())
                found[f"{name} ({source})" if name in found else name] = metrics
    return found
