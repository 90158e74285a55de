"""SimCLR, MoCo v2 and SimSiam against their equations written out in loops, the authors' formulas and lightly's classes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pretraining import tiny_recipe
from torch import Tensor, nn

from backbench.errors import ConfigError
from pretrain.config import load
from pretrain.methods import mocov2, simclr, simsiam
from pretrain.networks import HeadSizes
from pretrain.train import build_all, train_step

B, D, QUEUE = 5, 6, 7
NORMS = ("batch", "layer", "group", "group_ws", "none")


def embeddings(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 + 0.3


def lightly_loss(name: str, **fields: Any) -> nn.Module:
    loss = pytest.importorskip("lightly.loss", reason="lightly is not installed: pip install lightly")
    return getattr(loss, name)(**fields)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return a @ b / (a.pow(2).sum() * b.pow(2).sum()).sqrt()


# ---------------------------------------------------------------- SimCLR


def nt_xent_in_loops(p: Tensor, temperature: float) -> Tensor:
    """Every view of an image in turn against another one of it, with all other views in the denominator."""
    places = [(v, b) for v in range(p.shape[0]) for b in range(p.shape[1])]
    terms = []
    for v, b in places:
        others = {(w, c): (cosine(p[v, b], p[w, c]) / temperature).exp() for w, c in places if (w, c) != (v, b)}
        terms += [-(others[w, b] / sum(others.values())).log() for w in range(p.shape[0]) if w != v]
    return torch.stack(terms).mean()


def nt_xent_of_the_authors(p: Tensor, temperature: float) -> Tensor:
    """google-research/simclr, objective.py: sums over the two views, of means over the batch, with a mask of 1e9."""
    a, b = F.normalize(p, dim=-1)
    itself, labels = torch.eye(len(a), dtype=a.dtype) * 1e9, torch.arange(len(a))
    of_a = torch.cat([a @ b.T / temperature, a @ a.T / temperature - itself], dim=1)
    of_b = torch.cat([b @ a.T / temperature, b @ b.T / temperature - itself], dim=1)
    return F.cross_entropy(of_a, labels) + F.cross_entropy(of_b, labels)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
@pytest.mark.parametrize("views", [2, 3])
def test_nt_xent_is_the_equation(views, temperature):
    p = embeddings(views, B, D, seed=1)
    torch.testing.assert_close(simclr.nt_xent(p, temperature), nt_xent_in_loops(p, temperature))


def test_nt_xent_is_half_of_the_authors_sum_over_two_views():
    p = embeddings(2, B, D, seed=1)
    torch.testing.assert_close(2 * simclr.nt_xent(p, 0.2), nt_xent_of_the_authors(p, 0.2))


def test_nt_xent_is_lightlys():
    p = embeddings(2, B, D, seed=1)
    torch.testing.assert_close(simclr.nt_xent(p, 0.2), lightly_loss("NTXentLoss", temperature=0.2)(*p))


def test_nt_xent_has_the_gradient_of_finite_differences():
    assert torch.autograd.gradcheck(lambda p: simclr.nt_xent(p, 0.3), embeddings(3, 3, 4, seed=1).requires_grad_())


def test_nt_xent_of_equal_embeddings_is_the_logarithm_of_their_number():
    p = torch.ones(2, B, D, dtype=torch.float64, requires_grad=True)
    loss = simclr.nt_xent(p, 0.1)
    assert loss.item() == pytest.approx(math.log(2 * B - 1))
    (gradient,) = torch.autograd.grad(loss, p)
    assert bool(torch.isfinite(gradient).all())


# ---------------------------------------------------------------- MoCo v2


def info_nce_in_loops(p: Tensor, z: Tensor, queue: Tensor, temperature: float, pairs: list[tuple[int, int]]) -> Tensor:
    terms = []
    for v, k in pairs:
        for b in range(p.shape[1]):
            positive = (cosine(p[v, b], z[k, b]) / temperature).exp()
            negatives = sum((cosine(p[v, b], key) / temperature).exp() for key in queue)
            terms.append(-(positive / (positive + negatives)).log())
    return torch.stack(terms).mean()


def moco(*fields: str, views: int = 2) -> Any:
    return load("demo", ["method.name=mocov2", f"method.views={views}", f"method.queue={QUEUE}", *fields]).method


def a_queue(seed: int = 3) -> mocov2.Queue:
    queue = mocov2.Queue(QUEUE, D).double()
    queue.keys.copy_(F.normalize(embeddings(QUEUE, D, seed=seed), dim=1))
    return queue


@pytest.mark.parametrize("views", [2, 3])
def test_info_nce_is_the_equation_for_one_query_view(views):
    config, queue = moco(views=views), a_queue()
    p, z = embeddings(1, B, D, seed=1), embeddings(views - 1, B, D, seed=2)
    expected = info_nce_in_loops(p, z, queue.keys, 0.2, [(0, k) for k in range(views - 1)])
    torch.testing.assert_close(mocov2.losses(p, z, config, memory=queue)[0], expected)


@pytest.mark.parametrize("views", [2, 3])
def test_info_nce_is_the_equation_for_all_pairs_of_different_views(views):
    config, queue = moco("method.symmetric=true", views=views), a_queue()
    p, z = embeddings(views, B, D, seed=1), embeddings(views, B, D, seed=2)
    pairs = [(v, k) for v in range(views) for k in range(views) if v != k]
    expected = info_nce_in_loops(p, z, queue.keys, 0.2, pairs)
    torch.testing.assert_close(mocov2.losses(p, z, config, memory=queue)[0], expected)


def test_info_nce_is_the_authors_cross_entropy():
    """facebookresearch/moco, moco/builder.py: the positive's logit first, then those of the queue."""
    p, z, queue = embeddings(1, B, D, seed=1), embeddings(1, B, D, seed=2), a_queue()
    q, k = F.normalize(p[0], dim=1), F.normalize(z[0], dim=1)
    logits = torch.cat([torch.einsum("nc,nc->n", q, k)[:, None], q @ queue.keys.T], dim=1) / 0.2
    expected = F.cross_entropy(logits, torch.zeros(B, dtype=torch.long))
    torch.testing.assert_close(mocov2.losses(p, z, moco(), memory=queue)[0], expected)


