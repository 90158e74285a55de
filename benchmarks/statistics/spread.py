"""Tests and detectable differences from the spread of repeated numbers: seeds, or pretrainings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import ndtri, stdtr, stdtrit

from benchmarks.statistics import LEVEL

POWER = 0.8


@dataclass(frozen=True)
class Pooled:
    """A difference of means, with the error that the spread within both sides gives it."""

    gap: float
    error: float  # standard error
    freedom: int  # degrees of freedom

    @property
    def p(self) -> float:
        """The two-sided p-value of Student's t-test with pooled variance."""
        if self.error == 0.0:
            return 1.0 if self.gap == 0.0 else 0.0
        return float(2 * stdtr(self.freedom, -abs(self.gap) / self.error))


def pooled(one: Sequence[float], other: Sequence[float]) -> Pooled | None:
    """Return the difference of two means of repeated numbers; None for fewer than three numbers.

    One side may be a single number: the spread of the other then stands for both.

    Source: Student 1908; Bouthillier et al. 2021, "Accounting for variance in machine learning benchmarks".
    """
    freedom = len(one) + len(other) - 2
    if freedom < 1 or not one or not other:
        return None
    means = [math.fsum(side) / len(side) for side in (one, other)]
    squares = math.fsum((x - mean) ** 2 for side, mean in zip((one, other), means, strict=True) for x in side)
    error = math.sqrt(squares / freedom * (1 / len(one) + 1 / len(other)))
    return Pooled(means[0] - means[1], error, freedom)


def detectable(error: float, *, freedom: float = math.inf, level: float = LEVEL, power: float = POWER) -> float:
    """Return the smallest true difference that a two-sided test finds with this power, in the error's unit.

    Args:
        error: standard error of the difference.
        freedom: degrees of freedom of the error; infinite for many test items.

    Source: Bloom 1995, "Minimum detectable effects", Evaluation Review 19; Card et al. 2020, "With little power comes
    great responsibility", EMNLP.
    """
    return (quantile(1 - level / 2, freedom) + quantile(power, freedom)) * error


def quantile(share: float, freedom: float) -> float:
    """Return Student's quantile, which is the normal one for infinitely many degrees of freedom."""
    return float(ndtri(share) if math.isinf(freedom) else stdtrit(freedom, share))
