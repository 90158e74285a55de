"""Training loop shared by all engines: resume, step, log, stop on NaN, save.

A resumed run gives the same result as an uninterrupted one: batches come in the same order, and the random numbers before
the checkpoint are drawn again or restored (`draws`). PreciseBN resumes too; its batches have a separate order.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from backbench import distributed
from backbench.progress import track
from transfer.detection.job import Job
from transfer.detection.training import checkpoints
from transfer.detection.training.accumulation import split
from transfer.detection.training.draws import PART, Draws
from transfer.detection.training.steps import cut, diverged, log, parallel, precise_statistics, rate, refuse_not_finite

ESTIMATE = 1_000_003  # `start` of PreciseBN's batches; no iteration has this number


class Length(Protocol):
    """The fields of a specification that the loop uses."""

    @property
    def iterations(self) -> int: ...
    @property
    def precise_bn(self) -> int: ...  # iterations that re-estimate BatchNorm's statistics at the end
    @property
    def estimates(self) -> bool: ...  # True if they do


@dataclass
class Course:
    """An engine's network with its optimiser, schedule, losses and loader."""

    label: str  # for the progress bar
    model: nn.Module
    optimizer: torch.optim.Optimizer
    parts: dict[str, Any]  # the contents of a checkpoint, under the engine's names; the optimizer is "optimizer"
    advance: Callable[[], None]  # moves the schedule by one iteration
    losses: Callable[[nn.Module, Any], dict[str, Tensor]]  # (model, perhaps in its parallel wrapper; batch) -> losses
    loader: Callable[[int], Iterable[Any]]  # endless batches from an iteration on, or ESTIMATE's
    seed: Callable[[int], None]  # seeds this rank's generators from an iteration on


def run(course: Course, spec: Length, identity: dict[str, Any], job: Job) -> nn.Module:
    """Train and return the network. Resumes from the folder's last checkpoint and records this in the job.

    Raises:
        BackbenchError: a loss or a weight is not finite, or the folder holds the checkpoint of another run.
    """
    draws = Draws(job)
    course = replace(course, parts={**course.parts, PART: draws})
    start, finished = checkpoints.resume(job.folder, identity, course.parts)
    draws.resumed_at += [start] if start else []
    job.resumed_at += draws.resumed_at
    if finished:
        return course.model
    course.seed(0)
    if start < spec.iterations:
        iterate(course, spec, identity, start, job)
    elif not draws.restore():
        course.seed(start)
    if spec.estimates:
        estimate(course, spec, job)
    checkpoints.save(job.folder / checkpoints.FINAL, spec.iterations - 1, identity, course.parts)
    distributed.barrier()
    return course.model


def iterate(course: Course, spec: Length, identity: dict[str, Any], start: int, job: Job) -> None:
    """Train from iteration `start` to the last. Writes checkpoints and losses.jsonl."""
    optimizer, file = course.optimizer, job.folder / "losses.jsonl"
    forward = parallel(course.model, job.device)
    cut(file, start)
    saved = next(iter(checkpoints.under_way(job.folder)), None)
    batches = course.loader(start)
    if start and not course.parts[PART].restore():
        course.seed(start)
    steps = track(range(start, spec.iterations), total=spec.iterations - start, label=course.label)
    for iteration, batch in zip(steps, batches, strict=False):
        optimizer.zero_grad()
        losses = backward(course, forward, split(batch, job.accumulate), iteration, saved)
        total = functools.reduce(operator.add, losses.values())
        parts = {name: float(value) for name, value in losses.items()}
        # Read before the step, so that the weights stay good. The engines' own proposals wait for a GPU many times a step.
        refuse_not_finite(total, parts, iteration, rate(optimizer), saved)
        optimizer.step()
        if iteration % job.log_every == 0 or iteration == spec.iterations - 1:
            log(file, iteration, parts, rate(optimizer))
        course.advance()
        if checkpoints.is_due(iteration, spec.iterations, job.checkpoint_every, more=spec.estimates):
            saved = checkpoints.save(job.folder / checkpoints.name(iteration), iteration, identity, course.parts)


def backward(
    course: Course, forward: nn.Module, parts: Sequence[Any], iteration: int, saved: Path | None
) -> dict[str, Tensor]:
    """Add up the gradients of a batch given in equal parts. Return each loss, averaged over the parts."""
    means: dict[str, Tensor] = {}
    for number, part in enumerate(parts, start=1):
        with distributed.accumulating(forward, last=number == len(parts)):
            losses = _losses(course, forward, part, iteration, saved)
            (functools.reduce(operator.add, losses.values()) / len(parts)).backward()
        for name, value in losses.items():
            share = value.detach() / len(parts)
            means[name] = means[name] + share if name in means else share
    return means


def estimate(course: Course, spec: Length, job: Job) -> None:
    """Run PreciseBN over batches in a separate order."""
    model, saved = course.model.train(), next(iter(checkpoints.under_way(job.folder)), None)

    def forward(batch: Any) -> object:
        return _losses(course, model, batch, spec.iterations, saved)

    parts = (part for batch in course.loader(ESTIMATE) for part in split(batch, job.accumulate))
    precise_statistics(model, forward, parts, spec.precise_bn * job.accumulate)


def _losses(course: Course, forward: nn.Module, batch: Any, iteration: int, saved: Path | None) -> dict[str, Tensor]:
    """Return the losses of a batch. Turns Detectron2's error for proposals that are not finite into ours."""
    try:
        return course.losses(forward, batch)
    except FloatingPointError:  # on this rank only: the others may already be in the backward pass
        raise diverged({"proposals": float("nan")}, iteration, rate(course.optimizer), saved) from None
