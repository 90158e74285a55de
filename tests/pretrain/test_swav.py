"""SwAV: Sinkhorn's codes, the loss against its formula in loops and lightly's, the queue and the frozen prototypes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from pretraining import tiny_recipe
from torch import Tensor

from pretrain import train
from pretrain.methods.swav import Config, Prototypes, Queue, losses, sinkhorn

B, D, P = 6, 5, 4


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def built(**fields: object) -> tuple[Config, Prototypes, Queue]:
    """Return a configuration with P prototypes, the prototypes of length 1, and the queue."""
    config = Config(prototypes=P, **fields)
    prototypes = Prototypes(D, P, bias=False).double()
    queue = Queue(config, prototypes).double()
    queue.begin(0, 0.0)
    return config, prototypes, queue


def codes_as_printed(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """main_swav.py, `distributed_sinkhorn`: rows are prototypes and sum to 1/P, columns are images and sum to 1/B."""
    q = (scores / epsilon).exp().T
    q = q / q.sum()
    for _ in range(iterations):
        for i in range(len(q)):
            q[i] = q[i] / q[i].sum() / q.shape[0]
        for j in range(q.shape[1]):
            q[:, j] = q[:, j] / q[:, j].sum() / q.shape[1]
    return q.T * q.shape[1]


# ---------------------------------------------------------------- codes


def test_codes_are_those_of_the_authors():
    scores = randn(B, P)
    torch.testing.assert_close(sinkhorn(scores, 0.5, 3), codes_as_printed(scores, 0.5, 3))


def test_codes_have_sinkhorns_marginals():
    codes = sinkhorn(F.normalize(randn(60, P)), 0.05, 200)
    torch.testing.assert_close(codes.sum(dim=1), torch.ones(60, dtype=codes.dtype))
    torch.testing.assert_close(codes.sum(dim=0), torch.full((P,), 60 / P, dtype=codes.dtype), rtol=1e-4, atol=0)


def test_a_small_epsilon_overflows_nothing():
    codes = sinkhorn(F.normalize(randn(B, P).float()), 1e-3, 3)
    assert bool(torch.isfinite(codes).all())
    torch.testing.assert_close(codes.sum(dim=1), torch.ones(B))


def test_a_batch_of_one_image_is_an_error():
    with pytest.raises(ValueError, match="at least 2 images"):
        sinkhorn(randn(1, P), 0.05, 3)


# ---------------------------------------------------------------- loss


def in_loops(p: Tensor, codes: list[Tensor], temperature: float) -> Tensor:
    """Equation 2 for every large view's codes and every other view."""
    terms = []
    for k, q in enumerate(codes):
        for v in range(len(p)):
            for b in range(p.shape[1]):
                if v != k:
                    chance = (p[v, b] / temperature).exp() / (p[v, b] / temperature).exp().sum()
                    terms.append(-sum(q[b, i] * chance[i].log() for i in range(P)))
    return torch.stack(terms).mean()


@pytest.mark.parametrize("small_views", [0, 3])
def test_every_other_view_predicts_the_codes_of_the_large_views(small_views):
    config, prototypes, memory = built(small_views=small_views)
    projections = randn(2 + small_views, B, D)
    p = prototypes(projections).detach()
    codes = [codes_as_printed(view, 0.05, 3) for view in p[:2]]
    total, _ = losses(p, projections[:2], config, memory=memory)
    torch.testing.assert_close(total, in_loops(p, codes, 0.1))
    parts = [losses(p[v : v + 1], projections[:2], config, first=v, memory=memory)[0] for v in range(len(p))]
    torch.testing.assert_close(torch.stack(parts).mean(), total)


def test_loss_is_lightlys_with_small_views_and_a_queue():
    loss = pytest.importorskip("lightly.loss", reason="lightly is not installed").SwaVLoss()
    config, prototypes, memory = built(small_views=2, queue=8, queue_from=0.0)
    memory.queue.copy_(F.normalize(randn(2, 8, D, seed=1), dim=-1))
    projections = randn(4, B, D)
    p = prototypes(projections).detach()
    expected = loss(list(p[:2]), list(p[2:]), [prototypes(queue) for queue in memory.queue])
    torch.testing.assert_close(losses(p, projections[:2], config, memory=memory)[0], expected.squeeze())


