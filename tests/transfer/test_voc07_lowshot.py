"""VOC07 with few images: draws, metrics, and what is left out."""

import numpy as np
import pytest
import torch
from made_splits import CLASSES, voc_split
from sklearn.svm import LinearSVC

from backbench.config import build
from backbench.errors import DataError
from transfer import tasks
from transfer.metrics import area_ap
from transfer.protocol import RunContext, limited
from transfer.tasks import voc07_lowshot, voc07_svm


@pytest.fixture
def embedded():
    """Training images: 20 positives of ant, 9 of bee, 30 of cow, and some difficult ones."""
    rng = np.random.default_rng(0)

    def make(rows, positives):
        labels = np.full((rows, 3), -1, np.int8)
        for k, count in enumerate(positives):
            order = rng.permutation(rows)
            labels[order[:count], k], labels[order[count : count + 12], k] = 1, 0
        x = rng.normal(size=(rows, 30)).astype(np.float32)
        x[:, :3] += 1.5 * (labels == 1)
        return x, labels

    return {"train": make(220, (20, 9, 30)), "test": make(90, (20, 20, 20))}


@pytest.fixture
def measure(monkeypatch):
    def run(parts, seed=0, classes=CLASSES, **fields):
        splits = {role: voc_split(role, labels, classes) for role, (_, labels) in parts.items()}
        by_split = {split.split: torch.from_numpy(parts[role][0]) for role, split in splits.items()}
        monkeypatch.setattr(voc07_svm, "extract", lambda b, split, ctx, **_: by_split[split.split])
        config = build(voc07_lowshot.Config, {"jobs": 1, **fields})
        ctx = RunContext(splits=splits, seed=seed, device=torch.device("cpu"), cache=None)
        return {name: metric.value for name, metric in voc07_lowshot.run(None, config, ctx).items()}, ctx

    return run


# ---------------------------------------------------------------- the draws


def test_draws_k_positives_and_nineteen_times_as_many_negatives(embedded):
    labels = embedded["train"][1]
    for k in (1, 4, 9):
        drawn = voc07_lowshot.draw(labels, k, 19 * k, sample=0)
        assert drawn.dtype == np.int8
        assert (drawn == 1).sum(axis=0).tolist() == [k] * 3
        assert (drawn == -1).sum(axis=0).tolist() == [min(19 * k, n) for n in (labels == -1).sum(axis=0)]
        taken = drawn != 0
        assert np.array_equal(drawn[taken], labels[taken]), "the difficult ones are never drawn, no label changes"


def test_draws_differ_between_samples_and_classes_and_repeat(embedded):
    labels = np.repeat(embedded["train"][1][:, :1], 2, axis=1)  # two classes with the same labels
    first, again, other = (voc07_lowshot.draw(labels, 4, 76, sample) for sample in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first[:, 0], first[:, 1])


def test_every_positive_is_drawn_as_often_as_any_other():
    labels = np.where(np.arange(60) < 10, 1, -1).astype(np.int8)[:, None]
    counts = sum((voc07_lowshot.draw(labels, 3, 15, sample) != 0)[:, 0].astype(int) for sample in range(1000))
    assert abs(counts[:10] / 1000 - 0.3).max() < 0.06  # 4 standard deviations
    assert abs(counts[10:] / 1000 - 0.3).max() < 0.06


# ---------------------------------------------------------------- the numbers


@pytest.mark.parametrize("difficult_test", ["drop", "negative"])
def test_equals_a_plain_loop(measure, embedded, difficult_test):
    found, _ = measure(embedded, k=[2, 8], headline_k=8, samples=3, cost=2.0, difficult_test=difficult_test)
    (x, labels), (x_test, truth) = ((f / (np.linalg.norm(f, axis=1) + 1e-5)[:, None], y) for f, y in embedded.values())
    for k in (2, 8):
        means = []
        for sample in range(3):
            drawn = voc07_lowshot.draw(labels, k, 19 * k, sample)
            each = []
            for c in range(3):
                rows = drawn[:, c] != 0
                machine = LinearSVC(C=2.0, class_weight={1: 2, -1: 1}, max_iter=2000, random_state=0)
                scores = machine.fit(x[rows], drawn[rows, c]).decision_function(x_test)
                kept = truth[:, c] != 0 if difficult_test == "drop" else np.full(len(truth), True)
                each.append(area_ap(scores[kept], truth[kept, c] == 1))
            means.append(100 * np.mean(each))
        assert found[f"mAP_k{k}"] == pytest.approx(np.mean(means), abs=1e-9)
        assert found[f"mAP_k{k}_std"] == pytest.approx(np.std(means, ddof=1), abs=1e-9)
    assert found["mAP_k8"] > found["mAP_k2"] > 20


