"""The one SGD loop under the probes: many linear heads share each batch of features."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Batches = Callable[[int], Iterator[tuple[Tensor, Tensor]]]  # epoch -> (features (B, C), labels (B,))


@dataclass(frozen=True)
class Schedule:
    """SGD's course, per iteration."""

    epochs: int
    steps_per_epoch: int
    momentum: float
    nesterov: bool
    weight_decay: float


class Heads(nn.Module):
    """One linear classifier per learning rate, all of the same initialisation: N(0, 0.01), bias 0 (MoCo main_lincls)."""

    def __init__(self, features: int, classes: int, rates: Sequence[float], seed: int) -> None:
        super().__init__()
        self.rates = tuple(rates)
        weight = torch.randn(classes, features, generator=torch.Generator().manual_seed(seed)) * 0.01
        self.linear = nn.ModuleList(nn.Linear(features, classes) for _ in rates)
        for head in self.linear:
            with torch.no_grad():
                head.weight.copy_(weight)
                head.bias.zero_()

    def forward(self, x_BC: Tensor) -> list[Tensor]:
        """Logits (B, classes) of every head."""
        return [head(x_BC) for head in self.linear]


def batches_of(features_NC: Tensor, labels: Tensor, batch: int, seed: int) -> Batches:
    """Shuffled batches of cached features; the order depends on (seed, epoch), the last batch may be smaller."""

    def epoch_batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        for rows in torch.randperm(len(features_NC), generator=generator).split(batch):
            yield features_NC[rows], labels[rows]

    return epoch_batches


def train_heads(heads: Heads, batches: Batches, schedule: Schedule, *, device: torch.device) -> None:
    """Train every head at its own rate, cosine to 0 per iteration. Heads do not influence each other.

    Raises:
        FloatingPointError: every head's loss became NaN or infinite; a single one may diverge, and is then not chosen.
    """
    heads.to(device).train()
    groups = [
        {"params": list(head.parameters()), "lr": rate} for head, rate in zip(heads.linear, heads.rates, strict=True)
    ]
    optimizer = torch.optim.SGD(
        groups,
        lr=0.0,
        momentum=schedule.momentum,
        nesterov=schedule.nesterov,
        weight_decay=schedule.weight_decay,
    )
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, schedule.epochs * schedule.steps_per_epoch)
    for epoch in range(schedule.epochs):
        for features, labels in batches(epoch):
            features, labels = features.to(device), labels.to(device)
            losses = torch.stack([F.cross_entropy(logits, labels) for logits in heads(features)])
            optimizer.zero_grad(set_to_none=True)
            losses.sum().backward()
            optimizer.step()
            cosine.step()
        if not bool(torch.isfinite(losses).any()):
            raise FloatingPointError(
                f"every head diverged by epoch {epoch + 1}; rates {list(heads.rates)} are too high"
            )


@torch.no_grad()
def accuracies(heads: Heads, features_NC: Tensor, labels: Tensor, *, device: torch.device) -> list[dict[str, float]]:
    """top1 and top5 in percent of every head; each row counted once."""
    heads.to(device).eval()
    classes = heads.linear[0].out_features
    hits = [{"top1": 0, "top5": 0} for _ in heads.rates]
    for rows in torch.arange(len(features_NC)).split(4096):
        truth = labels[rows].to(device)[:, None]
        for hit, logits in zip(hits, heads(features_NC[rows].to(device)), strict=True):
            logits = torch.nan_to_num(logits, nan=-torch.inf)
            best = logits.topk(min(5, classes), dim=1).indices == truth
            hit["top1"] += int(best[:, :1].sum())
            hit["top5"] += int(best.sum())
    return [{name: 100.0 * n / len(features_NC) for name, n in hit.items()} for hit in hits]
