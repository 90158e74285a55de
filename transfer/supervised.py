"""The one SGD loop under every trained protocol: linear heads on features, on augmented images, on a trained encoder.

Many heads (a sweep of learning rates) share each forward pass. Nothing depends on the number of processes: a step's
images are a global batch, a rank takes its slice, and losses are sums over the global batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from core import distributed
from core.artifacts import atomic_save, load_torch
from core.errors import ConfigError
from core.progress import say, track
from transfer.protocol import TaskConfig

Batches = Callable[[int], Iterator[tuple[Tensor, Tensor]]]  # first step -> this rank's (inputs (B, ...), labels (B,))
_SAVE_EVERY_S = 60.0


class SgdConfig(TaskConfig):
    """Fields of a task that trains: the optimiser's course, per iteration of a global batch."""

    batch: Annotated[int, Field(gt=0)] = 1024
    epochs: Annotated[int, Field(gt=0)] = 100
    optimizer: Literal["sgd", "lars", "adam"] = "sgd"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = True
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    schedule: Literal["cosine", "steps", "exponential"] = "cosine"
    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()  # of `steps`: shares of the whole course
    gamma: Annotated[float, Field(gt=0, le=1)] = (
        0.1  # factor at each milestone; of `exponential`: over the whole course
    )
    per_epoch: bool = False  # the rate changes between epochs only

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0: set nesterov=false")
        if (self.schedule == "steps") != bool(self.milestones):
            raise ValueError("schedule 'steps', and no other, needs milestones, e.g. milestones=[0.6,0.8]")
        return self

    def factor(self, step: int, steps_per_epoch: int) -> float:
        """What the learning rates are multiplied by at optimiser step `step` (0-based)."""
        total = self.epochs * steps_per_epoch
        step -= step % steps_per_epoch if self.per_epoch else 0
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * step / total))
        if self.schedule == "exponential":
            return self.gamma ** (step / total)
        return self.gamma ** sum(step >= share * total - 1e-6 for share in self.milestones)


