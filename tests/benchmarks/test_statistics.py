"""Statistics of comparisons: against scipy, against the published tables, and against formulas written a second way."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from benchmarks.statistics import holm, marks, ranks, signs, spread

# ---------------------------------------------------------------- Holm


def test_holm_rejects_what_its_procedure_rejects():
    """The procedure of the paper, written with thresholds: the k-th smallest of m is compared with level / (m - k + 1)."""
    generator = np.random.default_rng(0)
    for _ in range(200):
        p = generator.random(generator.integers(1, 9)) ** 3
        rejected = set()
        for rank, place in enumerate(np.argsort(p)):
            if p[place] > 0.05 / (len(p) - rank):
                break
            rejected.add(int(place))
        assert {i for i, adjusted in enumerate(holm.adjusted(p)) if adjusted <= 0.05} == rejected


def test_holm_of_a_worked_example():
    assert holm.adjusted([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm.adjusted([0.6, 0.7]) == [1.0, 1.0] and holm.adjusted([]) == []


def test_holm_keeps_the_chance_of_one_false_alarm():
    """Twelve true hypotheses: 5% of 2,000 families have a false alarm; three deviations are 1.5%."""
    p = np.random.default_rng(1).random((2000, 12))
    alarms = np.mean([min(holm.adjusted(row)) < 0.05 for row in p])
    assert 0.035 < alarms < 0.065 < np.mean((p < 0.05).any(1))


# ---------------------------------------------------------------- signs


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (4, 0), (9, 1), (30, 12), (700, 812), (5, 5)])
def test_the_sign_test_is_scipys(wins, losses):
    expected = scipy.stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert signs.of_counts(wins, losses) == pytest.approx(expected)
    answers = np.array([1.0] * wins + [-1.0] * losses + [0.0] * 50)
    assert signs.sign_flip(100 * answers, resamples=100) == pytest.approx(expected), "whatever the unit"


def test_few_differences_have_every_sign_tried():
    differences = np.array([2.0, -0.5, 1.0, 3.0, 0.25])
    sums = [abs(np.dot(s, differences)) for s in itertools.product((-1, 1), repeat=5)]
    expected = np.mean([s >= abs(differences.sum()) - 1e-12 for s in sums])
    assert signs.sign_flip(differences, resamples=100) == expected
    drawn = scipy.stats.permutation_test((differences, np.zeros(5)), lambda a, b, axis: (a - b).sum(axis),
                                         permutation_type="samples", vectorized=True)  # fmt: skip
    assert expected == pytest.approx(drawn.pvalue)


def test_many_differences_are_drawn_as_scipy_draws_them():
    differences = np.random.default_rng(2).choice([-1.0, -0.5, 0.0, 0.5, 1.0], 300, p=[0.2, 0.1, 0.3, 0.15, 0.25])
    found = signs.sign_flip(differences, resamples=20_000)
    drawn = scipy.stats.permutation_test((differences, np.zeros(300)), lambda a, b, axis: (a - b).sum(axis), n_resamples=5000,
                                         permutation_type="samples", vectorized=True, rng=np.random.default_rng(0))  # fmt: skip
    assert found == pytest.approx(drawn.pvalue, abs=0.02)
    assert found == signs.sign_flip(differences, resamples=20_000) == signs.sign_flip(-differences, resamples=20_000)


@pytest.mark.parametrize(
    ("one", "other", "items"), [(70.0, 60.0, 40), (55.0, 50.0, 40), (95.0, 90.0, 60), (5.0, 20.0, 20)]
)
def test_shares_have_the_largest_p_value_of_all_answers_with_them(one, other, items):
    a, b = round(one * items / 100), round(other * items / 100)
    both = range(max(0, a + b - items), min(a, b) + 1)  # items that both have right
    assert signs.of_shares(one, other, items) == max(signs.of_counts(a - n, b - n) for n in both)


def test_shares_of_imagenets_size():
    """MSBReg's 66.2 and SwAV's 65.7 of 50,000 images might differ by chance; 66.2 and 64.9 can not."""
    assert signs.of_shares(66.2, 65.7, 50_000) > 0.05 > signs.of_shares(66.2, 64.9, 50_000)


# ---------------------------------------------------------------- spread


def test_the_pooled_test_is_scipys():
    one, other = [70.1, 70.9, 71.3], [69.0, 69.9]
    assert spread.pooled(one, other).p == pytest.approx(scipy.stats.ttest_ind(one, other).pvalue)


def test_one_number_beside_several():
    """Student's prediction interval, written out: 3 numbers with mean 70 and deviation 1, and one number."""
    assert spread.pooled([69.0, 70.0, 71.0], [72.0]).p == pytest.approx(
        2 * scipy.stats.t.sf(2 / math.sqrt(1 + 1 / 3), 2)
    )


