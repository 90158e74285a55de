"""Which of several values may be called the best: only one whose lead over every other is beyond the noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.statistics import LEVEL

P = Callable[[int, int], float | None]  # p-value of the gap between two values, by their places; None: noise unknown


def marks(values: Sequence[float], p: P, *, higher: bool) -> list[str]:
    """Mark each value `best`, `second`, `level` or empty.

    `best` leads every other value beyond the noise, `second` every other value but the best. Values that are not told from
    the highest are `level` with it. Nothing is marked where the noise is unknown; the worse of two has no mark.
    """
    names = [""] * len(values)
    order = sorted(range(len(values)), key=lambda place: (-1 if higher else 1) * values[place])
    for name in ("best", "second"):
        first, rest = order[:1], order[1:]
        if not rest:
            break
        told = {other: _within(values, p, first[0], other) for other in rest}
        level = [other for other, within in told.items() if within]
        if level and name == "best":
            for place in (*first, *level):
                names[place] = "level"
        if level or None in told.values():
            break
        names[first[0]] = name
        order = rest
    return names


def _within(values: Sequence[float], p: P, one: int, other: int) -> bool | None:
    if values[one] == values[other]:
        return True
    found = p(one, other)
    return None if found is None else found >= LEVEL


@dataclass(frozen=True)
class Tally:
    """How often a row is beyond the noise above another, below it, and not told from it."""

    won: int
    lost: int
    level: int


def tally(gaps: Sequence[tuple[float, float | None]]) -> Tally:
    """Count the gaps of two rows, given as (difference, p-value); an unknown p-value tells nothing apart.

    Args:
        gaps: one for each cell that both have; positive where the first row is better.
    """
    told = [gap for gap, p in gaps if p is not None and p < LEVEL and gap]
    won = sum(gap > 0 for gap in told)
    return Tally(won, len(told) - won, len(gaps) - len(told))