def test_gradient_by_finite_differences_and_none_through_the_codes():
    config, prototypes, memory = built()
    z = randn(2, B, D).requires_grad_()
    p = prototypes(z).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: losses(x, z, config, memory=memory)[0], p)
    losses(p, z, config, memory=memory)[0].backward()
    assert z.grad is None and prototypes.weight.grad is None


def test_scores_are_cosine_similarities():
    _, prototypes, _ = built()
    z = randn(B, D)
    expected = F.cosine_similarity(z[:, None], prototypes.weight[None], dim=-1)
    torch.testing.assert_close(prototypes(10 * z), expected)


def test_scores_are_float32_under_autocast():
    prototypes, z = Prototypes(D, P, bias=False), randn(B, D).float()
    expected = prototypes(z.bfloat16().float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = prototypes(z.bfloat16())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)


# ---------------------------------------------------------------- queue and prototypes


def test_the_queue_fills_from_its_epoch_on_with_the_newest_first_and_shares_the_codes_once_full():
    _, prototypes, memory = built(queue=2 * B - 1, queue_from=3.0)
    batches = [randn(2, B, D, seed=seed) for seed in range(4)]
    unit = [F.normalize(batch, dim=-1) for batch in batches]
    for step, (epoch, rows) in enumerate([(2.9, B), (3.0, B), (3.5, B)]):
        memory.begin(step, epoch)
        assert len(memory.scores(0, batches[step][0])) == rows, "the queue is not full yet"
        memory.end(batches[step], batches[step])
    torch.testing.assert_close(memory.queue, torch.cat((unit[2], unit[1]), dim=1)[:, : 2 * B - 1])
    memory.begin(3, 4.0)
    expected = prototypes(torch.cat((batches[3][1], unit[2][1], unit[1][1][:-1])))
    torch.testing.assert_close(memory.scores(1, batches[3][1]), expected)


def test_a_queue_shorter_than_a_batch_keeps_as_many_as_it_can():
    _, _, memory = built(queue=2, queue_from=0.0)
    memory.end(randn(2, B, D), randn(2, B, D))
    torch.testing.assert_close(memory.queue, F.normalize(randn(2, B, D), dim=-1)[:, :2])


def test_a_restored_queue_is_used_at_once():
    _, _, memory = built(queue=B, queue_from=0.0)
    memory.end(randn(2, B, D), randn(2, B, D))
    _, _, other = built(queue=B, queue_from=0.0)
    other.load_state_dict(memory.state_dict())
    assert len(other.scores(0, randn(B, D))) == 2 * B


def test_prototypes_have_length_1_in_every_step_and_learn_after_the_frozen_epochs():
    fields = "method.name=swav", "method.prototypes=8", "method.freeze_epochs=0.5", "optim.weight_decay=0.1"
    config = tiny_recipe(Path("nowhere"), *fields)
    online, target, optimizer, scaler = train.build_all(config, torch.device("cpu"))
    assert not any("prototypes" in name for name in online.state_dict()), "the prototypes are the predictor's weight"
    views = torch.randn(2, 6, 3, 32, 32)
    for step, epoch in enumerate([0.0, 0.4, 0.5, 0.6]):
        online.begin(step, epoch)
        before = online.predictor.weight.detach().clone()
        projector = online.projector[0].weight.detach().clone()
        torch.testing.assert_close(before.norm(dim=1), torch.ones(8))
        train.train_step(online, target, optimizer, scaler, views, config, step=step, lr=1.0)
        assert torch.equal(online.predictor.weight, before) is (epoch < 0.5)
        assert not torch.equal(online.projector[0].weight, projector)


def test_a_step_takes_views_of_two_sizes():
    fields = "method.name=swav", "method.prototypes=8", "method.small_views=2", "method.lambda_s=0.1"
    config = tiny_recipe(Path("nowhere"), *fields)
    online, target, optimizer, scaler = train.build_all(config, torch.device("cpu"))
    views = [torch.randn(6, 3, size, size) for size in (32, 32, 16, 16)]
    p, parts = train.train_step(online, target, optimizer, scaler, views, config, step=0, lr=1.0)
    assert p.shape == (4, 6, 8)
    assert set(parts) == {"loss", "swapped", "singular"}
