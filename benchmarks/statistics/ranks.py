"""Average ranks over data sets: Friedman's test, Nemenyi's critical difference (Demsar 2006, JMLR 7, section 3.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import chi2, rankdata, studentized_range

from benchmarks.statistics import LEVEL


@dataclass(frozen=True)
class Ranking:
    """Average ranks of M rows over B data sets; rank 1 is best."""

    ranks: tuple[float, ...]  # by row
    blocks: int  # data sets
    p: float  # Friedman's, of "all rows are alike"
    critical: float  # rows whose average ranks differ by less are not told apart (Nemenyi)

    def apart(self, one: int, other: int) -> bool:
        """Return whether Friedman's test finds a difference and Nemenyi's test finds this one."""
        return self.p < LEVEL and abs(self.ranks[one] - self.ranks[other]) >= self.critical


def ranking(scores_BM: np.ndarray) -> Ranking:
    """Rank the rows in every data set, equal scores by their mean rank.

    Args:
        scores_BM: a score for each data set and row; higher is better.

    Raises:
        ValueError: fewer than two rows or two data sets, or a score is missing.
    """
    scores = np.asarray(scores_BM, float)
    if scores.ndim != 2 or min(scores.shape) < 2 or not np.isfinite(scores).all():
        raise ValueError(f"ranks need two rows and two data sets without gaps, not {scores.shape}")
    blocks, rows = scores.shape
    ranks_BM = rankdata(-scores, axis=1)
    ranks = ranks_BM.mean(0)
    return Ranking(tuple(map(float, ranks)), blocks, _friedman(ranks_BM), critical_difference(rows, blocks))


def _friedman(ranks_BM: np.ndarray) -> float:
    """Return the p-value of Friedman's chi-square, corrected for equal scores."""
    blocks, rows = ranks_BM.shape
    found = 12 * blocks / (rows * (rows + 1)) * float(((ranks_BM.mean(0) - (rows + 1) / 2) ** 2).sum())
    tied = sum(float((n**3 - n).sum()) for row in ranks_BM for n in [np.unique(row, return_counts=True)[1]])
    room = 1 - tied / (blocks * rows * (rows**2 - 1))
    return float(chi2.sf(found / room, rows - 1)) if room > 0 else 1.0


def critical_difference(rows: int, blocks: int, *, level: float = LEVEL) -> float:
    """Return Nemenyi's critical difference of average ranks (Demsar 2006, section 3.2.2 and Table 5)."""
    q = float(studentized_range.ppf(1 - level, rows, math.inf)) / math.sqrt(2)
    return q * math.sqrt(rows * (rows + 1) / (6 * blocks))


def groups(found: Ranking) -> list[tuple[int, ...]]:
    """Return the largest groups of rows, best first, of which no two are told apart: the bars of Demsar's diagram."""
    order = sorted(range(len(found.ranks)), key=found.ranks.__getitem__)
    bars: list[Sequence[int]] = []
    for start, first in enumerate(order):
        bar = [row for row in order[start:] if not found.apart(first, row)]
        if len(bar) > 1 and not any(set(bar) <= set(other) for other in bars):
            bars.append(bar)
    return [tuple(bar) for bar in bars]
