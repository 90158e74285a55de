"""Rank correlations: against scipy, on resamples too, and intervals of known samples."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from benchmarks.statistics import rank_correlation
from benchmarks.statistics.rank_correlation import kendall, spearman

SCIPY = {spearman: lambda x, y: scipy.stats.spearmanr(x, y)[0], kendall: lambda x, y: scipy.stats.kendalltau(x, y)[0]}
each = pytest.mark.parametrize("correlation", SCIPY, ids=lambda function: function.__name__)


def numbers(n=12, *, tied=False, noise=1.0, seed=0):
    generator = np.random.default_rng(seed)
    x = generator.integers(0, 4, n).astype(float) if tied else generator.normal(size=n)
    return x, np.round(x + noise * generator.normal(size=n), 0 if tied else 9)


@each
@pytest.mark.parametrize("tied", [False, True])
def test_values_are_scipys(correlation, tied):
    for seed in range(5):
        x, y = numbers(tied=tied, seed=seed)
        assert correlation(x, y, 100).value == pytest.approx(SCIPY[correlation](x, y), abs=1e-12)


@each
def test_the_interval_is_that_of_drawn_subjects(correlation):
    """The draws of numpy, made into samples with repeated subjects, whose correlations scipy gives."""
    x, y = numbers(8, tied=True)
    draws = np.random.default_rng(0).multinomial(8, np.full(8, 1 / 8), size=300)
    rows = [np.repeat(np.arange(8), times) for times in draws]
    with np.errstate(all="ignore"):
        drawn = [SCIPY[correlation](x[r], y[r]) for r in rows if np.ptp(x[r]) and np.ptp(y[r])]
    found = correlation(x, y, 300)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=1e-9)


@each
def test_the_order_decides_and_nothing_else(correlation):
    x = np.array([3.0, 1.0, 2.0, 9.0, 4.0, 7.0])
    assert correlation(x, np.exp(x), 200).value == 1 == correlation(x, np.exp(x), 200).low
    assert correlation(x, -(x**3), 200).value == -1 == correlation(x, -(x**3), 200).high


@each
def test_equal_numbers_have_no_correlation(correlation):
    assert correlation(np.ones(6), np.arange(6.0), 200) is None
    assert correlation(np.arange(6.0), np.ones(6), 200) is None


@each
def test_draws_are_the_same_on_every_call_and_in_any_parts(correlation, monkeypatch):
    x, y = numbers()
    before = correlation(x, y, 250)
    monkeypatch.setattr(rank_correlation, "_CHUNK", 7)
    assert correlation(x, y, 250) == before


@each
def test_more_subjects_have_narrower_intervals(correlation):
    few, many = (correlation(*numbers(n), 1000) for n in (8, 200))
    assert many.high - many.low < 0.5 * (few.high - few.low)
    assert few.low < few.value < few.high