def test_without_a_spread():
    assert spread.pooled([1.0], [2.0]) is None and spread.pooled([], [1.0, 2.0, 3.0]) is None
    assert spread.pooled([1.0, 1.0], [1.0, 1.0]).p == 1.0 and spread.pooled([1.0, 1.0], [2.0, 2.0]).p == 0.0


def test_a_detectable_difference_is_found_four_times_in_five():
    """Draw differences around the detectable one; the test finds 80% of 4,000; three deviations are 2%."""
    generator, error = np.random.default_rng(3), 0.7
    drawn = generator.normal(spread.detectable(error), error, 4000)
    assert np.mean(np.abs(drawn) > 1.959964 * error) == pytest.approx(0.8, abs=0.02)
    assert spread.detectable(1.0) == pytest.approx(1.959964 + 0.841621)
    assert spread.detectable(1.0, freedom=4) > spread.detectable(1.0)


# ---------------------------------------------------------------- ranks


def test_friedman_is_scipys():
    scores = np.random.default_rng(4).integers(0, 6, (9, 4)).astype(float)  # equal scores among them
    found = ranks.ranking(scores)
    assert found.p == pytest.approx(scipy.stats.friedmanchisquare(*scores.T).pvalue)
    assert found.ranks == pytest.approx(scipy.stats.rankdata(-scores, axis=1).mean(0))
    assert ranks.ranking(np.ones((3, 3))).p == 1.0


DEMSAR_TABLE_5 = {2: 1.960, 3: 2.343, 4: 2.569, 5: 2.728, 6: 2.850, 7: 2.949, 8: 3.031, 9: 3.102, 10: 3.164}


@pytest.mark.parametrize(("rows", "q"), DEMSAR_TABLE_5.items())
def test_the_critical_values_of_demsars_table(rows, q):
    assert ranks.critical_difference(rows, 1) / math.sqrt(rows * (rows + 1) / 6) == pytest.approx(q, abs=1e-3)


def test_the_example_of_demsar():
    """Section 3.2.3: four classifiers on 14 data sets have a critical difference of 1.25, two levels 0.05 and 0.10."""
    assert ranks.critical_difference(4, 14) == pytest.approx(1.25, abs=0.005)
    assert ranks.critical_difference(4, 14, level=0.1) == pytest.approx(1.12, abs=0.005)


def test_bars_join_what_is_not_told_apart():
    found = ranks.Ranking((1.2, 3.1, 2.0, 3.9), 14, 0.001, 1.25)
    assert ranks.groups(found) == [(0, 2), (2, 1), (1, 3)]
    alike = ranks.Ranking((1.2, 3.1, 2.0, 3.9), 14, 0.2, 1.25)
    assert ranks.groups(alike) == [(0, 2, 1, 3)], "Friedman's test finds nothing, so no pair is looked at"


@pytest.mark.parametrize(
    "scores", [np.ones((1, 3)), np.ones((3, 1)), np.array([[1.0, np.nan], [1.0, 2.0]]), np.ones(3)]
)
def test_ranks_need_whole_tables(scores):
    with pytest.raises(ValueError, match="without gaps"):
        ranks.ranking(scores)


# ---------------------------------------------------------------- marks


def of_width(values, width):
    """Return p-values as if gaps above the width were beyond the noise."""
    return lambda one, other: 0.01 if abs(values[one] - values[other]) > width else 0.5


@pytest.mark.parametrize(
    ("values", "width", "higher", "expected"),
    [
        ([3.0, 1.0, 2.0], 0.5, True, ["best", "", "second"]),
        ([3.0, 1.0, 2.0], 0.5, False, ["", "best", "second"]),
        ([3.0, 1.0, 2.0], 1.5, True, ["level", "", "level"]),
        ([9.0, 3.0, 2.0, 1.0], 1.5, True, ["best", "", "", ""]),
        ([3.0, 3.0, 2.0], 0.5, True, ["level", "level", ""]),
        ([9.0, 2.0, 2.0], 0.5, True, ["best", "", ""]),
        ([3.0, 1.0], 0.5, True, ["best", ""]),
        ([3.0], 0.5, True, [""]),
        ([], 0.5, True, []),
    ],
)
def test_a_gap_within_the_noise_is_never_the_best(values, width, higher, expected):
    assert marks.marks(values, of_width(values, width), higher=higher) == expected


def test_unknown_noise_marks_nothing_but_what_is_known_to_be_level():
    assert marks.marks([3.0, 2.0], lambda i, j: None, higher=True) == ["", ""]
    assert marks.marks([3.0, 2.0, 1.0], lambda i, j: 0.5 if j == 1 else None, higher=True) == ["level", "level", ""]
    assert marks.marks([3.0, 2.0, 1.0], lambda i, j: 0.01 if i == 0 else None, higher=True) == ["best", "", ""]


def test_a_tally_counts_what_is_told_apart():
    gaps = [(2.0, 0.01), (-1.0, 0.001), (0.5, 0.4), (9.0, None), (0.0, 0.0)]
    assert marks.tally(gaps) == marks.Tally(won=1, lost=1, level=3)
