"""Performance benchmarks, each against a peer or the bare limit in the same run: `python benchmarks/speed/<x>.py`."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Comparison:
    """Figures of two sides measured in turn: a pair per round."""

    quantity: str
    setting: str
    ours: str
    other: str
    pairs: Sequence[tuple[float, float]]
    relation: str  # how the ratio ours / other reads

    def figures(self) -> dict[str, Any]:
        """Medians of both sides, and the ratio within each pair: it holds when the machine's speed drifts."""
        mine, theirs = zip(*self.pairs, strict=True)
        ratios = sorted(a / b for a, b in self.pairs)
        return {
            "quantity": self.quantity,
            "setting": self.setting,
            "sides": {self.ours: statistics.median(mine), self.other: statistics.median(theirs)},
            "ratio": {"median": statistics.median(ratios), "min": ratios[0], "max": ratios[-1]},
            "relation": self.relation,
            "rounds": len(ratios),
        }


def sentence(figures: Mapping[str, Any]) -> str:
    """One line for people: both medians, the ratio and its range over the rounds."""
    (ours, mine), (other, theirs) = figures["sides"].items()
    ratio = figures["ratio"]
    return (
        f"{figures['quantity']}, {figures['setting']}: {ours} {mine:.4g}, {other} {theirs:.4g}; "
        f"{ratio['median']:.2f} {figures['relation']} ({ratio['min']:.2f} to {ratio['max']:.2f} over "
        f"{figures['rounds']} rounds in turn)"
    )


def report(comparison: Comparison, file: Path | None) -> None:
    """Print the figures; write them as JSON where a file is given."""
    from backbench.files.atomic import atomic_write_text  # imports torch, which `--help` need not wait for

    figures = comparison.figures()
    print(sentence(figures))
    if file is not None:
        atomic_write_text(file, json.dumps(figures, indent=1) + "\n")
