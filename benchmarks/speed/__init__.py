"""Speed benchmarks: `backbench speed`. A row measures our code and a peer, the bare limit or a goal in the same run.

A file of this folder with `ROWS = (Row(...), ...)` adds rows; nothing else lists them. Its imports must be light: torch
and what imports it belong inside functions. `step.py` is an example.
"""

from __future__ import annotations

import importlib
import pkgutil
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Setup:
    """Options of the command line, for every row."""

    device: str  # "cpu" or "cuda"
    quick: bool = False  # sizes that end within seconds: the figures show that the row works, not how fast it is
    images: Path | None = None  # a folder of photographs, searched through
    rounds: int = 7


@dataclass(frozen=True)
class Growth:
    """Figures of our side at several sizes, in the unit of the row's `quantity`; `plots.py` draws them."""

    axis: str  # what grows: "images", "views", "classes", "rates", "workers" or "result files"
    points: Sequence[tuple[float, float]]  # (size, figure)

    def figures(self) -> dict[str, Any]:
        """The record's `growth`."""
        return {"axis": self.axis, "points": [list(point) for point in self.points]}


@dataclass(frozen=True)
class Comparison:
    """Figures of two sides measured in turn: a pair per round."""

    quantity: str
    setting: str  # sizes, and "scaled down from ..." where the row is smaller than the one its goal is about
    ours: str
    other: str
    pairs: Sequence[tuple[float, float]]
    relation: str  # how the ratio ours / other reads
    growth: Growth | None = None
    limit: float | None = None  # the ratio that the bare arithmetic allows, measured in the same run

    def figures(self) -> dict[str, Any]:
        """Return the medians of both sides, and the ratio within each pair, which is fair when the machine's speed drifts."""
        mine, theirs = zip(*self.pairs, strict=True)
        ratios = sorted(a / b for a, b in self.pairs)
        return {
            "quantity": self.quantity,
            "setting": self.setting,
            "sides": {self.ours: statistics.median(mine), self.other: statistics.median(theirs)},
            "ratio": {"median": statistics.median(ratios), "min": ratios[0], "max": ratios[-1]},
            "relation": self.relation,
            "rounds": len(ratios),
            **({"limit": self.limit} if self.limit is not None else {}),
            **({"growth": self.growth.figures()} if self.growth else {}),
        }


@dataclass(frozen=True)
class Row:
    """A benchmark. The goal is a bound on the median ratio of ours to the other side; a row may have none."""

    name: str  # of the JSON file
    what: str  # one line for `--list`
    run: Callable[[Setup], Comparison]  # called in a process of its own
    at_most: float | None = None
    at_least: float | None = None
    judged_on: Literal["any", "cuda"] = "any"  # cuda: on a CPU the row is smaller than its goal, which is not judged
    missing: Callable[[Setup], str | None] = lambda _setup: None  # why it cannot run here, or None

    def goal(self) -> str:
        """The goal in words; empty where there is none."""
        bounds = (("<=", self.at_most), (">=", self.at_least))
        return " and ".join(f"{sign} {bound:g}" for sign, bound in bounds if bound is not None)

    def met(self, ratio: float) -> bool | None:
        """Whether a ratio reaches the goal; None where there is none."""
        if not self.goal():
            return None
        return (self.at_most is None or ratio <= self.at_most) and (self.at_least is None or ratio >= self.at_least)


def rows() -> dict[str, Row]:
    """Every row of this folder by name, in the order of the files."""
    found: dict[str, Row] = {}
    for module in pkgutil.iter_modules(__path__):
        if not module.name.startswith("_"):
            for row in getattr(importlib.import_module(f"{__name__}.{module.name}"), "ROWS", ()):
                assert row.name not in found, f"two rows named {row.name}"
                found[row.name] = row
    return found


def sentence(figures: Mapping[str, Any]) -> str:
    """One line for people: both medians, the ratio, its range over the rounds, and whether the goal is reached."""
    (ours, mine), (other, theirs) = figures["sides"].items()
    ratio, goal = figures["ratio"], figures.get("goal")
    limit = f"; limit {figures['limit']:.2f}" if "limit" in figures else ""
    verdict = f"; goal {goal}: {'reached' if figures['met'] else 'MISSED'}" if goal else ""
    return (
        f"{figures['quantity']}, {figures['setting']}: {ours} {mine:.4g}, {other} {theirs:.4g}; "
        f"{ratio['median']:.2f} {figures['relation']} ({ratio['min']:.2f} to {ratio['max']:.2f} over "
        f"{figures['rounds']} rounds in turn){limit}{verdict}"
    )


def in_turn(setup: Setup, ours: Callable[[], float], other: Callable[[], float]) -> list[tuple[float, float]]:
    """Figures of both sides, one pair a round, after a round that warms up and is not counted."""
    ours(), other()
    return [(ours(), other()) for _ in range(2 if setup.quick else setup.rounds)]


def seconds(run: Callable[[], object], device: str) -> float:
    """Wall seconds of a call, the GPU's work included."""
    wait(device)
    start = time.perf_counter()
    run()
    wait(device)
    return time.perf_counter() - start


def wait(device: str) -> None:
    """Wait until the GPU has finished its work."""
    if device != "cpu":
        import torch

        torch.cuda.synchronize()


def processor_seconds() -> float:
    """Processor seconds of the processes that this one has started and waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def busy_seconds(run: Callable[[], object], device: str) -> float:
    """Seconds of a call; on a CPU those of the processor, for this process and the workers that it ends."""
    if device != "cpu":
        return seconds(run, device)
    start = time.process_time() + processor_seconds()
    run()
    return time.process_time() + processor_seconds() - start
