"""The predictors as Markdown tables, as a plot and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from matplotlib import pyplot as plt

from backbench.printable import printable
from benchmarks.evidence.correlated import Pair
from benchmarks.report import escape
from benchmarks.report.plots import INK, OURS, svg
from benchmarks.statistics import LEVEL
from benchmarks.statistics.rank_correlation import Correlation

_HEAD = ["| diagnostic | backbones | Spearman | Kendall |", "|---|---|---|---|"]


def as_json(pairs: Sequence[Pair], left_out: Sequence[str], resamples: int) -> dict[str, Any]:
    """Return everything as plain values, unrounded."""
    return {
        "level": 1 - LEVEL,
        "resamples": resamples,
        "pairs": [asdict(pair) for pair in pairs],
        "left_out": list(left_out),
    }


def from_json(made: Mapping[str, Any]) -> list[Pair]:
    """Return the pairs that `as_json` wrote."""
    return [
        Pair(
            pair["diagnostic"],
            pair["transfer"],
            tuple(pair["backbones"]),
            Correlation(**pair["spearman"]),
            Correlation(**pair["kendall"]),
        )
        for pair in made["pairs"]
    ]


def markdown(pairs: Sequence[Pair]) -> str:
    """Return a table for each transfer number, the best predictor first."""
    lines: list[str] = []
    for transfer, group in by_transfer(pairs).items():
        lines += [f"### {escape.markdown(transfer)}", "", *_HEAD]
        lines += [
            f"| {escape.markdown(pair.diagnostic)} | {len(pair.backbones)} | {_words(pair.spearman)} | {_words(pair.kendall)} |"
            for pair in group
        ]
        lines.append("")
    lines.append(
        "Positive: backbones that the diagnostic calls better transfer better. Brackets: 95% over draws of backbones."
    )
    return "\n".join(lines) + "\n"


def _words(correlation: Correlation) -> str:
    return f"{correlation.value:.2f} [{correlation.low:.2f}, {correlation.high:.2f}]"


def by_transfer(pairs: Sequence[Pair]) -> Mapping[str, list[Pair]]:
    """Group pairs by their transfer number, in order."""
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(pair.transfer, []).append(pair)
    return groups


def plot(pairs: Sequence[Pair]) -> str:
    """Draw Spearman's correlations with their intervals, a panel for each transfer number; SVG text."""
    groups = by_transfer(pairs)
    heights = [0.3 * len(group) + 0.7 for group in groups.values()]
    figure, all_axes = plt.subplots(
        len(groups), figsize=(6.4, sum(heights)), squeeze=False, height_ratios=heights, sharex=True
    )
    for axes, (transfer, group) in zip(all_axes[:, 0], groups.items(), strict=True):
        for y, pair in enumerate(group):
            axes.plot([pair.spearman.low, pair.spearman.high], [y, y], color=OURS, linewidth=2)
            axes.plot(pair.spearman.value, y, "o", color=INK, markersize=4)
        axes.set_yticks(range(len(group)), [printable(_row_title(pair), 60) for pair in group], parse_math=False)
        axes.tick_params(labelsize=7)
        axes.invert_yaxis()
        axes.axvline(0, color=INK, linewidth=0.5)
        axes.set_xlim(-1.05, 1.05)
        axes.set_title(printable(transfer, 80), fontsize=8, parse_math=False)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    all_axes[-1, 0].set_xlabel("Spearman's rank correlation, 95% interval over draws of the backbones", fontsize=8)
    figure.tight_layout()
    return svg(figure, "rank correlations with their intervals, a panel for each transfer number")


def _row_title(pair: Pair) -> str:
    """The diagnostic's title, without its data where the panel's title names the same."""
    _, bracket, data = pair.transfer.partition(" (")
    return pair.diagnostic.removesuffix(bracket + data)
