"""SGD loop shared by all trained protocols: linear heads on features, on augmented images or on a trained encoder.

Many heads (a sweep of learning rates) share each forward pass. No result depends on the number of processes: each step
has a global batch, each rank takes a slice of it, and losses are sums over the global batch.
"""

from __future__ import annotations

import copy
import itertools
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NoReturn, Self, cast

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from backbench import batchnorm, distributed, trackers
from backbench.errors import BackbenchError, CheckpointError, ConfigError
from backbench.files.atomic import atomic_save
from backbench.progress import say, track
from model_zoo.reading import load_torch
from transfer.curve import Curve
from transfer.feature_file import refuse_folder
from transfer.heads import Classifier
from transfer.protocol import ForwardConfig
from transfer.stacked import Stacked

Batches = Callable[[int], Iterator[tuple[Tensor, Tensor]]]  # first step -> (inputs (B, ...), labels (B,)) of this rank
Beta = Annotated[float, Field(ge=0, lt=1)]
_SAVE_EVERY_S = 60.0


class Diverged(BackbenchError, FloatingPointError):
    """The loss or the weights of every head became NaN or infinite."""


class SgdConfig(ForwardConfig):
    """Fields of a task that trains: optimiser and schedule. One iteration is one global batch."""

    LATER: ClassVar[frozenset[str]] = frozenset({"betas"})

    batch: Annotated[int, Field(gt=0)] = 1024
    epochs: Annotated[int, Field(gt=0)] = 100
    optimizer: Literal["sgd", "lars", "adam", "adamw"] = "sgd"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    betas: tuple[Beta, Beta] = (0.9, 0.999)  # of adam and adamw
    nesterov: bool = True
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    schedule: Literal["cosine", "steps", "exponential"] = "cosine"
    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()  # for `steps`: fractions of the whole training
    gamma: Annotated[float, Field(gt=0, le=1)] = (
        0.1  # factor at each milestone; for `exponential`: over the whole training
    )
    per_epoch: bool = False  # the rate changes only between epochs

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0: set nesterov=false")
        if (self.schedule == "steps") != bool(self.milestones):
            raise ValueError("schedule 'steps' needs milestones, e.g. milestones=[0.6,0.8]; other schedules take none")
        return self

    def factor(self, step: int, steps_per_epoch: int) -> float:
        """Return the factor on the learning rates at optimiser step `step` (0-based)."""
        total = self.epochs * steps_per_epoch
        step -= step % steps_per_epoch if self.per_epoch else 0
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * step / total))
        if self.schedule == "exponential":
            return self.gamma ** (step / total)
        return self.gamma ** sum(step >= share * total - 1e-6 for share in self.milestones)


