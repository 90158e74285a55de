"""Logistic regressions for many penalties: scikit-learn's optima and choice, the source's loop to the digit, and its splits."""

import warnings

import numpy as np
import pytest
import torch
from made_splits import Rows, voc_split
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix

from backbench.config import build
from backbench.data import catalogue
from backbench.data.splits import ImageSplit
from backbench.errors import DataError
from transfer import logistic, tasks
from transfer.metrics import eleven_point_ap
from transfer.protocol import RunContext
from transfer.tasks import logistic as task

CPU = torch.device("cpu")
PENALTIES = np.geomspace(1e-6, 1e5, 12).tolist()
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def made(rows, features=24, classes=5, *, seed=0, lean=0.6, scale=1.0, like=None):
    """Non-negative rows with unequal axes that lean to their class; `like` draws more rows around the same classes."""
    rng = np.random.default_rng(seed)
    spread = np.arange(1, features + 1) ** -0.7
    centres = lean * rng.normal(size=(classes, features)) * spread
    mixed = rng.normal(size=(features, features)) / features**0.5
    rng = np.random.default_rng([seed, like or 0])
    labels = rng.permutation(np.arange(rows) % classes)
    z = rng.normal(size=(rows, features)) * spread + centres[labels]
    return torch.from_numpy((scale * np.maximum(z @ mixed + 0.3, 0)).astype(np.float32)), torch.from_numpy(labels)


def fitted(x, y, classes, penalties, iterations=100):
    rows = logistic.Rows(x, CPU)
    targets = y[:, None] if y.ndim == 1 else y
    return rows, list(logistic.fit_path(rows, targets, classes, penalties, iterations=iterations))


def reference(x, y, penalty, **fields):
    return LogisticRegression(C=1 / penalty, **{"tol": 1e-9, "max_iter": 5000, **fields}).fit(
        x.double().numpy(), y.numpy()
    )


def objective(x, y, penalty, weights, intercepts):
    """Written out row by row in float64; the softmax's loss in another way than in the module."""
    logits = x.double().numpy() @ weights.T + intercepts
    total = penalty / 2 * (weights**2).sum()
    for row, label in zip(logits, y.tolist(), strict=True):
        total += np.log(np.exp(row - row[label]).sum())
    return total


def plane(rows, theta):
    """Weights (K, C) and intercepts (K,) of the features as they are."""
    weights = theta[:, :-1].double() @ rows.axes.T
    return weights.numpy(), (theta[:, -1].double() - weights @ rows.mean).numpy()


