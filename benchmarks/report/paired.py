"""Paired bootstrap over test items: how much a difference of two rows depends on the choice of test images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.records.schema import Result
from benchmarks.report.scores import SEED, Answers, NoScores, Scores
from benchmarks.statistics.signs import sign_flip

LEVEL = 0.95
RESAMPLES = 10_000
AP_RESAMPLES = 2_000  # the most for average precisions: each is a pass over all scores
# Metrics whose resamples are numbers of the metric: turned round, the differences are negated.
RESAMPLED = ("mAP", "mIoU", "mean_per_class")


@dataclass(frozen=True)
class Interval:
    """Percentile interval of a difference; it does not include the spread of seeds or pretrainings."""

    low: float
    high: float
    items: int
    resamples: int
    p: float  # of "no difference": the sign test's for right and wrong answers, the bootstrap's for average precisions
    error: float  # standard error of the difference


def interval(
    mine: Sequence[Result], other: Sequence[Result], metric: str, scores: Scores, *, resamples: int = RESAMPLES
) -> Interval | str:
    """Return the interval of (mine - other) in the metric's unit, or the reason for a missing one.

    Test items are drawn with replacement, the same ones for both sides; a side of several records enters by its mean, each
    backbone once, as in the tables. The draws are the same on every call.
    """
    if len({r.data.manifest_sha256 for r in (*mine, *other) if r.data}) > 1:
        return "measured on different data"
    resamples = min(resamples, AP_RESAMPLES) if metric == "mAP" else resamples
    try:
        sides = [[scores.answers(record, metric, resamples) for record in side] for side in (mine, other)]
    except NoScores as reason:
        return str(reason)
    first, *others = [answers.labels for side in sides for answers in side]
    if not all(np.array_equal(first, labels) for labels in others):
        return "the stored labels differ: measure again"
    weights = [weights_of(side) for side in (mine, other)]
    if metric in RESAMPLED:
        drawn = _difference(sides, weights)
        return _percentiles(drawn, len(first), p=_share_beyond_zero(drawn))
    right = [_mean_right(side, weight) for side, weight in zip(sides, weights, strict=True)]
    return _of_means(right[0] - right[1], resamples)


def weights_of(records: Sequence[Result]) -> list[float]:
    """Return each record's weight in its side's mean: equal for every backbone, and for every seed of a backbone."""
    backbones = [record.backbone.weights_sha256 for record in records]
    return [1 / (len(set(backbones)) * backbones.count(sha)) for sha in backbones]


def _mean_right(side: Sequence[Answers], weights: Sequence[float]) -> np.ndarray:
    """Return (N,) the percentage of the side's records that are right about each item."""
    total = np.zeros(len(side[0].values))
    for answers, weight in zip(side, weights, strict=True):
        total = total + weight * 100.0 * answers.values
    return total


def _difference(sides: Sequence[Sequence[Answers]], weights: Sequence[Sequence[float]]) -> np.ndarray:
    """Return (R,) the difference of the sides' means of each resample."""
    total = np.zeros(len(sides[0][0].values))
    for sign, side, weight in zip((1, -1), sides, weights, strict=True):
        for answers, share in zip(side, weight, strict=True):
            total = total + sign * share * answers.values
    return total


def _of_means(difference_N: np.ndarray, resamples: int) -> Interval:
    """Draw how many items of each difference: the same as drawing the items, since equal differences are alike."""
    values, counts = np.unique(difference_N.round(9), return_counts=True)
    n = len(difference_N)
    drawn = np.random.default_rng(SEED).multinomial(n, counts / n, size=resamples) @ values / n
    return _percentiles(drawn, n, p=sign_flip(difference_N, resamples=resamples))


def _share_beyond_zero(drawn: np.ndarray) -> float:
    """Return the two-sided p-value of a bootstrap: twice the smaller share of resamples on either side of 0.

    Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", section 15.4; one is added to both counts.
    """
    fewer = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return min(1.0, 2 * (1 + fewer) / (1 + len(drawn)))


def _percentiles(drawn: np.ndarray, n: int, *, p: float) -> Interval:
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high), n, len(drawn), p, float(drawn.std()))
