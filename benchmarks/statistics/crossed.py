"""Interval of a difference measured with several seeds on the same test items: both are samples, and they are crossed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from benchmarks.statistics import LEVEL
from benchmarks.statistics.spread import quantile


@dataclass(frozen=True)
class Crossed:
    """A mean difference with its interval over seeds and items."""

    difference: float
    low: float
    high: float
    seeds: int
    items: int


def crossed(differences_SN: np.ndarray, level: float = LEVEL) -> Crossed:
    """Return the mean of (S, N) paired differences, S seeds on N test items, with its two-sided interval.

    The variance is that of the seeds' means over S plus that of the items' means over N: each contains the interaction, so the
    interval is a little too wide rather than too narrow. Student's t with Satterthwaite's degrees of freedom.

    Raises:
        ValueError: fewer than 2 seeds or items.

    Source: Satterthwaite 1946, Biometrics Bulletin 2(6); Owen 2007, "The pigeonhole bootstrap", section 3 (crossed factors).
    """
    seeds, items = differences_SN.shape
    if seeds < 2 or items < 2:
        raise ValueError(f"an interval over seeds and items needs 2 of each at least; there are {seeds} and {items}")
    mean = float(differences_SN.mean())
    parts = [float(differences_SN.mean(axis=axis).var(ddof=1)) / n for axis, n in ((1, seeds), (0, items))]
    total = math.fsum(parts)
    if total == 0.0:
        return Crossed(mean, mean, mean, seeds, items)
    freedom = total**2 / math.fsum(part**2 / (n - 1) for part, n in zip(parts, (seeds, items), strict=True))
    half = quantile(1 - level / 2, freedom) * math.sqrt(total)
    return Crossed(mean, mean - half, mean + half, seeds, items)
