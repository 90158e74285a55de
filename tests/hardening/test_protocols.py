"""Inputs for which protocols have no number, or a degenerate one: a sentence before the work, or the right number.

Features are made up; whether they were asked for says whether a sentence came before the long work.
"""

import math

import numpy as np
import pytest
import torch
from made_splits import Rows, voc_split

from backbench.config import build
from backbench.data.splits import ImageSplit
from backbench.errors import BackbenchError, ConfigError
from benchmarks import plan
from transfer import tasks
from transfer.protocol import RunContext, labelled_splits
from transfer.tasks import diagnostics, knn, linear_probe, semi_supervised, uniformity, voc07_lowshot, voc07_svm

CPU = torch.device("cpu")
FAST = {
    knn: {"k": [1, 3], "headline_k": 3},
    linear_probe: {"epochs": 3, "batch": 8, "rates": [0.01, 0.1], "holdout": 0.25},
    voc07_svm: {"costs": [0.1, 1.0], "jobs": 1},
    voc07_lowshot: {"k": [2], "headline_k": 2, "samples": 2, "negatives": 2, "jobs": 1},
}


def classes_of(rows, classes=3):
    return np.arange(rows) % classes


def features_of(labels, width=6, scale=1.0):
    rng = np.random.default_rng(len(labels))
    first = labels if labels.ndim == 1 else labels.argmax(axis=1)
    x = rng.normal(size=(len(labels), width)) + 2 * np.eye(width)[first % width]
    return (scale * x).astype(np.float32)


def signs(rows, columns=3, positives=8):
    """Return (rows, columns) int8 with these numbers of positives per class."""
    places = [np.isin((np.arange(rows) + 5 * c) % rows, np.arange(positives)) for c in range(columns)]
    return np.where(np.stack(places, axis=1), 1, -1).astype(np.int8)


def measure(monkeypatch, task, train, test, *, x_train=None, x_test=None, **fields):
    """Run a task on given features; return (metrics, context, splits whose features were requested)."""
    multi = train.ndim == 2
    names = tuple("abcdefghij"[: train.shape[1] if multi else max(3, 1 + train.max(initial=0))])
    made = {"train": features_of(train) if x_train is None else x_train,
            "test": features_of(test) if x_test is None else x_test}  # fmt: skip
    splits = {
        role: voc_split(role, labels, names) if multi else ImageSplit("made", role, Rows(len(labels)), labels, names)
        for role, labels in (("train", train), ("test", test))
    }
    asked = []

    def extract(backbone, split, ctx, **_):
        asked.append(split.split)
        return torch.from_numpy(made["train" if split is splits["train"] else "test"])

    monkeypatch.setattr(voc07_svm if multi else task, "extract", extract)
    preset = task.Config.model_fields["preset"].default
    config = build(task.Config, {**tasks.preset_fields(task, preset), "preset": preset, **FAST[task], **fields})
    ctx = RunContext(splits=splits, seed=0, device=CPU, cache=None)
    try:
        return task.run(None, config, ctx), ctx, asked
    except BackbenchError as refused:
        return refused, ctx, asked


def constant(rows, value=1.0):
    return np.full((rows, 6), value, np.float32)


def some_zero(labels):
    x = features_of(labels)
    x[::4] = 0
    return x


L, S = classes_of(30), signs(30)

