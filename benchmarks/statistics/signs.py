"""Sign tests of paired differences: over test items, or over cells."""

from __future__ import annotations

import itertools

import numpy as np
from scipy.special import bdtr

_ENUMERATED = 12  # differences whose signs are all tried: 2**12 sums
_EQUAL = 1e-9  # relative: sums of the same numbers in another order differ by rounding
SEED = 0


def sign_flip(differences_N: np.ndarray, *, resamples: int) -> float:
    """Return the two-sided p-value of "each difference is as likely with the other sign", for the sum of differences.

    Differences of 0 do not matter. Exact where all others have one magnitude (for right or wrong answers of two networks,
    this is McNemar's exact test), or where they are few; otherwise the signs are drawn, and p is at least
    1 / (resamples + 1). The draws are the same on every call.

    Source: Edgington and Onghena, "Randomization Tests", 4th edition, section 5.10 (paired comparisons).
    """
    differences = np.asarray(differences_N, float)
    sizes, counts = np.unique(np.abs(differences[differences != 0]).round(9), return_counts=True)
    if not len(sizes):
        return 1.0
    if len(sizes) == 1:
        return of_counts(int((differences > 0).sum()), int((differences < 0).sum()))
    found = abs(float(differences.sum())) * (1 - _EQUAL)
    if counts.sum() <= _ENUMERATED:
        signs = np.array(list(itertools.product((-1, 1), repeat=int(counts.sum()))))
        return float(np.mean(np.abs(signs @ np.repeat(sizes, counts)) >= found))
    positive = np.random.default_rng(SEED).binomial(counts, 0.5, size=(resamples, len(counts)))
    sums = np.abs((2 * positive - counts) @ sizes)
    return float((1 + np.sum(sums >= found)) / (resamples + 1))


def of_counts(wins: int, losses: int) -> float:
    """Return the exact two-sided p-value of the sign test: McNemar's exact test of two networks' answers.

    Source: McNemar 1947, Psychometrika 12; Dietterich 1998, "Approximate statistical tests", section 3.1.
    """
    if wins == losses:
        return 1.0
    return min(1.0, 2.0 * float(bdtr(min(wins, losses), wins + losses, 0.5)))


def of_shares(one: float, other: float, items: int) -> float:
    """Return the largest p-value that the sign test can have for two shares of the same items that are right.

    The items on which two networks differ are unknown without their answers; the test has the largest p-value if they
    are as many as the two shares allow.

    Args:
        one, other: percent of the items that are right.
        items: the test items of both.
    """
    right = sorted(round(share / 100 * items) for share in (one, other))
    differing = min(sum(right), 2 * items - sum(right))
    gap = right[1] - right[0]
    return of_counts((differing + gap) // 2, (differing - gap) // 2)