@dataclass(frozen=True)
class Order:
    """Which rows every step takes: an epoch is a permutation seeded by (seed, epoch), its last batch may be smaller."""

    images: int
    batch: int
    epochs: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of one epoch."""
        return -(-self.images // self.batch)

    def rows(self, start: int = 0) -> Iterator[tuple[int, Tensor]]:
        """(epoch, this rank's rows) of every step from `start` on; a rank's share of a small batch may be empty."""
        first, skipped = divmod(start, self.steps_per_epoch)
        for epoch in range(first, self.epochs):
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            for rows in torch.randperm(self.images, generator=generator).split(self.batch)[skipped:]:
                size, rank, ranks = len(rows), distributed.rank(), distributed.world_size()
                yield epoch, rows[size * rank // ranks : size * (rank + 1) // ranks]
            skipped = 0


class Heads(nn.Module):
    """One linear classifier per learning rate, all of the same initialisation: N(0, 0.01), bias 0 (MoCo main_lincls).

    `norm` puts a BatchNorm before each: `affine` (VISSL's eval_mlp) or `plain`, without scale and shift (OBoW).
    """

    def __init__(
        self,
        features: int,
        classes: int,
        rates: Sequence[float],
        seed: int,
        norm: Literal["none", "plain", "affine"] = "none",
    ) -> None:
        super().__init__()
        self.rates = tuple(rates)
        weight = torch.randn(classes, features, generator=torch.Generator().manual_seed(seed)) * 0.01
        self.linear = nn.ModuleList(nn.Linear(features, classes) for _ in rates)
        for head in self.linear:
            with torch.no_grad():
                head.weight.copy_(weight)
                head.bias.zero_()
        affine = norm == "affine"
        self.norms = nn.ModuleList(
            nn.Identity() if norm == "none" else nn.BatchNorm1d(features, affine=affine) for _ in rates
        )

    def forward(self, x_BC: Tensor) -> list[Tensor]:
        """Logits (B, classes) of every head."""
        return [head(norm(x_BC)) for head, norm in zip(self.linear, self.norms, strict=True)]


class Classifier(nn.Module):
    """Heads on what an encoder makes of images; without an encoder, on features.

    An encoder of rate 0 is frozen: eval mode, no gradient.
    """

    def __init__(self, encoder: nn.Module | None, heads: Heads, *, rate_encoder: float = 0.0) -> None:
        super().__init__()
        self.encoder, self.heads, self.rate_encoder = encoder, heads, rate_encoder
        if encoder is not None:
            encoder.requires_grad_(rate_encoder > 0)

    def train(self, mode: bool = True) -> Classifier:
        """Train mode for all but a frozen encoder."""
        super().train(mode)
        if self.encoder is not None and not self.rate_encoder:
            self.encoder.eval()
        return self

    def forward(self, x: Tensor) -> list[Tensor]:
        """Features (B, C) or normalised images (B, 3, S, S) -> logits of every head."""
        if self.encoder is not None:
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.rate_encoder > 0):
                x = self.encoder(x)
        return self.heads(x)

    @property
    def has_norms(self) -> bool:
        """Whether a BatchNorm uses the statistics of the batch."""
        return any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training for m in self.modules())

    def groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Parameter groups with their peak `rate`; norms are not decayed, and not adapted by LARS."""
        decayed = {"weight_decay": weight_decay, "always_adapt": True}  # timm adapts where it decays or is told to
        plain = {"weight_decay": 0.0, "always_adapt": False}
        groups = []
        for head, norm, rate in zip(self.heads.linear, self.heads.norms, self.heads.rates, strict=True):
            groups.append({"params": list(head.parameters()), "rate": rate, **decayed})
            groups.append({"params": list(norm.parameters()), "rate": rate, **plain})
        if self.encoder is not None and self.rate_encoder:
            weights = [p for p in self.encoder.parameters() if p.ndim > 1]
            others = [p for p in self.encoder.parameters() if p.ndim <= 1]
            groups.append({"params": weights, "rate": self.rate_encoder, **decayed})
            groups.append({"params": others, "rate": self.rate_encoder, **plain})
        return [group for group in groups if group["params"]]


def batches_of(features_NC: Tensor, labels: Tensor, order: Order, rows: Tensor | None = None) -> Batches:
    """Shuffled batches of cached features; of the given `rows` of them only, when there are some."""

    def from_step(start: int) -> Iterator[tuple[Tensor, Tensor]]:
        for _, chosen in order.rows(start):
            chosen = chosen if rows is None else rows[chosen]
            yield features_NC[chosen], labels[chosen]

    return from_step


def fit(
    model: Classifier,
    batches: Batches,
    config: SgdConfig,
    order: Order,
    *,
    device: torch.device,
    resume: Path | None = None,
) -> None:
    """Train every head at its own rate, and the encoder where it has one. Heads do not influence each other.

    Args:
        resume: a file that holds the state after an epoch, once a minute at most, and is gone at the end; a run that was
            killed goes on from it.

    Raises:
        ConfigError: no batch has two images, which a BatchNorm needs.
        FloatingPointError: every head's loss became NaN or infinite; a single one may diverge, and is then not chosen.
    """
    model = distributed.synchronise_batchnorm(model.to(device), device).train()
    if min(order.batch, order.images) == 1 and model.has_norms:
        raise ConfigError(
            "a batch of one image has no statistics for BatchNorm: set batch above 1, or give more images"
        )
    optimizer = _optimizer(model.groups(config.weight_decay), config)
    start = _restore(resume, model, optimizer)
    forward = _distributed(model, device)
    saved = time.monotonic()
    total, steps = config.epochs * order.steps_per_epoch, order.steps_per_epoch
    for step, (x, y) in enumerate(track(batches(start), total=total - start, label="training"), start=start):
        size = min(order.batch, order.images - step % steps * order.batch)  # of the global batch
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * config.factor(step, steps)
        if size > 1 or not model.has_norms:  # one image has no statistics: an epoch's last one may be passed over
            losses = _step(forward, optimizer, x.to(device, non_blocking=True), y.to(device, non_blocking=True), size)
        if (step + 1) % steps == 0:
            _check(distributed.all_reduce_sum(losses), (step + 1) // steps, model)
            if resume is not None and time.monotonic() - saved > _SAVE_EVERY_S:
                _save(resume, model, optimizer, step + 1)
                saved = time.monotonic()
    if resume is not None and distributed.is_main():
        resume.unlink(missing_ok=True)


def _step(forward: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, size: int) -> Tensor:
    """One optimiser step on a global batch of `size` images; this rank's share of every head's mean loss."""
    losses = torch.stack([F.cross_entropy(each, y, reduction="sum") for each in forward(x)]) / size
    optimizer.zero_grad(set_to_none=True)
    (losses.sum() * distributed.world_size()).backward()  # DDP averages over ranks
    optimizer.step()
    return losses.detach()


def _optimizer(groups: list[dict[str, Any]], config: SgdConfig) -> torch.optim.Optimizer:
    if config.optimizer == "adam":
        return torch.optim.Adam(groups, lr=0.0)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=config.momentum, nesterov=config.nesterov)
    from timm.optim import Lars

    return Lars(groups, lr=0.0, momentum=config.momentum, nesterov=config.nesterov, trust_coeff=0.001)


def _distributed(model: Classifier, device: torch.device) -> nn.Module:
    if distributed.world_size() == 1:
        return model
    devices = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices, broadcast_buffers=False)


def _check(losses: Tensor, epoch: int, model: Classifier) -> None:
    if not bool(torch.isfinite(losses).any()):
        rates = f"rates {list(model.heads.rates)}" + (f" and {model.rate_encoder}" if model.rate_encoder else "")
        raise FloatingPointError(f"every head diverged by epoch {epoch}; {rates} are too high")


@torch.no_grad()
def best_classes(heads: Heads, features_NC: Tensor, *, device: torch.device) -> list[Tensor]:
    """Of every head, the (N, 5) classes of highest score, best first (all classes where there are fewer)."""
    heads.to(device).eval()
    parts: list[list[Tensor]] = [[] for _ in heads.rates]
    for x in features_NC.split(4096):
        for found, logits in zip(parts, heads(x.to(device)), strict=True):
            logits = torch.nan_to_num(logits, nan=-torch.inf)
            found.append(logits.topk(min(5, logits.shape[1]), dim=1).indices.cpu())
    return [torch.cat(found) for found in parts]


def accuracies(heads: Heads, features_NC: Tensor, labels: Tensor, *, device: torch.device) -> list[dict[str, float]]:
    """top1 and top5 in percent of every head; each row counted once."""
    return [hits(best, labels) for best in best_classes(heads, features_NC, device=device)]


def hits(best_N5: Tensor, labels: Tensor) -> dict[str, float]:
    """top1 and top5 in percent."""
    right = best_N5 == labels.cpu()[:, None]
    return {"top1": 100.0 * int(right[:, 0].sum()) / len(right), "top5": 100.0 * int(right.sum()) / len(right)}


def items_of(best_NR: Tensor, labels: Tensor, classes: int) -> dict[str, Any]:
    """What is stored per test item (its best classes, its label), and every class's top-1 in percent (NaN without items)."""
    right = (best_NR[:, 0] == labels).double()
    count = torch.bincount(labels, minlength=classes)
    per_class = torch.bincount(labels, weights=right, minlength=classes) / count
    return {
        "best": best_NR.to(torch.int32).numpy(),
        "labels": labels.to(torch.int32).numpy(),
        "per_class_top1": (100 * per_class).float().numpy(),
    }


# ---------------------------------------------------------------- going on after a kill


def _save(file: Path, model: Classifier, optimizer: torch.optim.Optimizer, step: int) -> None:
    if distributed.is_main():
        atomic_save(file, {"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()})


def _restore(file: Path | None, model: Classifier, optimizer: torch.optim.Optimizer) -> int:
    if file is None or not file.exists():
        return 0
    state = load_torch(file)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    say(f"going on after step {state['step']}: {file}")
    return int(state["step"])