def test_info_nce_and_the_queue_are_lightlys():
    theirs = lightly_loss("NTXentLoss", temperature=0.2, memory_bank_size=(3 * B, D)).double()
    queue = mocov2.Queue(3 * B, D).double()
    queue.keys.copy_(theirs.memory_bank.bank)
    for step in range(4):
        p, z = embeddings(1, B, D, seed=step).requires_grad_(), embeddings(1, B, D, seed=10 + step)
        torch.testing.assert_close(mocov2.losses(p, z, moco(), memory=queue)[0], theirs(p[0], z[0]))
        queue.end(p, z)
        torch.testing.assert_close(queue.keys, theirs.memory_bank.bank)


def test_info_nce_has_the_gradient_of_finite_differences_and_none_for_keys():
    p, z, queue = embeddings(1, 3, D, seed=1).requires_grad_(), embeddings(1, 3, D, seed=2).requires_grad_(), a_queue()
    assert torch.autograd.gradcheck(lambda x: mocov2.losses(x, z, moco(), memory=queue)[0], p)
    mocov2.losses(p, z, moco(), memory=queue)[0].backward()
    assert z.grad is None and not queue.keys.requires_grad


def test_a_query_view_and_a_key_view_are_forwarded_once_each():
    assert (moco().queries(), moco().keys()) == (range(1), range(1, 2))
    symmetric = moco("method.symmetric=true", "method.small_views=6")
    assert (symmetric.queries(), symmetric.keys()) == (range(8), range(2))
    with pytest.raises(ConfigError, match=r"small views are queries only; set method\.symmetric=true"):
        moco("method.small_views=6")


def test_the_queue_keeps_the_last_keys_in_their_order():
    """Also where the batch does not divide the queue, and where a step has more keys than the queue has places."""
    queue = mocov2.Queue(QUEUE, D).double()
    seen = [*queue.keys]
    for step, (views, images) in enumerate([(1, 3), (1, 3), (2, 2), (1, 6), (2, 5), (1, 7), (1, 1)]):
        z = embeddings(views, images, D, seed=step)
        queue.end(z, z)
        seen += [key / key.norm() for view in z for key in view]
        order = torch.cat([queue.keys[queue.oldest :], queue.keys[: queue.oldest]])
        torch.testing.assert_close(torch.stack(sorted(order, key=list)), torch.stack(sorted(seen[-QUEUE:], key=list)))
        if views * images <= QUEUE:
            torch.testing.assert_close(order, torch.stack(seen[-QUEUE:]))


def test_the_queue_starts_as_random_directions_that_the_seed_decides():
    first, again, other = (
        build_all(
            tiny_recipe("nowhere", "method.name=mocov2", "method.queue=24", f"run.seed={seed}"), torch.device("cpu")
        )
        for seed in (0, 0, 1)
    )
    assert torch.equal(first.online.memory.keys, again.online.memory.keys)
    assert not torch.equal(first.online.memory.keys, other.online.memory.keys)
    torch.testing.assert_close(first.online.memory.keys.norm(dim=1), torch.ones(24))


