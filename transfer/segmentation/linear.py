"""Train a linear classifier of pixels on the map of a frozen backbone.

No result depends on the number of processes: each step has a global batch, each rank takes a slice of it, the loss is a
mean over the pixels of the global batch, and the dropped channels are drawn for the global batch.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Literal, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbench import batchnorm, distributed, jsonl, trackers
from backbench.errors import writing
from backbench.files.atomic import make_folder
from backbench.progress import track
from transfer.heads import HeadInit
from transfer.segmentation.annotations.split import IGNORE
from transfer.supervised import Batches, Diverged, Order, restore_state, save_state

_SAVE_EVERY_S = 60.0
_LOG_EVERY = 20  # iterations


class Course(Protocol):
    """Fields of a training; see `transfer.tasks.linear_segmentation`."""

    @property
    def optimizer(self) -> Literal["adamw", "sgd"]: ...
    @property
    def rate(self) -> float: ...
    @property
    def momentum(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def iterations(self) -> int: ...
    @property
    def loss_side(self) -> int | None: ...
    @property
    def loss_over(self) -> Literal["all", "counted"]: ...
    def factor(self, step: int) -> float: ...


class PixelHead(nn.Module):
    """Dropout of channels, BatchNorm and a 1x1 convolution (DINOv3 eval/segmentation/models/heads/linear_head.py).

    Args:
        norm: whether there is a BatchNorm.
        dropout: probability that a channel of an image is zero in training.
        init: `normal`: weights N(0, 0.01), bias 0 (DINOv3); `linear`: PyTorch's default, uniform within 1/sqrt(channels)
            (Leopart).
    """

    def __init__(self, channels: int, classes: int, seed: int, *, norm: bool, dropout: float, init: HeadInit) -> None:
        super().__init__()
        self.dropout = dropout
        self.norm: nn.Module = nn.BatchNorm2d(channels) if norm else nn.Identity()
        self.conv = nn.Conv2d(channels, classes, 1)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            if init == "normal":
                self.conv.weight.copy_(torch.randn(self.conv.weight.shape, generator=generator) * 0.01)
                self.conv.bias.zero_()  # type: ignore[union-attr]
            else:
                bound = channels**-0.5
                for parameter in (self.conv.weight, self.conv.bias):
                    assert parameter is not None
                    parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))

    def forward(self, map_BChw: Tensor, kept_BC: Tensor | None = None) -> Tensor:
        """Return logits (B, classes, h, w).

        Args:
            kept_BC: True for the channels that dropout keeps; None keeps all and scales none, as in evaluation.
        """
        if kept_BC is not None:
            map_BChw = map_BChw * (kept_BC / (1 - self.dropout))[:, :, None, None].to(map_BChw)
        return cast(Tensor, self.conv(self.norm(map_BChw)))


def kept_channels(step: int, size: int, channels: int, dropout: float, seed: int) -> Tensor | None:
    """Return (B, C) bool, the channels that are kept in this rank's images of a step; None without dropout.

    Args:
        size: images in the global batch.
    """
    if not dropout:
        return None
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    whole = torch.rand(size, channels, generator=generator) >= dropout
    rank, ranks = distributed.rank(), distributed.world_size()
    return whole[size * rank // ranks : size * (rank + 1) // ranks]


def fit(
    head: PixelHead,
    encoder: nn.Module,
    batches: Batches,
    course: Course,
    order: Order,
    *,
    device: torch.device,
    resume: Path,
    log: Path | None = None,
) -> list[int]:
    """Train the head on the encoder's maps and return the iterations done at a resume, if there was one.

    Args:
        encoder: frozen, on the device: (B, 3, S, S) -> (B, C, h, w).
        batches: images and labels of this rank.
        resume: file for the state (saved once a minute, removed at the end). A killed run resumes from it.
        log: a line of JSON, {"iteration", "total", "rate"}, is added to this file every few iterations.

    Raises:
        Diverged: the loss became NaN or infinite.
    """
    head = cast(PixelHead, batchnorm.synchronise_batchnorm(head.to(device), device)).train()
    optimizer = _optimizer(head, course)
    scaler = torch.amp.GradScaler(device.type, enabled=False)  # the encoder alone runs in a half type
    start = restore_state(resume, head, optimizer, scaler)
    if log is not None and distributed.is_main():
        jsonl.cut(log, "iteration", start + 1)
    forward, saved = distributed.wrapped(head, device), time.monotonic()
    shown = track(batches(start), total=course.iterations - start, label="training")
    for number, (x, y) in enumerate(shown, start=start):
        rate = course.rate * course.factor(number)
        for group in optimizer.param_groups:
            group["lr"] = rate
        size = min(order.batch, order.images - number % order.steps_per_epoch * order.batch)  # of the global batch
        with torch.no_grad():
            maps = encoder(x).float()
        logits = forward(maps, kept_channels(number, size, maps.shape[1], head.dropout, order.seed))
        loss = pixel_loss(logits, y, course)
        optimizer.zero_grad(set_to_none=True)
        (loss * distributed.world_size()).backward()  # DDP averages over ranks
        optimizer.step()
        if (number + 1) % _LOG_EVERY == 0 or number + 1 == course.iterations:
            _note(log, number + 1, distributed.all_reduce_sum(loss.detach()), rate, course)
        if time.monotonic() - saved > _SAVE_EVERY_S:
            save_state(resume, head, optimizer, scaler, number + 1)
            saved = time.monotonic()
    distributed.barrier()
    if distributed.is_main():
        resume.unlink(missing_ok=True)
    return [start] if start else []


def pixel_loss(logits_BKhw: Tensor, labels_BHW: Tensor, course: Course) -> Tensor:
    """Return this rank's share of the cross-entropy's mean over the global batch: the sum over ranks is the mean.

    The logits are interpolated (bilinear) to the labels, or both to `loss_side`. `loss_over`: the mean is over all pixels,
    ignored ones adding 0 (DINOv3's eval/segmentation/loss.py), or over those that count (torch.nn.CrossEntropyLoss).
    """
    if course.loss_side is not None:
        labels_BHW = F.interpolate(labels_BHW[:, None].float(), size=(course.loss_side, course.loss_side))[:, 0].long()
    logits = F.interpolate(logits_BKhw, size=labels_BHW.shape[-2:], mode="bilinear", align_corners=False)
    total = F.cross_entropy(logits, labels_BHW, ignore_index=IGNORE, reduction="sum")
    counted = torch.ones_like(labels_BHW) if course.loss_over == "all" else labels_BHW != IGNORE
    count = distributed.all_reduce_sum(counted.sum().float())
    return total / count.clamp(min=1)


def _optimizer(head: nn.Module, course: Course) -> torch.optim.Optimizer:
    if course.optimizer == "adamw":
        return torch.optim.AdamW(head.parameters(), lr=0.0, weight_decay=course.weight_decay)
    return torch.optim.SGD(head.parameters(), lr=0.0, momentum=course.momentum, weight_decay=course.weight_decay)


def _note(log: Path | None, done: int, loss: Tensor, rate: float, course: Course) -> None:
    """Write a line of the log. Raises Diverged."""
    value = float(loss)
    if not math.isfinite(value):
        raise Diverged(f"the loss became {value} by iteration {done}: rate {course.rate:g} is too high")
    trackers.log({"loss": value, "rate": rate}, done)
    if log is not None and distributed.is_main():
        make_folder(log.parent)
        with writing(log), log.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"iteration": done, "total": value, "rate": rate}) + "\n")