@dataclass(frozen=True)
class Order:
    """Rows of every step. An epoch is a permutation seeded by (seed, epoch); its last batch may be smaller."""

    images: int
    batch: int
    epochs: int
    seed: int
    most: int | None = None  # steps of the whole training, within its last epoch; none: all of the epochs

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps per epoch."""
        return -(-self.images // self.batch)

    def rows(self, start: int = 0) -> Iterator[tuple[int, Tensor]]:
        """Yield (epoch, this rank's rows) for every step from `start` on. A rank may get no row of a small batch."""
        return itertools.islice(self._rows(start), None if self.most is None else max(0, self.most - start))

    def _rows(self, start: int) -> Iterator[tuple[int, Tensor]]:
        first, skipped = divmod(start, self.steps_per_epoch)
        for epoch in range(first, self.epochs):
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            for rows in torch.randperm(self.images, generator=generator).split(self.batch)[skipped:]:
                size, rank, ranks = len(rows), distributed.rank(), distributed.world_size()
                yield epoch, rows[size * rank // ranks : size * (rank + 1) // ranks]
            skipped = 0


def batches_of(features_NC: Tensor, labels: Tensor, order: Order, rows: Tensor | None = None) -> Batches:
    """Return shuffled batches of cached features, of all rows or of the given `rows` only.

    Features and labels are on one device.
    """

    def from_step(start: int) -> Iterator[tuple[Tensor, Tensor]]:
        for _, chosen in order.rows(start):
            chosen = (chosen if rows is None else rows[chosen]).to(features_NC.device, non_blocking=True)
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
) -> Curve:
    """Train every head at its own rate, and the encoder if its rate is above 0; return the training losses.

    Heads do not influence each other.

    Args:
        resume: file for the state after an epoch (saved at most once a minute, removed at the end). A killed run resumes
            from it.

    Raises:
        ConfigError: no batch has the two images that a BatchNorm needs.
        FloatingPointError: the loss or the weights of every head became NaN or infinite. A single head may diverge; it is
            then not chosen.
    """
    model = cast(Classifier, batchnorm.synchronise_batchnorm(model.to(device), device)).train()
    if model.has_norms:
        refuse_single(order)
    fixed = not model.rate_encoder and model.heads.in_closed_form
    stacked = Stacked(model.heads, device) if fixed else None  # no autograd where the inputs are fixed
    optimizer = _optimizer(model.groups(config.weight_decay), config, fused=stacked is not None)
    scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16" and model.rate_encoder > 0)
    steps = order.steps_per_epoch
    total = order.most or config.epochs * steps
    curve = Curve(steps, total)
    start = restore_state(resume, model, optimizer, scaler, curve)
    forward = distributed.wrapped(model, device) if stacked is None else model
    saved = time.monotonic()
    for step, (x, y) in enumerate(track(batches(start), total=total - start, label="training"), start=start):
        size = min(order.batch, order.images - step % steps * order.batch)  # images in the global batch
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * config.factor(step, steps)
        if size > 1 or not model.has_norms:  # one image has no batch statistics: skip a last batch of one
            x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
            if stacked is None:
                losses = _step(forward, optimizer, scaler, x, y, size)
            else:
                losses = stacked.step(model.features(x), y, size)
                optimizer.step()
            curve.add(losses, size)
        curve.close(step)
        if (step + 1) % steps == 0:
            _check(distributed.all_reduce_sum(losses), (step + 1) // steps, model)
            if resume is not None and time.monotonic() - saved > _SAVE_EVERY_S:
                save_state(resume, model, optimizer, scaler, step + 1, curve)
                saved = time.monotonic()
    if not any(model.heads.sound):
        _refuse(config.epochs, model)
    if resume is not None and distributed.is_main():
        resume.unlink(missing_ok=True)
    return curve


def refuse_single(order: Order) -> None:
    """Raise ConfigError if no batch has the two images that a BatchNorm needs."""
    if min(order.batch, order.images) == 1:
        raise ConfigError(
            "a batch of one image has no statistics for BatchNorm: set batch above 1, or give more images"
        )


def _step(
    forward: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, x: Tensor, y: Tensor, size: int
) -> Tensor:
    """Take one optimiser step on a global batch of `size` images. Return this rank's share of every head's mean loss.

    Args:
        scaler: off, unless an encoder is trained in fp16, where small gradients would become 0.
    """
    losses = torch.stack([F.cross_entropy(each, y, reduction="sum") for each in forward(x)]) / size
    optimizer.zero_grad(set_to_none=True)
    scaler.scale(losses.sum() * distributed.world_size()).backward()  # DDP averages over ranks
    scaler.step(optimizer)
    scaler.update()
    return losses.detach()


def _optimizer(groups: list[dict[str, Any]], config: SgdConfig, *, fused: bool = False) -> torch.optim.Optimizer:
    if config.optimizer == "adam":
        return torch.optim.Adam(groups, lr=0.0, betas=config.betas, fused=fused)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=0.0, betas=config.betas, fused=fused)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=config.momentum, nesterov=config.nesterov, fused=fused)
    from timm.optim import Lars

    return Lars(groups, lr=0.0, momentum=config.momentum, nesterov=config.nesterov, trust_coeff=0.001)


def _check(losses: Tensor, epoch: int, model: Classifier) -> None:
    if not bool(torch.isfinite(losses).any()):
        _refuse(epoch, model)
    if trackers.is_open():
        names = model.heads.names
        trackers.log({f"loss/rate_{name}": v for name, v in zip(names, losses.tolist(), strict=True)}, epoch)


def _refuse(epoch: int, model: Classifier) -> NoReturn:
    rates = f"rates {list(model.heads.rates)}" + (f" and {model.rate_encoder}" if model.rate_encoder else "")
    raise Diverged(f"every head diverged by epoch {epoch}; {rates} are too high")


# ---------------------------------------------------------------- resuming after a kill


def save_state(
    file: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    step: int,
    curve: Curve | None = None,
) -> None:
    """Write the state after `step` steps; only rank 0 does."""
    if distributed.is_main():
        state = {"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
        state |= {"scaler": scaler.state_dict()} if scaler.is_enabled() else {}
        atomic_save(file, state | ({"curve": curve.points} if curve else {}))


def restore_state(
    file: Path | None,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    curve: Curve | None = None,
) -> int:
    """Load the state and return the step to resume from, 0 without a valid file. A damaged file is named and ignored."""
    if file is None or not os.path.lexists(file):
        return 0
    refuse_folder(file)
    try:
        if not file.is_file():
            raise CheckpointError("not a plain file")
        state = load_torch(file)
        step = int(state["step"])
        points = [[float(n) for n in point] for point in state.get("curve", ())]
        fresh = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
        try:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            if scaler.is_enabled():
                scaler.load_state_dict(state["scaler"])
        except Exception:
            model.load_state_dict(fresh[0])
            optimizer.load_state_dict(fresh[1])
            raise
    except (CheckpointError, KeyError, TypeError, ValueError, AttributeError, RuntimeError, OSError) as error:
        say(f"starting from step 0: the saved state of the training is damaged: {file} ({_short(error)})")
        return 0
    if curve is not None:
        curve.points = points
    say(f"resuming after step {step}: {file}")
    return step


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
