"""Paired intervals: compared with a plain loop, their coverage, and the cases without one."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.records import store
from benchmarks.report import paired
from transfer.metrics import area_ap, class_aps

N = 400


def test_equals_a_plain_loop_over_items(shelf, draws):
    """Two backbones, one with two seeds, beside one: quantiles of 20,000 resamples, drawn item by item here."""
    a, b, c, d = draws(0, 0.7, 0.6, 0.65, 0.5)
    mine = [shelf.top1(a, weights="a"), shelf.top1(b, weights="b", seed=0), shelf.top1(c, weights="b", seed=1)]
    other = [shelf.top1(d, weights="d")]
    found = shelf.interval(mine, other, resamples=20_000)
    generator, loop = np.random.default_rng(5), []
    for _ in range(20_000):
        rows = generator.integers(N, size=N)
        loop.append(100 * ((a[rows].mean() + (b[rows].mean() + c[rows].mean()) / 2) / 2 - d[rows].mean()))
    assert (found.low, found.high) == pytest.approx(np.quantile(loop, [0.025, 0.975]), abs=0.25)
    assert (found.items, found.resamples) == (N, 20_000)


def test_means_of_classes_equal_a_plain_loop(shelf, draws, make):
    """Classes of 300, 90 and 10 items: the mean over classes is drawn, and the smallest class widens the interval."""
    labels = np.repeat([0, 1, 2], [300, 90, 10]).astype(np.int32)[np.random.default_rng(3).permutation(N)]
    sides = []
    for right, weights in zip(draws(4, 0.7, 0.5), "ab", strict=True):
        best = np.where(right, labels, 9).astype(np.int32)[:, None]
        value = 100 * np.mean([right[labels == k].mean() for k in range(3)])
        record = make(value, metric="mean_per_class", weights=weights, more={"top1": 100.0 * right.mean()})
        sides.append((right, shelf.put(record, {"best": best, "labels": labels})))
    (a, mine), (b, other) = sides
    found = shelf.interval([mine], [other], metric="mean_per_class", resamples=4000)
    generator, loop = np.random.default_rng(5), []
    for _ in range(4000):
        rows = generator.integers(N, size=N)
        each = [
            (a[rows][labels[rows] == k].mean() - b[rows][labels[rows] == k].mean()) for k in np.unique(labels[rows])
        ]
        loop.append(100 * np.mean(each))
    assert (found.low, found.high) == pytest.approx(np.quantile(loop, [0.025, 0.975]), abs=0.8)
    plain = shelf.interval([mine], [other], metric="top1")
    assert found.high - found.low > 1.3 * (plain.high - plain.low)


def test_pairing_makes_it_narrower_than_independent_items(shelf, draws):
    """Items that are wrong on both sides do not change the difference."""
    (shared,) = draws(1, 0.5)
    better = shared.copy()
    better[np.flatnonzero(~shared)[:20]] = True
    found = shelf.interval([shelf.top1(better, weights="a")], [shelf.top1(shared, weights="b")])
    alone = 1.96 * 100 * (0.25 / N * 2) ** 0.5
    assert found.low > 0 and (found.high - found.low) / 2 < alone / 2


def test_identical_rows_have_no_width(shelf, draws):
    (right,) = draws(2, 0.5)
    found = shelf.interval([shelf.top1(right, weights="a")], [shelf.top1(right, weights="b")])
    assert (found.low, found.high) == (0.0, 0.0)


def test_covers_a_known_difference(shelf, draws):
    """19 of 20 95% intervals contain the true difference: of 200, 190 are expected; 180 and 198 are 3 deviations away."""
    held = 0
    for seed in range(200):
        mine, other = draws(seed, 0.70, 0.62)
        found = paired._of_means(100.0 * mine - 100.0 * other, 1000)
        held += found.low <= 8.0 <= found.high
    assert 180 <= held <= 198


def test_the_same_every_time(shelf, draws):
    a, b = draws(3, 0.7, 0.6)
    mine, other = [shelf.top1(a, weights="a")], [shelf.top1(b, weights="b")]
    assert shelf.interval(mine, other) == shelf.interval(mine, other)
    turned = shelf.interval(other, mine)
    found = shelf.interval(mine, other)
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low), abs=0.6)


def svm_scores(seed, strength, labels):
    noise = np.random.default_rng(seed).normal(size=labels.shape)
    return (noise + strength * (labels == 1)).round(1)  # rounded: scores tie


@pytest.fixture
def voc_labels():
    drawn = np.random.default_rng(0).random((120, 3))
    return np.where(drawn < 0.25, 1, np.where(drawn < 0.3, 0, -1)).astype(np.int8)


@pytest.mark.parametrize("difficult", ["drop", "negative"])
def test_mean_ap_equals_a_plain_loop(shelf, voc_labels, difficult, monkeypatch, make):
    config = {"difficult_test": difficult}
    truth = np.where(voc_labels == 0, np.int8(-1), voc_labels) if difficult == "negative" else voc_labels
    sides = []
    for weights, strength in (("a", 1.5), ("b", 0.5)):
        scores = svm_scores(ord(weights), strength, voc_labels).astype(np.float32)
        value = 100 * float(class_aps(area_ap, scores, truth).mean())
        record = make(value, metric="mAP", cell="voc07_svm", weights=weights)
        record = record.model_copy(update={"task": record.task.model_copy(update={"config": config})})
        sides.append((shelf.put(record, {"scores": scores, "labels": voc_labels}), scores))
    (mine, first), (other, second) = sides
    found = shelf.interval([mine], [other], "mAP", resamples=230)
    generator, loop = np.random.default_rng(paired.SEED), []
    while len(loop) < 230:
        for rows in generator.integers(120, size=(min(50, 230 - len(loop)), 120)):
            each = [class_aps(area_ap, scores[rows], truth[rows]).mean() for scores in (first, second)]
            loop.append(100 * (each[0] - each[1]))
    assert (found.low, found.high) == pytest.approx(np.quantile(loop, [0.025, 0.975]), abs=1e-9)


def test_average_precisions_are_resampled_less_often(shelf, voc_labels, monkeypatch):
    monkeypatch.setattr(paired, "AP_RESAMPLES", 100)
    sides = [[shelf.svm(svm_scores(0, 1.0, voc_labels), voc_labels, weights=w)] for w in "ab"]
    found = shelf.interval(*sides, "mAP", resamples=5000)
    assert (found.low, found.high, found.resamples) == (0.0, 0.0, 100)


def refused(shelf, mine, other, metric="top1"):
    found = shelf.interval(mine, other, metric)
    assert isinstance(found, str)
    return found


def test_other_data_have_no_interval(shelf, draws):
    a, b = draws(4, 0.7, 0.6)
    mine, other = shelf.top1(a, weights="a"), shelf.top1(b, weights="b", manifest="n")
    assert refused(shelf, [mine], [other]) == "measured on different data"


def test_no_interval_without_scores_of_items(shelf, draws, make):
    a, b = draws(4, 0.7, 0.6)
    mine, bare = shelf.top1(a, weights="a"), make(60.0, weights="b")
    assert "no scores per test item are stored" in refused(shelf, [mine], [bare])
    store.items_path(store.record_path(shelf.root, mine)).unlink()
    assert "no scores" in refused(shelf, [mine], [shelf.top1(b, weights="c")])


def test_no_interval_for_a_metric_that_is_not_in_the_scores(shelf, draws):
    a, b = draws(4, 0.7, 0.6)
    sides = [[shelf.top1(right, weights=w, more={"top1_k200": 40.0})] for w, right in (("a", a), ("b", b))]
    assert "for this metric" in refused(shelf, *sides, "top1_k200")


def test_scores_of_another_number_are_refused(shelf, draws):
    a, b = draws(4, 0.7, 0.6)
    mine, other = shelf.top1(a, weights="a"), shelf.top1(b, weights="b")
    changed = shelf.put(mine.model_copy(update={"seed": 1}), {"best": np.ones((N, 1)), "labels": np.ones(N)})
    assert "not those of the number" in refused(shelf, [changed], [other])


def test_other_labels_are_refused(shelf, draws, make):
    (a,) = draws(4, 0.7)
    mine, other = shelf.top1(a, weights="a"), make(100.0, weights="b")
    shelf.put(other, {"best": np.full((N, 1), 3), "labels": np.full(N, 3)})
    assert "labels differ" in refused(shelf, [mine], [other])


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x03\x04cut"])
def test_a_damaged_file_of_scores_is_said(shelf, draws, content):
    a, b = draws(4, 0.7, 0.6)
    mine, other = shelf.top1(a, weights="a"), shelf.top1(b, weights="b")
    shelf.items[mine.identity()].write_bytes(content)
    assert refused(shelf, [mine], [other]) == "seed0.items.npz of mine cannot be read: measure it again"


def test_mean_iou_equals_a_plain_loop(shelf, make):
    """The mean over classes of sums over drawn images; a class of few images widens the interval."""
    generator = np.random.default_rng(8)
    truth = generator.integers(0, 50, (60, 3))
    truth[6:, 2] = 0
    sides = []
    for weights, share in (("a", 0.8), ("b", 0.6)):
        shared = generator.binomial(truth, share)
        union = truth + generator.integers(0, 9, truth.shape)
        value = 100 * float(np.mean(shared.sum(0) / union.sum(0)))
        arrays = {"intersection": shared, "union": union, "truth": truth}
        sides.append((shared, union, shelf.put(make(value, metric="mIoU", weights=weights), arrays)))
    (s1, u1, mine), (s2, u2, other) = sides
    found = shelf.interval([mine], [other], metric="mIoU", resamples=4000)
    loop = []
    for _ in range(4000):
        rows = generator.integers(60, size=60)
        ious = [np.nanmean(s[rows].sum(0) / u[rows].sum(0)) for s, u in ((s1, u1), (s2, u2))]
        loop.append(100 * (ious[0] - ious[1]))
    assert (found.low, found.high) == pytest.approx(np.quantile(loop, [0.025, 0.975]), abs=0.4)
    changed = shelf.put(make(50.0, metric="mIoU", weights="c"), {"intersection": s1, "union": u1, "truth": truth})
    assert "not those of the number" in shelf.interval([changed], [other], metric="mIoU")
