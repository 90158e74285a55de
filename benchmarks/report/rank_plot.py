"""Draw average ranks with the critical difference (Demsar 2006, Figure 1)."""

from __future__ import annotations

from matplotlib import pyplot as plt

from backbench.printable import printable
from benchmarks.report.plots import INK, OURS, STYLE, svg
from benchmarks.report.standing import Standing
from benchmarks.statistics.ranks import groups

_MOST = 30  # rows of the diagram, the best
_NAME = 60  # characters of a name


def rank_plot(standing: Standing) -> str | None:
    """Return the diagram as SVG: a line to each name, a bar over rows that are not told apart; None without ranks."""
    found = standing.ranking
    if found is None:
        return None
    rows, ranks = standing.rows[:_MOST], found.ranks[:_MOST]
    bars = [bar for bar in groups(found) if min(bar) < len(rows)]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6.4, 0.28 * (len(rows) + len(bars)) + 1.0))
        low, high = 1.0, max(*ranks, 1.0 + found.critical)
        axes.plot([low, low + found.critical], [-1.1, -1.1], color=INK, linewidth=2)
        axes.annotate(f"critical difference {found.critical:.2f}", (low, -1.35), fontsize=8)
        axes.axhline(0, color=INK, linewidth=1)
        for place, bar in enumerate(bars, start=1):
            ends = [found.ranks[row] for row in bar if row < len(rows)]
            axes.plot([min(ends) - 0.02, max(ends) + 0.02], [0.35 * place] * 2, color=OURS, linewidth=3)
        for place, (row, rank) in enumerate(zip(rows, ranks, strict=True), start=1):
            y = 0.35 * len(bars) + 0.8 * place
            axes.plot([rank, rank, high + 0.15], [0, y, y], color=INK, linewidth=0.8)
            axes.annotate(
                f"{rank:.2f}  {printable(row.label, _NAME)}", (high + 0.2, y), fontsize=8, va="center", parse_math=False
            )
        axes.set_ylim(0.35 * len(bars) + 0.8 * (len(rows) + 1), -1.8)
        axes.set_xlim(low - 0.1, high + 0.2)
        axes.xaxis.set_ticks_position("top")
        axes.set_xlabel("average rank (1 is best)", fontsize=8)
        axes.xaxis.set_label_position("top")
        axes.set_yticks([])
        for side in ("left", "right", "bottom", "top"):
            axes.spines[side].set_visible(False)
        return svg(figure, "average ranks; a bar joins rows that are not told apart")