SHAPES = {  # rows, features, scale
    "more rows than features": (150, 24, 1.0),
    "more features than rows": (60, 90, 1.0),
    "long rows": (150, 24, 50.0),
    "short rows": (150, 24, 0.02),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_fits_are_scikit_learns_optima(shape):
    count, features, scale = SHAPES[shape]
    x, y = made(count, features, scale=scale)
    other, _ = made(200, features, scale=scale, like=1)
    rows, fits = fitted(x, y, 5, PENALTIES)
    assert [fit.penalty for fit in fits] == sorted(PENALTIES, reverse=True)
    z = rows.project(other)
    compared = 0
    for fit in fits[1::3]:
        theirs = reference(x, y, fit.penalty, max_iter=2500)
        if theirs.n_iter_[0] == 2500:
            continue  # scikit-learn is not at the optimum
        compared += 1
        best = objective(x, y, fit.penalty, theirs.coef_, theirs.intercept_)
        assert fit.unfinished == 0
        assert objective(x, y, fit.penalty, *plane(rows, fit.theta[0])) <= best + 3e-5 * max(best, 1e-4 * len(x))
        expected = theirs.decision_function(other.double().numpy())
        found = fit.scores(z)[:, 0].double().numpy()
        found -= found.mean(axis=1, keepdims=True)  # equal up to a number common to all classes
        np.testing.assert_allclose(found, expected, rtol=0, atol=0.005 * np.abs(expected).max() + 1e-3)
    assert compared, "scikit-learn reaches the optimum of some penalty"


def test_regressions_side_by_side_equal_single_ones():
    x, _ = made(120)
    targets = torch.from_numpy(np.random.default_rng(1).integers(2, size=(120, 3)))
    rows, together = fitted(x, targets, 2, [100.0, 1.0, 0.01])
    for k in range(3):
        alone = fitted(x, targets[:, k], 2, [100.0, 1.0, 0.01])[1]
        for one, all_of_them in zip(alone, together, strict=True):
            torch.testing.assert_close(one.scores(rows.z)[:, 0], all_of_them.scores(rows.z)[:, k], rtol=0.02, atol=0.02)


def test_rows_in_parts_give_the_same_numbers(monkeypatch):
    x, y = made(90)
    whole = fitted(x, y, 5, [1.0])[1][0]
    monkeypatch.setattr(logistic, "_CHUNK", 24 * 7)
    rows, parts = fitted(x, y, 5, [1.0])
    torch.testing.assert_close(parts[0].scores(rows.z), whole.scores(logistic.Rows(x, CPU).z), rtol=1e-3, atol=1e-3)


def test_features_that_say_nothing_give_the_shares_of_the_classes():
    y = torch.tensor([0] * 30 + [1] * 10)
    for x in (torch.zeros(40, 3), torch.ones(40, 60)):
        rows, fits = fitted(x, y, 2, PENALTIES)
        for fit in fits:
            assert fit.unfinished == 0
            shares = fit.scores(rows.project(x[:1])).softmax(dim=2).flatten().tolist()
            assert shares == pytest.approx([0.75, 0.25], abs=1e-3)


def test_fits_that_stop_early_are_counted():
    x, y = made(150)
    assert [fit.unfinished for fit in fitted(x, y, 5, [1e-3], iterations=1)[1]] == [1]
    assert [fit.unfinished for fit in fitted(x, y, 5, [1e-3])[1]] == [0]


# ---------------------------------------------------------------- the task


@pytest.fixture
def measure(monkeypatch):
    """Run the task on features and labels by split; `marked` are the published validation rows."""

    def run(parts, preset="optimum", *, data="cifar10", marked=None, splits=None, **fields):
        names = tuple(str(i) for i in range(int(parts["train"][1].max()) + 1))
        splits = splits or {
            role: ImageSplit(data, role, Rows(len(x)), y.numpy(), names, validation=marked if role == "train" else None)
            for role, (x, y) in parts.items()
        }
        by_split = {splits[role].split: x for role, (x, _) in parts.items()}
        monkeypatch.setattr(task, "extract", lambda b, split, ctx, spec: by_split[split.split])
        values = {
            "data": {"name": data},
            **tasks.preset_fields(tasks.get("logistic"), preset),
            "preset": preset,
            "size": 32,
        }
        config = build(task.Config, {**values, **fields})
        ctx = RunContext(splits=splits, seed=0, device=CPU, cache=None)
        return {name: metric.value for name, metric in task.run(None, config, ctx).items()}, ctx

    return run


def held_out(count):
    """The source's rows to fit on and to choose on (linear.py, get_train_valid_loader)."""
    np.random.seed(0)
    indices = list(range(count))
    np.random.shuffle(indices)
    split = int(np.floor(0.2 * count))
    return indices[split:], indices[:split]


def script(parts, fit_on, choose_on, penalties, *, warm, **fields):
    """Return (penalty, machine) of a loop over scikit-learn that keeps the first best penalty, from the weakest on."""
    x, y = (each.double().numpy() if each.is_floating_point() else each.numpy() for each in parts["train"])
    loop, best, chosen = LogisticRegression(warm_start=warm, **fields), 0.0, None
    for penalty in penalties:
        score = loop.set_params(C=1 / penalty).fit(x[fit_on], y[fit_on]).score(x[choose_on], y[choose_on])
        if score > best:
            best, chosen = score, penalty
    return chosen, LogisticRegression(C=1 / chosen, **fields).fit(x, y)


@pytest.fixture(scope="module")
def overlapping():
    """Four classes with a best penalty in the middle, and 4,000 test rows: 0.1 percent is four of them."""
    return {"train": made(400, 60, 4, lean=0.35), "test": made(4000, 60, 4, lean=0.35, like=1)}


def test_choice_and_scores_are_scikit_learns(measure, overlapping):
    found, ctx = measure(overlapping)
    assert ctx.tuned["on"] == "80 images held out of train"
    penalties = np.geomspace(1e-6, 1e5, 45)[16:40:1]  # without those where scikit-learn takes thousands of iterations
    chosen, machine = script(overlapping, *held_out(400), penalties, warm=False, tol=1e-7, max_iter=3000)
    x, y = (each.numpy() for each in overlapping["test"])
    assert ctx.tuned["penalty"] == pytest.approx(chosen)
    assert found["top1"] == pytest.approx(100 * machine.score(x.astype(float), y), abs=0.1)
    assert 30 < found["top1"] < 95 and set(found) == {"top1", "top5", "mean_per_class"}
    assert len(ctx.tuned["top1_there"]) == 45 and ctx.items["best"].shape == (4000, 4)
    assert found["top1"] == pytest.approx(100 * float((ctx.items["best"][:, 0] == y).mean()))


def test_the_sources_loop_is_run_to_the_digit(measure, overlapping):
    parts = {"train": overlapping["train"], "test": tuple(each[:300] for each in overlapping["test"])}
    found, ctx = measure(parts, "ssl_transfer", penalties=12, iterations=15)
    how = {"warm": True, "tol": 1e-4 / 320, "max_iter": 15}
    chosen, _ = script(parts, *held_out(400), PENALTIES, **how)
    assert ctx.tuned["penalty"] == chosen
    x, y = parts["train"]
    last = LogisticRegression(C=1 / chosen, tol=1e-4 / 400, max_iter=15).fit(x.double().numpy(), y.numpy())
    answers = last.predict(parts["test"][0].double().numpy())
    assert ctx.items["best"][:, 0].tolist() == answers.tolist()
    assert found["top1"] == pytest.approx(100 * float((answers == parts["test"][1].numpy()).mean()))


def test_published_validation_images_choose(measure, overlapping):
    marked = np.arange(400) % 5 == 0
    parts = {"train": overlapping["train"], "test": tuple(each[:200] for each in overlapping["test"])}
    _, ctx = measure(parts, marked=marked, penalties=12)
    assert ctx.tuned["on"] == "80 images, the published validation part of train"
    rows = np.flatnonzero(~marked), np.flatnonzero(marked)
    chosen, _ = script(parts, *rows, PENALTIES[5:10], warm=False, tol=1e-7, max_iter=3000)
    assert ctx.tuned["penalty"] == pytest.approx(chosen)
    shuffled, _ = measure(parts, marked=np.arange(400) < 2, penalties=12)
    assert shuffled, "two images may choose too"


def test_mean_per_class_is_the_references(measure, overlapping):
    x, y = overlapping["test"]
    kept = torch.cat([(y == 0).nonzero()[:, 0], (y > 0).nonzero()[:150, 0]])  # unequal classes
    parts = {"train": overlapping["train"], "test": (x[kept], y[kept])}
    found, ctx = measure(parts, data="oxford_pets", penalties=12)
    assert "mean_per_class_there" in ctx.tuned
    matrix = confusion_matrix(y[kept].numpy(), ctx.items["best"][:, 0])
    assert found["mean_per_class"] == pytest.approx(100 * np.mean(matrix.diagonal() / matrix.sum(axis=1)))
    assert abs(found["mean_per_class"] - found["top1"]) > 0.2
    assert found["mean_per_class"] == pytest.approx(float(np.nanmean(ctx.items["per_class_top1"])), abs=1e-4)


@pytest.mark.parametrize(
    ("data", "headline"),
    [("cifar10", "top1"), ("fgvc_aircraft", "mean_per_class"), ("caltech101", "mean_per_class"), ("imagenet", "top1"),
     ("oxford_flowers", "mean_per_class"), ("oxford_pets", "mean_per_class"), ("voc", "mAP_11pt"), ("coco", "mAP_11pt")],
)  # fmt: skip
def test_the_headline_is_the_data_sets(data, headline):
    assert task.primary(build(task.Config, {"data": {"name": data}})) == headline
    assert catalogue.info(data).layout


@pytest.fixture
def several():
    """Three classes per image; a tenth of the labels is 0, difficult."""
    rng = np.random.default_rng(0)

    def draw(rows):
        labels = rng.choice(np.array([1, 0, -1], np.int8), (rows, 3), p=[0.3, 0.1, 0.6])
        x = rng.normal(size=(rows, 20))
        x[:, :3] += 1.0 * (labels == 1)
        return torch.from_numpy(x.astype(np.float32)), labels

    return draw(150), draw(300)


@pytest.mark.parametrize("preset", ["optimum", "ssl_transfer"])
def test_several_classes_are_one_regression_each_with_one_penalty(measure, several, preset):
    (x, labels), (x_test, truth) = several
    marked = np.arange(150) % 2 == 0
    train = ImageSplit("voc", "trainval", Rows(150), labels, ("ant", "bee", "cow"), validation=marked)
    splits = {"train": train, "test": voc_split("test", truth)}
    parts = {"train": (x, torch.from_numpy(labels)), "test": (x_test, torch.from_numpy(truth))}
    found, ctx = measure(parts, preset, data="voc", splits=splits, penalties=12)

    def scores(rows, other, penalty):
        """Both classes of a binary problem are penalised, as in scikit-learn 0.22's multinomial: half the penalty."""
        return np.stack([reference(x[rows], torch.from_numpy((labels[rows, k] == 1) * 1), penalty / 2, tol=1e-6)
                         .decision_function(other.double().numpy()) for k in range(3)], axis=1)  # fmt: skip

    def score(found, labels):
        return 100 * np.mean([eleven_point_ap(found[:, k], labels[:, k] == 1) for k in range(3)])

    by_penalty = {p: score(scores(np.flatnonzero(~marked), x[marked], p), labels[marked]) for p in PENALTIES[6:]}
    chosen = ctx.tuned["penalty"]
    assert chosen in by_penalty and by_penalty[chosen] == pytest.approx(max(by_penalty.values()), abs=0.1)
    assert found["mAP_11pt"] == pytest.approx(score(scores(np.arange(150), x_test, chosen), truth), abs=0.1)
    assert ctx.items["labels"].tolist() == np.where(truth == 1, 1, -1).tolist(), "difficult objects count as absent"
    assert ctx.items["scores"].shape == (300, 3) and set(found) == {"mAP_11pt", "mAP"}


def test_a_class_without_images_is_refused(measure, several):
    (x, labels), (x_test, truth) = several
    labels = labels.copy()
    labels[:, 1] = -1
    splits = {"train": voc_split("train", labels), "test": voc_split("test", truth)}
    parts = {"train": (x, torch.from_numpy(labels)), "test": (x_test, torch.from_numpy(truth))}
    with pytest.raises(DataError, match=r"too few images of class bee .* to fit a regression"):
        measure(parts, data="voc", splits=splits)


def test_too_few_images_to_choose_on_are_refused(measure):
    parts = {"train": made(4), "test": made(20)}
    with pytest.raises(DataError, match="4 training images are too few to hold out 20%"):
        measure(parts)


def test_a_penalty_at_the_end_and_fits_that_stop_are_noted(measure, overlapping):
    parts = {"train": overlapping["train"], "test": tuple(each[:50] for each in overlapping["test"])}
    _, ctx = measure(parts, penalties=3, weakest=1e4, strongest=1e6, iterations=1)
    assert any("at an end of the list" in note for note in ctx.notes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, ctx = measure(parts, "ssl_transfer", penalties=3, weakest=1e-4, strongest=1, iterations=2)
    assert any("3 regressions stopped at 2 iterations" in note for note in ctx.notes)
    assert any("on all training images stopped" in note for note in ctx.notes)
