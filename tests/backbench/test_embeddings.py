"""kNN, alignment, uniformity and spread against loops, second formulas and scikit-learn."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics.pairwise import cosine_distances
from sklearn.neighbors import KNeighborsClassifier

from backbench import embeddings
from backbench.embeddings import (
    alignment,
    knn_accuracy,
    knn_scores,
    neighbours,
    std_per_dimension,
    uniformity,
)

CLASSES = 4


@pytest.fixture
def data():
    """Overlapping classes, rows of very different lengths: query (30, 6), its labels, bank (90, 6), its labels."""
    generator = torch.Generator().manual_seed(1)
    centres = torch.randn(CLASSES, 6, generator=generator)

    def draw(count):
        labels = torch.randint(CLASSES, (count,), generator=generator)
        length = torch.rand(count, 1, generator=generator) * 3 + 0.2
        return (centres[labels] + torch.randn(count, 6, generator=generator)) * length, labels

    return *draw(30), *draw(90)


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


def nearness(a, b, metric):
    return cosine(a, b) if metric == "cosine" else -(math.dist(a, b) ** 2)


def loop_accuracy(query, query_labels, bank, bank_labels, k, metric, temperature):
    """Percent correct by a plain loop; a tied vote goes to the class of the nearest neighbour."""
    bank_rows, correct = bank.tolist(), 0
    for row, truth in zip(query.tolist(), query_labels.tolist(), strict=True):
        near = sorted(((nearness(row, b, metric), i) for i, b in enumerate(bank_rows)), reverse=True)[:k]
        votes: Counter[int] = Counter()
        for similarity, i in near:
            votes[int(bank_labels[i])] += 1 if temperature is None else math.exp(similarity / temperature)
        top = max(votes.values())
        winner = next(int(bank_labels[i]) for _, i in near if votes[int(bank_labels[i])] == top)
        correct += winner == truth
    return 100 * correct / len(query)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("chunk", [1, 7, 90, 4096])
def test_neighbours_equal_a_loop_whatever_the_chunk(data, metric, chunk):
    query, _, bank, _ = data
    similarity, index = neighbours(query, bank, 8, metric=metric, chunk=chunk)
    for row, values, found in zip(query.tolist(), similarity, index, strict=True):
        near = sorted(((nearness(row, b, metric), i) for i, b in enumerate(bank.tolist())), reverse=True)[:8]
        assert found.tolist() == [i for _, i in near]
        assert values.tolist() == pytest.approx([s for s, _ in near], rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("columns", [31, 32, 33, 160, 163, 1000])
@pytest.mark.parametrize("k", [1, 5, 31])
def test_the_largest_of_a_row_by_groups_are_those_of_a_sort(columns, k):
    x = torch.randn(40, columns, generator=torch.Generator().manual_seed(columns))
    x[:20] = x[:20].round()  # equal numbers: which of them is found is open
    found, index = embeddings._largest(x, k)
    assert torch.equal(x.gather(1, index), found)
    assert torch.equal(found.sort(dim=1, descending=True).values, x.sort(dim=1, descending=True).values[:, :k])
    assert all(len(set(row)) == len(row) for row in index.tolist())


def test_blocks_of_queries_and_pairs_of_blocks_change_nothing(data, monkeypatch):
    query, _, bank, _ = data
    before = [neighbours(query, bank, 8, metric="cosine"), uniformity(bank)]
    monkeypatch.setattr(embeddings, "_BLOCK", 7)
    after = [neighbours(query, bank, 8, metric="cosine"), uniformity(bank)]
    assert torch.equal(before[0][1], after[0][1])
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-6)


def test_all_of_the_bank_may_be_asked_for(data):
    query, _, bank, _ = data
    _, index = neighbours(query, bank, len(bank), metric="cosine", chunk=11)
    assert (index.sort(dim=1).values == torch.arange(len(bank))).all()


@pytest.mark.parametrize("k", [0, -1, 91])
def test_k_outside_the_bank_is_an_error(data, k):
    query, _, bank, _ = data
    with pytest.raises(ValueError, match="between 1 and the bank's 90 rows"):
        neighbours(query, bank, k, metric="cosine")


def test_knn_accuracy_with_k_larger_than_the_bank_is_an_error(data):
    with pytest.raises(ValueError, match="not 200"):
        knn_accuracy(*data, ks=(5, 200), classes=CLASSES)


def test_euclidean_neighbours_do_not_depend_on_the_origin():
    # Nearly collapsed features, all far from the origin: float32 must still tell them apart.
    generator = torch.Generator().manual_seed(0)
    bank, query = (torch.randn(n, 32, generator=generator) * 0.1 + 20 for n in (300, 20))
    _, index = neighbours(query, bank, 5, metric="euclidean")
    expected = torch.cdist(query.double(), bank.double(), compute_mode="donot_use_mm_for_euclid_dist")
    assert torch.equal(index, expected.topk(5, largest=False).indices)


@pytest.mark.parametrize(
    ("metric", "temperature"),
    [("cosine", None), ("cosine", 0.07), ("cosine", 1.0), ("euclidean", None), ("euclidean", 20.0)],
)
def test_knn_accuracy_equals_a_loop(data, metric, temperature):
    ks = (1, 2, 5, 20)
    read = knn_accuracy(*data, ks=ks, classes=CLASSES, metric=metric, temperature=temperature)
    expected = {k: loop_accuracy(*data, k, metric, temperature) for k in ks}
    assert read == pytest.approx(expected)
    assert len(set(expected.values())) > 1


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_knn_accuracy_equals_scikit_learn(metric):
    generator = torch.Generator().manual_seed(2)
    # Two classes and odd k: a majority vote has no ties, so both libraries must agree on every query.
    bank, query = (torch.randn(n, 5, generator=generator, dtype=torch.float64) for n in (80, 40))
    labels, truth = (torch.from_numpy(x[:, 0].numpy() > 0.3).long() for x in (bank, query))
    for k in (1, 3, 7):
        theirs = KNeighborsClassifier(k, metric=metric, algorithm="brute").fit(bank.numpy(), labels.numpy())
        expected = 100 * theirs.score(query.numpy(), truth.numpy())
        read = knn_accuracy(query, truth, bank, labels, ks=[k], classes=2, metric=metric, temperature=None)
        assert read == {k: pytest.approx(expected)}
        assert 50 < expected < 100


def test_weighted_votes_equal_scikit_learn_with_the_same_weights(data):
    query, truth, bank, labels = (x.double().numpy() if x.is_floating_point() else x.numpy() for x in data)
    theirs = KNeighborsClassifier(10, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.07))
    expected = theirs.fit(bank, labels).predict_proba(query)
    similarity, index = neighbours(data[0], data[2], 10, metric="cosine")
    scores = knn_scores(similarity, data[3][index], k=10, classes=CLASSES, temperature=0.07)
    assert (scores / scores.sum(1, keepdim=True)).numpy() == pytest.approx(expected, abs=1e-4)
    assert np.allclose(1 - cosine_distances(query, bank).min(axis=1), similarity[:, 0], atol=1e-5)
    assert 100 * (expected.argmax(1) == truth).mean() == pytest.approx(
        knn_accuracy(*data, ks=[10], classes=CLASSES, temperature=0.07)[10]
    )


def test_a_tied_vote_goes_to_the_nearest_neighbour_whatever_the_class_numbers():
    similarity = torch.tensor([[0.9, 0.8, 0.7, 0.6]])
    for first, second in itertools.permutations(range(3), 2):
        labels = torch.tensor([[first, second, second, first]])
        scores = knn_scores(similarity, labels, k=4, classes=3, temperature=None)
        assert scores.argmax().item() == first
        assert knn_scores(similarity, labels, k=3, classes=3, temperature=None).argmax().item() == second


def test_a_small_temperature_does_not_overflow():
    scores = knn_scores(torch.tensor([[-1.0, -2.0]]), torch.tensor([[1, 0]]), k=2, classes=2, temperature=1e-4)
    assert torch.isfinite(scores).all()
    assert scores.argmax().item() == 1


def test_every_query_is_counted_once_over_batches():
    bank = torch.eye(3)
    labels = torch.arange(3)
    query = bank.repeat(700, 1)
    truth = labels.repeat(700)
    truth[-1] = 0  # the only wrong one, in the incomplete last batch
    assert knn_accuracy(query, truth, bank, labels, ks=[1], classes=3) == {1: pytest.approx(100 * 2099 / 2100)}


def test_alignment_is_two_minus_two_cosines(data):
    a, b = data[0][:15], data[0][15:]
    expected = sum(2 - 2 * cosine(x, y) for x, y in zip(a.tolist(), b.tolist(), strict=True)) / 15
    assert alignment(a, b).item() == pytest.approx(expected, rel=1e-5)
    assert alignment(a, 5 * a).item() == pytest.approx(0, abs=1e-10)
    assert alignment(a, -a).item() == pytest.approx(4, rel=1e-5)


@pytest.mark.parametrize("t", [2.0, 0.5])
def test_uniformity_is_the_mean_over_different_pairs(data, t):
    rows = data[0].tolist()
    pairs = list(itertools.combinations(rows, 2))
    expected = math.log(sum(math.exp(-t * (2 - 2 * cosine(x, y))) for x, y in pairs) / len(pairs))
    assert uniformity(data[0], t).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("rows", [1024, 1025, 2500])
def test_uniformity_of_more_rows_than_are_held_at_once(rows):
    x = torch.randn(rows, 3, generator=torch.Generator().manual_seed(rows)) + 0.5
    squared = torch.pdist(F.normalize(x.double(), dim=1)).pow(2)
    assert uniformity(x).item() == pytest.approx(squared.mul(-2).exp().mean().log().item(), rel=1e-4)


def test_uniformity_of_collapse_and_of_the_simplex():
    assert uniformity(torch.ones(10, 4) * torch.arange(1, 11)[:, None]).item() == pytest.approx(0, abs=1e-5)
    assert uniformity(torch.eye(6)).item() == pytest.approx(-4, rel=1e-5)  # all squared distances are 2


def test_std_of_spread_and_collapsed_embeddings():
    spread = torch.randn(20_000, 32, generator=torch.Generator().manual_seed(0))
    assert std_per_dimension(spread).item() == pytest.approx(1, abs=0.01)
    lengths = torch.linspace(0.1, 9, 50)[:, None]
    assert std_per_dimension(lengths * torch.randn(1, 32)).item() == pytest.approx(0, abs=1e-5)


def test_std_is_the_second_formula(data):
    x = F.normalize(data[0].double(), dim=1)
    expected = np.mean([np.std(column, ddof=1) for column in x.T.numpy()]) * math.sqrt(6)
    assert std_per_dimension(data[0]).item() == pytest.approx(expected, rel=1e-5)
