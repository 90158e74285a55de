"""Intrinsic dimension, cluster learnability and all diagnostics together: known answers, sklearn, degenerate features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from backbench import diagnostics, embeddings
from backbench.diagnostics import DIAGNOSTICS, cluster_learnability, intrinsic_dimension, kmeans, measure, uniformity
from backbench.spectra import Undefined


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def manifold(dimension, rows=1500, width=20):
    """Return points of a curved manifold: a cube of some dimension, bent and turned into more dimensions."""
    generator = torch.Generator().manual_seed(dimension)
    flat = torch.rand(rows, dimension, generator=generator, dtype=torch.float64)
    bent = torch.cat([flat, 0.3 * torch.sin(2 * flat)], dim=1)
    return bent @ torch.linalg.qr(drawn(width, 2 * dimension, seed=7))[0].T


def blobs(clusters=16, rows=16, spread=0.01):
    """Return `clusters` x `rows` points around orthogonal directions, and their clusters, in a random order."""
    centres = torch.eye(clusters, dtype=torch.float64).repeat_interleave(rows, dim=0)
    order = torch.randperm(clusters * rows, generator=torch.Generator().manual_seed(1))
    points = centres + spread * drawn(clusters * rows, clusters)
    return points[order], (torch.arange(clusters * rows) // rows)[order]


@pytest.mark.parametrize("dimension", [1, 2, 5])
def test_the_dimension_of_a_manifold_is_found(dimension):
    assert intrinsic_dimension(manifold(dimension)) == pytest.approx(dimension, rel=0.12)


def test_intrinsic_dimension_is_the_line_of_sklearns_neighbours():
    x = manifold(3, rows=300)
    distance, _ = NearestNeighbors(n_neighbors=3, algorithm="brute").fit(x.numpy()).kneighbors(x.numpy())
    log_ratios = np.sort(np.log(distance[:, 2] / distance[:, 1]))[:270]
    heights = -np.log(1 - np.arange(1, 271) / 300)
    slope = np.linalg.lstsq(log_ratios[:, None], heights, rcond=None)[0][0]
    assert intrinsic_dimension(x) == pytest.approx(slope, rel=1e-6)
    assert intrinsic_dimension(x + 1000) == pytest.approx(slope, rel=1e-6), "far from the origin"


def test_blocks_of_rows_change_no_diagnostic(monkeypatch):
    x = manifold(3, rows=300).float()
    before = measure(x)
    monkeypatch.setattr(diagnostics, "_BLOCK", 7)
    assert measure(x)[0] == pytest.approx(before[0], rel=1e-6)


def test_rows_that_are_there_twice_are_left_out():
    x = manifold(2, rows=400)
    once, twice = x[100:], torch.cat([x, x[:100]])
    distance, _ = NearestNeighbors(n_neighbors=3).fit(twice.numpy()).kneighbors(once.numpy())
    log_ratios = np.sort(np.log(distance[:, 2] / distance[:, 1]))[:270]
    heights = -np.log(1 - np.arange(1, 271) / 300)
    assert intrinsic_dimension(twice) == pytest.approx((log_ratios @ heights) / (log_ratios @ log_ratios), rel=1e-6)
    many = torch.cat([x, x[:1].expand(50, -1)])  # more copies than neighbours that are looked at
    assert intrinsic_dimension(many) == pytest.approx(intrinsic_dimension(x), rel=0.05)


@pytest.mark.parametrize("x", [torch.ones(50, 4), torch.eye(2), torch.tensor([[0.0], [1.0], [1.0], [0.0]])])
def test_too_few_different_rows_have_no_dimension(x):
    with pytest.raises(Undefined, match="differ from all others"):
        intrinsic_dimension(x)


def test_separated_clusters_are_learned_without_an_error():
    points, truth = blobs()
    labels = kmeans(points, 16)
    assert len({(int(a), int(b)) for a, b in zip(labels, truth, strict=True)}) == 16, "each cluster is found whole"
    assert cluster_learnability(points) == 100
    assert cluster_learnability(drawn(400, 40)) < 60, "noise has no clusters"


def test_kmeans_ends_where_sklearns_does():
    x = drawn(300, 5)
    first = diagnostics._first_centres(x, 12, torch.Generator().manual_seed(3))
    theirs = KMeans(12, init=first.numpy(), n_init=1, algorithm="lloyd", tol=0, max_iter=100).fit(x.numpy())
    labels = kmeans(x, 12, seed=3)
    assert torch.equal(labels, torch.from_numpy(theirs.labels_).long())
    assert len(labels.unique()) == 12
    assert torch.equal(kmeans(x, 12, seed=3), labels)


def test_first_centres_are_different_rows_while_there_are_any():
    x = torch.eye(5).repeat(20, 1)
    centres = diagnostics._first_centres(x, 5, torch.Generator().manual_seed(0))
    assert sorted(centres.argmax(dim=1).tolist()) == [0, 1, 2, 3, 4]
    assert len(kmeans(x, 8)) == 100, "more clusters than different rows"


def test_cluster_learnability_is_sklearns_nearest_neighbour():
    x = F.normalize(drawn(200, 6).float(), dim=1)
    labels = kmeans(x, 14).numpy()
    one, other = (part.numpy() for part in torch.randperm(200, generator=torch.Generator().manual_seed(0)).chunk(2))
    right = 0
    for query, bank in ((one, other), (other, one)):
        theirs = KNeighborsClassifier(1, metric="cosine", algorithm="brute").fit(x[bank].numpy(), labels[bank])
        right += int((theirs.predict(x[query].numpy()) == labels[query]).sum())
    assert cluster_learnability(5 * x) == pytest.approx(100 * right / 200)
    assert 20 < right / 2 < 95


def test_features_without_clusters():
    with pytest.raises(Undefined, match="one direction"):
        cluster_learnability(torch.arange(1.0, 21)[:, None].expand(20, 4))
    with pytest.raises(Undefined, match="3 images are too few"):
        cluster_learnability(torch.eye(3))


def test_uniformity_is_the_one_of_the_embeddings():
    x = drawn(30, 6)
    assert uniformity(x) == float(embeddings.uniformity(x))


def test_every_diagnostic_states_what_its_paper_calls_better():
    higher = {name: diagnostic.higher_is_better for name, diagnostic in DIAGNOSTICS.items()}
    assert higher == {
        "rankme": True,
        "effective_rank": True,
        "alpha_req": False,
        "uniformity": False,
        "intrinsic_dimension": True,
        "cluster_learnability": True,
    }
    spread, collapsed = drawn(400, 120), 0.01 * drawn(400, 120) + drawn(400, 1) * drawn(120, seed=1)
    better, worse = measure(spread)[0], measure(collapsed)[0]
    for name in ("rankme", "effective_rank", "uniformity", "intrinsic_dimension"):
        assert (better[name] > worse[name]) == higher[name], name


@pytest.mark.parametrize("name", DIAGNOSTICS)
def test_rotation_and_scale_change_no_diagnostic(name):
    x = drawn(400, 120) * torch.linspace(3, 0.1, 120, dtype=torch.float64)
    rotation = torch.linalg.qr(drawn(120, 120, seed=9))[0]
    tolerance = {"cluster_learnability": 0.1, "uniformity": 1e-4}.get(name, 1e-5)  # k-means may end elsewhere
    assert DIAGNOSTICS[name].of(7 * x @ rotation) == pytest.approx(DIAGNOSTICS[name].of(x), rel=tolerance)


def test_a_diagnostic_has_no_global_random_numbers():
    x = drawn(150, 120)
    torch.manual_seed(1)
    first = measure(x)
    state = torch.get_rng_state()
    assert measure(x) == first
    assert torch.equal(torch.get_rng_state(), state)


def test_collapsed_features_have_the_numbers_that_are_defined():
    values, reasons = measure(torch.full((150, 120), 2.0))
    assert values == {
        "rankme": pytest.approx(1, abs=1e-3),
        "effective_rank": 1,
        "uniformity": pytest.approx(0, abs=1e-5),
    }
    assert set(reasons) == {"alpha_req", "intrinsic_dimension", "cluster_learnability"}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_features_that_are_not_finite_have_no_number(bad):
    x = drawn(150, 120)
    x[3, 5] = bad
    values, reasons = measure(x)
    assert values == {} and set(reasons) == set(DIAGNOSTICS)
    assert set(reasons.values()) == {"the features contain NaN or infinite values"}


def test_every_diagnostic_names_its_paper():
    papers = {
        "rankme": "Garrido et al. 2023",
        "effective_rank": "Roy and Vetterli 2007",
        "alpha_req": "Agrawal et al. 2022",
        "uniformity": "Wang and Isola 2020",
        "intrinsic_dimension": "Facco et al. 2017",
        "cluster_learnability": "Lu et al. 2023",
    }
    for name, diagnostic in DIAGNOSTICS.items():
        assert papers[name] in diagnostic.of.__doc__
