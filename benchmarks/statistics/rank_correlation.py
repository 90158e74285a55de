"""Rank correlations of two numbers of the same subjects, with bootstrap intervals over draws of the subjects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmarks.statistics import LEVEL

_SEED = 0  # of the draws, which are the same on every call
_CHUNK = 1000  # draws at a time


@dataclass(frozen=True)
class Correlation:
    """A rank correlation and its percentile interval over draws of the subjects."""

    value: float
    low: float
    high: float


def spearman(x_N: np.ndarray, y_N: np.ndarray, resamples: int) -> Correlation | None:
    """Return Spearman's rho; None where all numbers of a side are equal."""
    return _bootstrap(_spearman, x_N, y_N, resamples)


def kendall(x_N: np.ndarray, y_N: np.ndarray, resamples: int) -> Correlation | None:
    """Return Kendall's tau-b; None where all numbers of a side are equal."""
    return _bootstrap(_kendall, x_N, y_N, resamples)


# Two numbers of N rows, and how often each row is there in R draws, to (R,); NaN where it is undefined.
Statistic = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def _bootstrap(statistic: Statistic, x_N: np.ndarray, y_N: np.ndarray, resamples: int) -> Correlation | None:
    """Draw as many subjects with replacement as there are. Draws in which a side has one number do not count."""
    n = len(x_N)
    value = float(statistic(x_N, y_N, np.ones((1, n)))[0])
    if np.isnan(value):
        return None
    draws = np.random.default_rng(_SEED).multinomial(n, np.full(n, 1 / n), size=resamples).astype(float)
    drawn = [statistic(x_N, y_N, draws[start : start + _CHUNK]) for start in range(0, resamples, _CHUNK)]
    low, high = np.nanquantile(np.concatenate(drawn), [LEVEL / 2, 1 - LEVEL / 2])
    return Correlation(value, float(low), float(high))


def _spearman(x_N: np.ndarray, y_N: np.ndarray, times_RN: np.ndarray) -> np.ndarray:
    """Pearson's correlation of the mid-ranks, where row i is there times[i] times."""
    total = times_RN.sum(axis=1, keepdims=True)
    centred = []
    for values in (x_N, y_N):
        below = (values[None] < values[:, None]) + 0.5 * (values[None] == values[:, None])
        ranks = times_RN @ below.T
        centred.append(ranks - (times_RN * ranks).sum(axis=1, keepdims=True) / total)
    x, y = centred
    return _ratio((times_RN * x * y).sum(axis=1), (times_RN * x * x).sum(axis=1), (times_RN * y * y).sum(axis=1))


def _kendall(x_N: np.ndarray, y_N: np.ndarray, times_RN: np.ndarray) -> np.ndarray:
    """Return tau-b: (agreeing - disagreeing pairs) / sqrt(pairs untied in x * pairs untied in y)."""
    x, y = (np.sign(values[:, None] - values[None]) for values in (x_N, y_N))
    agreeing, untied_x, untied_y = (((times_RN @ pairs) * times_RN).sum(axis=1) for pairs in (x * y, abs(x), abs(y)))
    return _ratio(agreeing, untied_x, untied_y)


def _ratio(shared: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return shared / sqrt(one * other), NaN where a factor is 0."""
    scale = np.sqrt(np.maximum(one, 0) * np.maximum(other, 0))
    defined = scale > 1e-9
    return np.where(defined, shared / np.where(defined, scale, 1.0), np.nan).clip(-1, 1)
