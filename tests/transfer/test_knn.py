"""The kNN task against scikit-learn's classifier and a plain loop."""

import math

import numpy as np
import pytest
import torch
from made_splits import Rows
from sklearn.neighbors import KNeighborsClassifier

from backbench.config import build
from backbench.data.splits import ImageSplit
from backbench.errors import DataError
from transfer import tasks
from transfer.protocol import RunContext
from transfer.tasks import knn


@pytest.fixture
def embedded():
    """Overlapping classes with very different norms, so that the metric matters."""
    generator = torch.Generator().manual_seed(0)

    def make(rows, classes):
        labels = torch.randint(classes, (rows,), generator=generator)
        x = torch.randn(rows, 8, generator=generator) + 0.8 * torch.nn.functional.one_hot(labels, 8)
        return x * torch.rand(rows, 1, generator=generator).add(0.2).pow(2) * 5, labels

    return make


@pytest.fixture
def classify(monkeypatch):
    def run(bank, query, classes, preset, **fields):
        parts = {"train": bank, "test": query}
        names = tuple(str(i) for i in range(classes))
        splits = {role: ImageSplit("made", role, Rows(len(x)), y.numpy(), names) for role, (x, y) in parts.items()}
        monkeypatch.setattr(knn, "extract", lambda b, split, ctx, **_: parts[split.split][0])
        config = build(knn.Config, {**tasks.preset_fields(knn, preset), "preset": preset, **fields})
        ctx = RunContext(splits=splits, seed=0, device=torch.device("cpu"), cache=None)
        return {name: metric.value for name, metric in knn.run(None, config, ctx).items()}

    return run


@pytest.mark.parametrize("k", [1, 5, 11])
def test_wmse_equals_scikit_learn(classify, embedded, k):
    bank, query = embedded(300, 2), embedded(700, 2)  # two classes, odd k: no ties
    found = classify(bank, query, 2, "wmse", k=[k], headline_k=k)
    reference = KNeighborsClassifier(k, metric="euclidean").fit(*(part.numpy() for part in bank))
    expected = 100 * reference.score(query[0].numpy(), query[1].numpy())
    assert found == {f"top1_k{k}": pytest.approx(expected)}
    assert 50 < expected < 95
    cosine = classify(bank, query, 2, "wmse", k=[k], headline_k=k, metric="cosine")
    assert cosine != found, "the metric matters on these features"


@pytest.mark.parametrize("chunk", [7, 65536])
def test_npid_equals_a_plain_loop(classify, embedded, chunk):
    bank, query = embedded(150, 4), embedded(120, 4)
    found = classify(bank, query, 4, "npid", k=[1, 10, 20], headline_k=20, chunk=chunk)
    unit = [x.double().numpy() / np.linalg.norm(x.double().numpy(), axis=1, keepdims=True) for x, _ in (bank, query)]
    for k in (1, 10, 20):
        for suffix, temperature in (("", 0.07), ("_T0.1", 0.1)):
            right = 0
            for row, label in zip(unit[1], query[1].tolist(), strict=True):
                cosine = unit[0] @ row
                scores = dict.fromkeys(range(4), 0.0)
                for i in np.argsort(-cosine)[:k]:
                    scores[int(bank[1][i])] += math.exp(cosine[i] / temperature)
                right += max(scores, key=scores.get) == label
            assert found[f"top1_k{k}{suffix}"] == pytest.approx(100 * right / 120)
    assert set(found) == {f"top1_k{k}{s}" for k in (1, 10, 20) for s in ("", "_T0.1", "_majority")}


def test_presets_are_those_of_the_literature():
    npid = build(knn.Config, {**tasks.preset_fields(knn, "npid"), "preset": "npid"})
    assert (npid.k, npid.metric, npid.temperature) == ((10, 20, 100, 200), "cosine", 0.07)
    wmse = build(knn.Config, {**tasks.preset_fields(knn, "wmse"), "preset": "wmse"})
    assert (wmse.k, wmse.metric, wmse.temperature) == ((5,), "euclidean", None)
    assert (knn.primary(npid), knn.primary(wmse)) == ("top1_k20", "top1_k5")
    assert knn.TASK.deterministic


def test_more_neighbours_than_images(classify, embedded):
    bank, query = embedded(30, 3), embedded(10, 3)
    with pytest.raises(DataError, match="k=31 is more than the 30 training images"):
        classify(bank, query, 3, "npid", k=[5, 31], headline_k=5)
    assert "top1_k30" in classify(bank, query, 3, "npid", k=[30], headline_k=30)


def test_headline_must_be_measured(classify, embedded):
    with pytest.raises(DataError, match="headline_k 7 is not among k"):
        classify(embedded(30, 3), embedded(10, 3), 3, "npid", k=[5], headline_k=7)


@pytest.mark.parametrize("k", [[5], [10, 200], [100, 200], [20, 200], [200]])
@pytest.mark.parametrize("headline", [0, -1])
def test_the_rehearsal_measures_its_own_headline(classify, embedded, k, headline):
    config = build(knn.Config, {"k": k, "headline_k": k[headline]})
    smaller = build(knn.Config, {**config.model_dump(mode="json"), **knn.smoke(config)})
    assert smaller.headline_k in smaller.k
    found = classify(embedded(60, 3), embedded(10, 3), 3, "npid", k=list(smaller.k), headline_k=smaller.headline_k)
    assert knn.primary(smaller) in found


def test_every_query_is_counted_once(classify, embedded):
    """513 queries, one more than a chunk. Each is in the bank, so 1-NN is right for all except the changed ones."""
    x, labels = embedded(513, 3)
    changed = labels.clone()
    changed[-1] = (changed[-1] + 1) % 3
    found = classify((x, labels), (x, changed), 3, "wmse", k=[1], headline_k=1)
    assert found["top1_k1"] == pytest.approx(100 * 512 / 513)
