"""Newton's method for many SVMs at once: the optimum by its own conditions, and liblinear's answers at a tight tolerance."""

import itertools

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from sklearn.svm import LinearSVC

from transfer import newton, svm

COSTS = (0.01, 1.0, 30.0, 1000.0)


def made(rows, features, classes=2, *, seed=0, scale=1.0, noise=0.7):
    """Rows that lean to their labels, overlapping; a tenth of the labels is 0."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(np.array([1, 0, -1], np.int8), (rows, classes), p=[0.25, 0.1, 0.65])
    x = np.abs(rng.normal(size=(rows, features))) + noise * (labels == 1) @ rng.normal(size=(classes, features))
    return (scale * svm.unit_rows(x)).astype(np.float32), labels


def gradient(x, labels, cost, weights, intercept):
    """Of the objective, written out machine by machine with the intercept as a last weight."""
    kept = labels != 0
    z = np.concatenate([x[kept].astype(np.float64), np.ones((kept.sum(), 1))], axis=1)
    w = np.append(weights, intercept)
    total = w.copy()
    for row, label in zip(z, labels[kept], strict=True):
        slack = max(0.0, 1 - label * (w @ row))
        total -= 2 * cost * (2 if label == 1 else 1) * slack * label * row
    return total


def tight(cost):
    return LinearSVC(C=cost, class_weight={1: 2, -1: 1}, dual=True, tol=1e-10, max_iter=200_000, random_state=0)


SHAPES = {  # rows, features, scale
    "more rows than features": (150, 12, 1.0),
    "more features than rows": (40, 90, 1.0),
    "as many": (60, 59, 1.0),
    "long rows": (120, 20, 30.0),
    "short rows": (120, 20, 0.01),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_gradient_is_zero_at_the_weights(shape):
    rows, features, scale = SHAPES[shape]
    x, labels = made(rows, features, scale=scale)
    asked = [(k, cost) for cost in COSTS for k in (0, 1)]
    fits = svm.fit_all(x, [labels[:, k] for k, _ in asked], [cost for _, cost in asked], solver="newton")
    assert fits.unfinished == 0
    for i, (k, cost) in enumerate(asked):
        start = np.linalg.norm(gradient(x, labels[:, k], cost, np.zeros(features), 0.0))
        assert np.linalg.norm(gradient(x, labels[:, k], cost, fits.weights[i], fits.intercepts[i])) <= 1e-6 * start


@pytest.mark.parametrize("shape", ["more rows than features", "more features than rows", "short rows"])
def test_machines_equal_liblinears_at_a_tight_tolerance(shape):
    rows, features, scale = SHAPES[shape]
    x, labels = made(rows, features, scale=scale)
    asked = [(0, 30.0), (1, 0.01), (0, 1.0), (1, 1.0), (0, 30.0)]  # in no order, one twice
    fits = svm.fit_all(x, [labels[:, k] for k, _ in asked], [cost for _, cost in asked], solver="newton")
    scores = fits.scores(x)
    for i, (k, cost) in enumerate(asked):
        kept = labels[:, k] != 0
        reference = tight(cost).fit(x[kept], labels[kept, k])
        np.testing.assert_allclose(scores[:, i], reference.decision_function(x), rtol=0, atol=1e-5)
    assert np.abs(scores[:, 0] - scores[:, 2]).max() > 1e-2, "the cost matters here"


@pytest.mark.parametrize("way", ["together", "dual", "primal"])
def test_every_way_to_take_a_step_leads_to_the_same_weights(way, monkeypatch):
    x, labels = made(90, 15, classes=3)
    y = torch.from_numpy(np.where(labels == 0, 1, labels).T.astype(float))
    weight = torch.from_numpy((labels != 0).T * np.where(labels == 1, 2.0, 1.0).T)
    expected, _ = newton.minimise(newton.Rows(torch.from_numpy(x)), y, weight, 3.0)
    used = []
    for name in ("_dual", "_primal"):
        real = getattr(newton, name)
        monkeypatch.setattr(newton, name, lambda *args, _name=name, _real=real: used.append(_name) or _real(*args))
    solver = newton._Solver
    real = solver._together
    monkeypatch.setattr(solver, "_together", lambda *args: used.append("_together") or real(*args))

    def step(self, y, c, active, w, gradient, enough):
        if way == "together":
            return self._together(2 * c * active, gradient, enough), torch.zeros(len(w), dtype=torch.bool)
        b = torch.zeros_like(y)
        for p in range(len(w)):
            chosen = active[p].nonzero().squeeze(1)
            b[p, chosen] = getattr(newton, f"_{way}")(self.rows, chosen, y[p, chosen], c[p, chosen])
        return b @ self.rows.x - w, torch.ones(len(w), dtype=torch.bool)

    monkeypatch.setattr(solver, "step", step)
    found, converged = newton.minimise(newton.Rows(torch.from_numpy(x)), y, weight, 3.0)
    assert bool(converged.all()) and set(used) == {f"_{way}"}
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_without_all_inner_products_the_weights_are_the_same(monkeypatch):
    x, labels = made(80, 30)
    fits = [svm.fit_all(x, list(labels.T), [1.0, 50.0], solver="newton")]
    monkeypatch.setattr(newton, "_KERNEL_BYTES", 0)
    fits.append(svm.fit_all(x, list(labels.T), [1.0, 50.0], solver="newton"))
    np.testing.assert_allclose(fits[0].weights, fits[1].weights, rtol=1e-6, atol=1e-7)


def test_few_machines_at_a_time_give_the_same_numbers(monkeypatch):
    from transfer import newton_fits

    x, labels = made(90, 10, classes=3)
    whole = svm.cross_validate(x, labels, COSTS, folds=3, solver="newton")
    monkeypatch.setattr(newton_fits, "_BYTES", 8 * 90 * 2)
    apart = svm.cross_validate(x, labels, COSTS, folds=3, solver="newton")
    np.testing.assert_allclose(whole[0], apart[0], rtol=0, atol=1e-12)


def test_the_images_left_out_do_not_matter():
    x, labels = made(90, 10)
    changed = x.copy()
    changed[labels[:, 1] == 0] = 100
    fits = [svm.fit_all(f, [labels[:, 1]], [1.0], solver="newton") for f in (x, changed)]
    np.testing.assert_allclose(fits[0].weights, fits[1].weights, rtol=1e-5, atol=1e-6)


def test_chosen_costs_are_liblinears_and_precisions_agree():
    """On overlapping classes, where liblinear converges; the costs in no order, one twice."""
    x, labels = made(400, 60, classes=4, noise=0.2)
    costs = (1.0, 0.01, 3.0, 0.1, 1.0, 0.3)
    found, unfinished = svm.cross_validate(x, labels, costs, folds=3, solver="newton")
    reference, _ = svm.cross_validate(x, labels, costs, folds=3, jobs=1)
    assert unfinished == 0 and found.shape == reference.shape == (4, 6, 3)
    assert np.abs(found - reference).max() < 2e-4, "0.02 of AP, in percent"
    assert np.array_equal(found.mean(axis=2).argmax(axis=1), reference.mean(axis=2).argmax(axis=1))
    assert np.array_equal(found[:, 0], found[:, 4])
    assert 0.3 < found.mean() < 0.97
    for k in range(4):
        kept, held_out = svm.split(labels[:, k], 3)[1]
        exact = tight(0.1).fit(x[kept], labels[kept, k]).decision_function(x[held_out])
        assert found[k, 3, 1] == pytest.approx(average_precision_score(labels[held_out, k], exact), abs=1e-9)


def test_labels_unlike_the_features_and_features_alike_end_too():
    rng = np.random.default_rng(0)
    hopeless = np.where(rng.random(60) < 0.5, 1, -1).astype(np.int8)
    one = np.where(np.arange(60) == 7, 1, -1).astype(np.int8)
    for x in (rng.normal(size=(60, 3)), np.ones((60, 3)), np.zeros((60, 3))):
        fits = svm.fit_all(x.astype(np.float32), [hopeless, one] * 2, [1e5, 1e5, 1e-6, 1e-6], solver="newton")
        assert fits.unfinished == 0 and np.isfinite(fits.weights).all()


def test_machines_that_do_not_converge_are_counted(monkeypatch):
    monkeypatch.setattr(newton, "MAX_STEPS", 1)
    x, labels = made(90, 10)
    assert svm.fit_all(x, list(labels.T), [1.0, 1.0], solver="newton").unfinished == 2
    assert svm.cross_validate(x, labels, (1.0, 10.0), folds=2, solver="newton")[1] == 8


@pytest.mark.parametrize(
    ("costs", "square"), [((0.01, 0.1, 1000.0), 2.0), ((0.5,), 2.0), ((1e-7, 1.0), 2.0), ((3.0,), 1e4)]
)
def test_steps_between_costs_are_at_most_tenfold(costs, square):
    path = newton.steps_to(costs, square)
    assert set(costs) <= set(path) and path[0] * square <= 0.02
    assert all(a < b <= 10.5 * a for a, b in itertools.pairwise(path))