# name -> (task, train labels, test labels, more fields, a part of the note or None)
NUMBERS = {
    "kNN: a class with one image": (knn, np.append(L[:20], 3), classes_of(9), {}, None),
    "kNN: as many neighbours as images": (knn, L, L, {"k": [30], "headline_k": 30}, None),
    "kNN: a neighbour twice": (knn, L, L, {"k": [3, 3], "headline_k": 3}, None),
    "kNN: one class": (knn, L * 0, L * 0, {}, None),
    "kNN: a class that train has not": (knn, L, np.full(6, 2) + np.arange(6) % 2, {}, None),
    "kNN: a class that test has not": (knn, L, L * 0, {}, None),
    "kNN: one test image": (knn, L, L[:1], {}, None),
    "kNN: the same features everywhere": (knn, L, L, {"x_train": constant(30), "x_test": constant(30)}, "collapsed"),
    "kNN: the same, unnormalised": (knn, L, L, {"x_train": constant(30), "metric": "euclidean", "temperature": None,
                                                "extra_columns": False}, "collapsed"),
    "kNN: zeros everywhere": (knn, L, L, {"x_train": constant(30, 0), "x_test": constant(30, 0)}, "collapsed"),
    "kNN: zeros for some": (knn, L, L, {"x_train": some_zero(L)}, "zero for 8 of 30 images"),
    "kNN: very large": (knn, L, L, {"x_train": features_of(L, scale=1e17), "x_test": features_of(L, scale=1e17)}, None),
    "kNN: very small": (knn, L, L, {"x_train": features_of(L, scale=1e-15)}, None),
    "kNN: a tiny temperature": (knn, L, L, {"temperature": 1e-6}, None),
    "linear: a class with one image": (linear_probe, np.append(L[:20], 3), classes_of(9), {}, None),
    "linear: one class": (linear_probe, L * 0, L * 0, {}, None),
    "linear: a class that test has not": (linear_probe, L, L * 0, {}, None),
    "linear: a batch larger than train": (linear_probe, L, L, {"batch": 4096}, None),
    "linear: constant": (linear_probe, L, L, {"x_train": constant(30), "x_test": constant(30)}, "collapsed"),
    "linear: zeros, normalised": (linear_probe, L, L, {"x_train": constant(30, 0), "head_norm": "affine"}, "collapsed"),
    "linear: a rate that diverges beside one that does not": (linear_probe, L, L, {"rates": [0.1, 1e38]}, None),
    "linear: one test image": (linear_probe, L, L[:1], {}, None),
    "SVM: constant": (voc07_svm, S, S, {"x_train": constant(30), "x_test": constant(30)}, "collapsed"),
    "SVM: zeros": (voc07_svm, S, S, {"x_train": constant(30, 0)}, "collapsed"),
    "SVM: as many positives as folds": (voc07_svm, signs(30, positives=3), S, {}, None),
    "SVM: one class": (voc07_svm, S[:, :1], S[:, :1], {}, None),
    "SVM: all test images positive": (voc07_svm, S, np.ones_like(S), {}, None),
    "few: as many positives as k": (voc07_lowshot, signs(30, positives=2), S, {}, None),
    "few: fewer negatives than asked for": (voc07_lowshot, signs(30, positives=28), S, {"negatives": 19}, "fewer than 38"),
    "few: one draw": (voc07_lowshot, S, S, {"samples": 1}, None),
    "few: constant": (voc07_lowshot, S, S, {"x_train": constant(30), "x_test": constant(30)}, "collapsed"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("kind", NUMBERS)
def test_a_degenerate_input_has_its_number(monkeypatch, kind):
    task, train, test, fields, note = NUMBERS[kind]
    found, ctx, _ = measure(monkeypatch, task, train, test, **fields)
    assert not isinstance(found, BackbenchError), found
    for name, metric in found.items():
        assert math.isfinite(metric.value) and 0 <= metric.value <= 100, (name, metric)
    if note:
        assert any(note in line for line in ctx.notes), ctx.notes
    if "collapsed" in (note or "") and task is linear_probe:
        assert found["top1"].value <= 50, "chance"
    if kind == "linear: a rate that diverges beside one that does not":
        assert ctx.tuned["lr"] == 0.1
    if kind in ("SVM: constant", "few: constant"):
        assert found[next(iter(found))].value == pytest.approx(100 * (S == 1).mean()), "equal scores give the base rate"


REFUSED = {
    "kNN: more neighbours than images": (knn, L[:10], L, {"k": [11], "headline_k": 11}, "set k to less"),
    "kNN: a headline that is not measured": (knn, L, L, {"headline_k": 7}, "headline_k 7 is not among k"),
    "linear: one training image": (linear_probe, L[:1], L, {}, "too few to hold"),
    "linear: nothing to hold out": (linear_probe, L[:2], L, {"holdout": 0.1}, "too few to hold"),
    "linear: one image a batch, normalised": (linear_probe, L[:1], L, {"holdout": 0.0, "rates": [0.1], "head_norm": "affine"},
                                              "a batch of one image"),
    "SVM: a class without a positive": (voc07_svm, signs(30, positives=0), S, {}, "too few images of class a"),
    "SVM: a class in all images": (voc07_svm, np.ones_like(S), S, {}, "30 with it, 0 without"),
    "SVM: fewer positives than folds": (voc07_svm, signs(30, positives=2), S, {}, "for 3 folds"),
    "SVM: no positive at test": (voc07_svm, S, signs(30, positives=0), {}, "at test, so its AP does not exist"),
    "SVM: difficult objects alone, dropped": (voc07_svm, np.where(S == 1, 0, -1).astype(np.int8), S, {"difficult": "drop"},
                                              "too few"),
    "SVM: difficult objects alone at test": (voc07_svm, S, np.where(S == 1, 0, -1).astype(np.int8), {}, "at test"),
    "SVM: one training image": (voc07_svm, S[:1], S, {}, "too few"),
    "few: k more than there are positives": (voc07_lowshot, signs(30, positives=1), S, {}, "for headline_k=2"),
    "few: no negatives": (voc07_lowshot, np.ones_like(S), S, {}, "30 with it, 0 without"),
    "few: a headline that is not measured": (voc07_lowshot, S, S, {"headline_k": 5}, "headline_k 5 is not among k"),
    "few: no positive at test": (voc07_lowshot, S, signs(30, positives=0), {}, "at test"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_has_no_number_is_refused_before_the_work(monkeypatch, kind):
    task, train, test, fields, words = REFUSED[kind]
    found, _, asked = measure(monkeypatch, task, train, test, **fields)
    assert isinstance(found, BackbenchError), found
    assert words in str(found) and "\n" not in str(found)
    assert asked == [], "no features are computed in vain"


DIVERGES = {
    "rates beyond all measure": {"rates": [1e38, 3e38]},
    "one rate, numbers lost in the last step": {"x_train": features_of(L, scale=1e3), "rates": [3e38], "holdout": 0.0,
                                                "epochs": 1, "batch": 64},
    "features near the end of float32": {"x_train": features_of(L, scale=1e30), "rates": [1e10, 1e12]},
}  # fmt: skip


@pytest.mark.parametrize("kind", DIVERGES)
def test_a_training_that_diverges_is_a_sentence(monkeypatch, kind):
    found, _, _ = measure(monkeypatch, linear_probe, L, L, **DIVERGES[kind])
    assert isinstance(found, BackbenchError) and "too high" in str(found)


SENSELESS = {
    "knn k=[]": (knn, {"k": []}),
    "knn k=0": (knn, {"k": [0]}),
    "knn k=-1": (knn, {"k": [-1]}),
    "knn temperature 0": (knn, {"temperature": 0.0}),
    "knn temperature negative": (knn, {"temperature": -0.07}),
    "knn chunk 0": (knn, {"chunk": 0}),
    "knn ties of another kind": (knn, {"ties": "random"}),
    "knn interpolation of another kind": (knn, {"interpolation": "nearest"}),
    "a limit below zero": (knn, {"data": {"limit": -1}}),
    "linear no rates": (linear_probe, {"rates": []}),
    "linear rate 0": (linear_probe, {"rates": [0.0]}),
    "linear batch 0": (linear_probe, {"batch": 0}),
    "linear epochs 0": (linear_probe, {"epochs": 0}),
    "linear holdout of all": (linear_probe, {"holdout": 1.0}),
    "linear size 1": (linear_probe, {"size": 1}),
    "semi std 0": (semi_supervised, {"std": [0.0, 0.1, 0.1]}),
    "semi std of two": (semi_supervised, {"std": [0.1, 0.1]}),
    "semi rate 0": (semi_supervised, {"rate_head": 0.0}),
    "SVM no costs": (voc07_svm, {"costs": []}),
    "SVM cost 0": (voc07_svm, {"costs": [0.0]}),
    "SVM one fold": (voc07_svm, {"folds": 1}),
    "SVM no process": (voc07_svm, {"jobs": 0}),
    "few no draws": (voc07_lowshot, {"samples": 0}),
    "few no k": (voc07_lowshot, {"k": []}),
    "uniformity t 0": (uniformity, {"t": 0.0}),
    "diagnostics of one image": (diagnostics, {"images": 1}),
    "LiDAR of one image": (diagnostics, {"lidar_images": 1}),
    "LiDAR of one view": (diagnostics, {"lidar_views": 1}),
    "LiDAR delta 0": (diagnostics, {"delta": 0.0}),
}


@pytest.mark.parametrize("kind", SENSELESS)
def test_a_senseless_field_is_refused(kind):
    task, fields = SENSELESS[kind]
    with pytest.raises(ConfigError):
        build(task.Config, fields)


@pytest.mark.parametrize("word", ["nan", "inf", "-inf", "1e999", ".nan", ".inf"])
@pytest.mark.parametrize("field", ["temperature", "rates", "cost", "t", "delta"])
def test_numbers_that_are_none_are_refused(field, word):
    cell = {
        "temperature": "imagenet_knn",
        "rates": "imagenet_linear",
        "cost": "voc07_lowshot",
        "t": "imagenet_uniformity",
        "delta": "imagenet_diagnostics",
    }[field]
    value = f"[{word}]" if field == "rates" else word
    with pytest.raises(ConfigError):
        plan.load_cell(cell, [f"{field}={value}"])


@pytest.mark.parametrize("t", [1e-6, 2.0, 300.0, 1e6])
@pytest.mark.parametrize("kind", ["two", "opposite", "alike", "zeros"])
def test_uniformity_is_a_number_whatever_t(kind, t):
    from backbench.embeddings import alignment
    from backbench.embeddings import uniformity as value

    x = {"two": torch.eye(2), "opposite": torch.tensor([[1.0, 0], [-1, 0]]), "alike": torch.ones(4, 3),
         "zeros": torch.zeros(3, 3)}[kind]  # fmt: skip
    assert math.isfinite(float(value(x, t)))
    assert float(alignment(x, x)) == 0


def test_splits_whose_classes_differ_are_refused(monkeypatch):
    from backbench.data import catalogue

    def load(name, role, places):
        return ImageSplit(name, role, Rows(4), np.zeros(4, np.int64), ("a", "b") if role == "train" else ("b", "a"))

    monkeypatch.setattr(catalogue, "load", load)
    config = build(knn.Config, {"data": {"name": "imagenet", "expect": "any"}})
    with pytest.raises(BackbenchError, match="different classes"):
        labelled_splits(config.data, None)