def test_the_keys_of_a_step_are_its_targets_and_come_into_the_queue_after_its_loss():
    config = tiny_recipe("nowhere", "method.name=mocov2", "method.queue=24", "run.float64=true")
    online, target, optimizer, scaler = build_all(config, torch.device("cpu"))
    views, before = torch.randn(2, 6, 3, 32, 32).double(), online.memory.keys.clone()
    expected = F.normalize(target(views[1:])[0], dim=1)
    train_step(online, target, optimizer, scaler, views, config, step=0, lr=0.0)
    torch.testing.assert_close(online.memory.keys[:6], expected)
    assert torch.equal(online.memory.keys[6:], before[6:])


# ---------------------------------------------------------------- SimSiam


def siam(views: int = 2) -> Any:
    return load("demo", ["method.name=simsiam", f"method.views={views}"]).method


@pytest.mark.parametrize("views", [2, 3])
def test_simsiams_loss_is_the_mean_negative_cosine_of_different_views(views):
    p, z = embeddings(views, B, D, seed=1), embeddings(views, B, D, seed=2)
    terms = [-cosine(p[i, b], z[j, b]) for i in range(views) for j in range(views) if i != j for b in range(B)]
    torch.testing.assert_close(simsiam.losses(p, z, siam(views))[0], torch.stack(terms).mean())


def test_simsiams_loss_is_the_authors_and_lightlys():
    """facebookresearch/simsiam, main_simsiam.py: `-(criterion(p1, z2).mean() + criterion(p2, z1).mean()) * 0.5`."""
    p, z = embeddings(2, B, D, seed=1), embeddings(2, B, D, seed=2)
    ours, criterion = simsiam.losses(p, z, siam())[0], nn.CosineSimilarity(dim=1)
    torch.testing.assert_close(ours, -(criterion(p[0], z[1]).mean() + criterion(p[1], z[0]).mean()) * 0.5)
    theirs = lightly_loss("NegativeCosineSimilarity")
    torch.testing.assert_close(ours, 0.5 * (theirs(p[0], z[1]) + theirs(p[1], z[0])))


def test_simsiams_loss_has_the_gradient_of_finite_differences_and_none_for_targets():
    p, z = embeddings(2, 3, D, seed=1).requires_grad_(), embeddings(2, 3, D, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: simsiam.losses(x, z, siam())[0], p)
    simsiam.losses(p, z, siam())[0].backward()
    assert z.grad is None


# ---------------------------------------------------------------- the heads


def shapes(head: nn.Module) -> list[tuple[int, int, bool]]:
    """Inputs, outputs and presence of a bias of every linear layer."""
    return [(m.in_features, m.out_features, m.bias is not None) for m in head if isinstance(m, nn.Linear)]


def test_heads_are_those_of_the_authors_code():
    sizes = HeadSizes(2048, 2048, 128, "batch")
    projector, predictor = simclr.heads(sizes, simclr.Config(layers=3))
    assert shapes(projector) == [(2048, 2048, False), (2048, 2048, False), (2048, 128, False)] and predictor is None
    assert [m.bias.requires_grad for m in projector if isinstance(m, nn.BatchNorm1d)] == [True, True, False]
    projector, predictor = mocov2.heads(HeadSizes(2048, 2048, 128, "none"), mocov2.Config())
    assert shapes(projector) == [(2048, 2048, True), (2048, 128, True)] and predictor is None
    assert not any(isinstance(m, nn.BatchNorm1d) for m in projector)
    projector, predictor = simsiam.heads(HeadSizes(2048, 2048, 2048, "batch"), simsiam.Config())
    assert shapes(projector) == [(2048, 2048, False)] * 3 and not projector[-1].affine
    assert shapes(predictor) == [(2048, 512, False), (512, 2048, True)]


@pytest.mark.parametrize("method", [simclr, mocov2, simsiam])
@pytest.mark.parametrize("norm", NORMS)
def test_heads_take_every_norm(method, norm):
    projector, predictor = method.heads(HeadSizes(12, 32, 128, norm), method.Config())
    z = projector(torch.randn(4, 12))
    assert z.shape == (4, 128) and (predictor is None or predictor(z).shape == (4, 128))
    normed = any(isinstance(m, (nn.BatchNorm1d, nn.LayerNorm, nn.GroupNorm)) for m in projector)
    assert normed is (norm != "none")