def test_a_k_does_not_depend_on_the_others_nor_on_the_runs_seed(measure, embedded):
    alone, _ = measure(embedded, k=[4], headline_k=4)
    among, _ = measure(embedded, seed=7, k=[1, 4, 8], headline_k=1)
    assert alone == {name: among[name] for name in ("mAP_k4", "mAP_k4_std")}
    assert voc07_lowshot.TASK.deterministic


def test_a_single_draw_has_no_deviation(measure, embedded):
    found, _ = measure(embedded, k=[1, 2], headline_k=1, samples=1)
    assert set(found) == {"mAP_k1", "mAP_k2"}


# ---------------------------------------------------------------- what is left out


def test_a_k_above_the_rarest_class_is_left_out_and_said(measure, embedded):
    found, ctx = measure(embedded, k=[1, 9, 10, 32], headline_k=9, samples=2)
    assert {name for name in found if not name.endswith("_std")} == {"mAP_k1", "mAP_k9"}
    assert ctx.notes == ["left out: k=10, 32, because bee has only 9 positive images"]


def test_fewer_negatives_than_wanted_are_all_taken_and_said(measure, embedded):
    # ant has 188 negatives, bee 199, cow 178; k=9 wants 171, with 21 for each positive 189
    _, ctx = measure(embedded, k=[1, 9], headline_k=9, samples=2)
    assert ctx.notes == []
    _, ctx = measure(embedded, k=[1, 9], headline_k=9, samples=2, negatives=21)
    assert ctx.notes == ["k=9: fewer than 189 negatives of ant, cow; all were taken"]


def test_a_headline_that_cannot_be_measured(measure, embedded):
    with pytest.raises(DataError, match=r"voc trainval .* class bee \(9 with it, .* for headline_k=10: set it to less"):
        measure(embedded, k=[1, 10], headline_k=10)
    with pytest.raises(DataError, match=r"headline_k 16 is not among k \[1, 2\]"):
        measure(embedded, k=[1, 2])


def test_classes_without_negatives_or_test_images(measure, embedded):
    x, labels = embedded["train"]
    everywhere = np.where(labels == -1, np.int8(1), labels)
    with pytest.raises(DataError, match=r"class ant \(208 with it, 0 without\)"):
        measure({**embedded, "train": (x, everywhere)}, k=[1], headline_k=1)
    x, labels = embedded["test"]
    with pytest.raises(DataError, match=r"voc test .* AP does not exist"):
        measure({**embedded, "test": (x, np.where(labels == 1, np.int8(0), labels))}, k=[1], headline_k=1)


def test_fields_are_those_of_the_literature():
    gap, fair = (
        build(voc07_lowshot.Config, {**tasks.preset_fields(voc07_lowshot, name), "preset": name})
        for name in ("gap", "fair")
    )
    for config in (gap, fair):
        assert config.k == (1, 2, 4, 8, 16, 32, 64, 96)
        assert (config.negatives, config.samples, config.cost, config.difficult_test) == (19, 5, 0.5, "drop")
        assert voc07_lowshot.primary(config) == "mAP_k16"
    assert (gap.feature, gap.transform, fair.feature, fair.transform) == ("gap", "crop", "res5_2x2", "squash")


@pytest.mark.parametrize("k", [[1, 2, 4, 16], [16, 96], [2], [96]])
@pytest.mark.parametrize("headline", [0, -1])
def test_the_rehearsal_measures_its_own_headline(measure, k, headline):
    config = build(voc07_lowshot.Config, {"k": k, "headline_k": k[headline]})
    fields = {**config.model_dump(mode="json"), **voc07_lowshot.smoke(config), "jobs": 1}
    rng = np.random.default_rng(0)
    parts = {}
    for role in ("train", "test"):
        labels = np.where(rng.random((5011, 4)) < [[0.019, 0.05, 0.1, 0.4]], 1, -1).astype(np.int8)  # VOC07: 1.9 to 40%
        split = limited(voc_split(role, labels, tuple("abcd")), fields["data"]["limit"])
        parts[role] = (rng.normal(size=(len(split), 5)).astype(np.float32), split.labels)
    found, _ = measure(parts, classes=tuple("abcd"), **fields)
    assert voc07_lowshot.primary(build(voc07_lowshot.Config, fields)) in found
