"""Compare many SVMs at once with a simple script of LinearSVC and cross_val_score, in one process and in several."""

import warnings

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import cross_val_score
from sklearn.svm import LinearSVC

from backbench import progress
from transfer import svm

COSTS = (0.1, 2.0, 50.0)
JOBS = [1, pytest.param(2, marks=pytest.mark.slow)]


def plain(cost):
    return LinearSVC(C=cost, class_weight={1: 2, -1: 1}, max_iter=2000, dual=True, random_state=0)


@pytest.fixture(scope="module")
def features():
    """Over 1 MB, so that joblib maps it; overlapping classes; labels 0 of class 1 are left out."""
    rng = np.random.default_rng(0)
    labels = np.where(rng.random((300, 2)) < 0.25, 1, -1).astype(np.int8)
    x = rng.normal(size=(300, 1000)).astype(np.float32)
    x[:, :2] += 1.5 * labels
    labels[::7, 1] = 0
    return svm.unit_rows(x), labels


@pytest.mark.parametrize("jobs", JOBS)
def test_cross_validation_equals_a_plain_script(features, jobs):
    x, labels = features
    found, unfinished = svm.cross_validate(x, labels, COSTS, folds=3, jobs=jobs)
    assert found.shape == (2, 3, 3)
    for k in range(2):
        rows = labels[:, k] != 0
        for c, cost in enumerate(COSTS):
            expected = cross_val_score(plain(cost), x[rows], labels[rows, k], cv=3, scoring="average_precision")
            assert found[k, c].tolist() == expected.tolist()
    assert 0.3 < found.mean() < 0.98
    assert unfinished == 0


@pytest.mark.parametrize("jobs", JOBS)
def test_machines_equal_a_plain_script_in_the_order_asked_for(features, jobs):
    x, labels = features
    asked = [(0, 50.0), (1, 0.1), (0, 0.1), (1, 2.0)]
    fits = svm.fit_all(x, [labels[:, k] for k, _ in asked], [cost for _, cost in asked], jobs=jobs)
    scores = fits.scores(x[:40])
    assert scores.shape == (40, 4)
    for column, (k, cost) in enumerate(asked):
        rows = labels[:, k] != 0
        expected = plain(cost).fit(x[rows], labels[rows, k]).decision_function(x[:40])
        np.testing.assert_allclose(scores[:, column], expected, rtol=0, atol=1e-13)
    assert abs(scores[:, 0] - scores[:, 2]).max() > 1e-3, "the cost matters here"


def test_the_images_left_out_do_not_matter(features):
    x, labels = features
    changed = x.copy()
    changed[labels[:, 1] == 0] = 1000
    before, after = (svm.cross_validate(f, labels[:, 1:], (1.0,), folds=3, jobs=1)[0] for f in (x, changed))
    assert np.array_equal(before, after)
    before, after = (svm.fit_all(f, [labels[:, 1]], [1.0], jobs=1).scores(x) for f in (x, changed))
    assert np.array_equal(before, after)


@pytest.mark.parametrize("jobs", JOBS)
def test_fits_that_do_not_converge_are_counted_not_printed(jobs, capfd):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3)).astype(np.float32)
    hopeless = np.where(rng.random(60) < 0.5, 1, -1).astype(np.int8)  # labels that have nothing to do with the features
    easy = np.sign(x[:, 0]).astype(np.int8)
    with pytest.warns(ConvergenceWarning):
        plain(1e5).fit(x, hopeless)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fits = svm.fit_all(x, [hopeless, easy, hopeless], [1e5, 0.01, 1e5], jobs=jobs)
        _, unfinished = svm.cross_validate(x, np.stack([hopeless, easy], 1), (1e-3, 1e5), folds=2, jobs=jobs)
    assert fits.unfinished == 2
    assert unfinished >= 2
    assert "Convergence" not in "".join(capfd.readouterr())


def test_progress_counts_every_fit(features, monkeypatch):
    seen = []

    def track(items, *, total, label):
        seen.append((label, total, 0))
        for item in items:
            seen[-1] = (label, total, seen[-1][2] + 1)
            yield item

    monkeypatch.setattr(progress, "track", track)
    x, labels = features
    svm.cross_validate(x[:, :20], labels, COSTS, folds=2, jobs=1)
    svm.fit_all(x[:, :20], list(labels.T), [1.0, 1.0], jobs=1)
    assert seen == [("SVM fits", 12, 12), ("SVM fits", 2, 2)]


def test_unit_rows_by_hand():
    x = np.array([[3, 4], [0, 0], [3e-6, 4e-6]], np.float32)
    found = svm.unit_rows(x)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [[3 / 5.00001, 4 / 5.00001], [0, 0], [0.2, 4 / 15]], rtol=1e-6)
