"""A linear classifier on frozen features; several learning rates share one pass, chosen on a held-out slice of train.

MSBReg section 8.1 prints no rate, schedule or batch. Preset `sweep` is ours: SGD with Nesterov momentum, batch 1024, no
weight decay, 100 epochs, cosine per iteration; the head that is best on the slice held out of *train* is the one
reported, at its last epoch, on the test split. The test split chooses nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field

from core.errors import DataError
from model_zoo.backbone import Backbone
from transfer.features import extract
from transfer.protocol import Metric, RunContext, TaskConfig, image_data_missing, image_splits
from transfer.supervised import Heads, Schedule, accuracies, batches_of, train_heads

version = 1


class Config(TaskConfig):
    """Fields of the cell."""

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {"sweep": {}}

    preset: str = "sweep"
    rates: tuple[Annotated[float, Field(gt=0)], ...] = (
        0.001,
        0.003,
        0.01,
        0.03,
        0.1,
        0.3,
        1.0,
        3.0,
        10.0,
        30.0,
        100.0,
    )  # at `batch`
    batch: Annotated[int, Field(gt=0)] = 1024
    epochs: Annotated[int, Field(gt=0)] = 100
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = True
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    holdout: Annotated[float, Field(gt=0, lt=0.5)] = 0.1  # of train, where the rate is chosen
    holdout_max: Annotated[int, Field(gt=0)] = 10_000
    size: Annotated[int, Field(ge=16)] | None = None  # pixels of the centre crop; none: the backbone's
    resize: Annotated[int, Field(ge=16)] | None = None


def primary(config: Config) -> str:
    """Headline metric."""
    return "top1"


def deterministic(config: Config) -> bool:
    """Never: the held-out slice, the initialisation and the order of the images are drawn."""
    return False


def smoke(config: Config) -> dict[str, Any]:
    """A few images, two epochs."""
    return {"data": {"limit": 256}, "epochs": 2, "batch": 64}


missing = image_data_missing
splits = image_splits


def run(backbone: Backbone, config: Config, ctx: RunContext) -> dict[str, Metric]:
    """`top1` and `top5` of the chosen head on the test split."""
    train, test = ctx.splits["train"], ctx.splits["test"]
    x = extract(backbone, train, ctx, size=config.size, resize=config.resize)
    y = torch.as_tensor(train.labels)
    fit, held_out = hold_out(len(train), config, ctx.seed)
    heads = Heads(x.shape[1], len(train.classes), config.rates, ctx.seed)
    steps = -(-len(fit) // config.batch)
    schedule = Schedule(config.epochs, steps, config.momentum, config.nesterov, config.weight_decay)
    train_heads(heads, batches_of(x[fit], y[fit], config.batch, ctx.seed), schedule, device=ctx.device)
    chosen = choose(heads, x[held_out], y[held_out], ctx)
    x_test = extract(backbone, test, ctx, size=config.size, resize=config.resize)
    result = accuracies(heads, x_test, torch.as_tensor(test.labels), device=ctx.device)[chosen]
    return {name: Metric(value) for name, value in result.items()}


def hold_out(images: int, config: Config, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows to train on and rows held out, disjoint, drawn with the seed."""
    count = min(round(images * config.holdout), config.holdout_max)
    if count < 1 or images - count < 1:
        raise DataError(f"{images} training images are too few to hold {config.holdout:.0%} out")
    order = torch.randperm(images, generator=torch.Generator().manual_seed(seed))
    return order[count:], order[:count]


def choose(heads: Heads, x: torch.Tensor, y: torch.Tensor, ctx: RunContext) -> int:
    """The head with the best held-out top-1 (the lower rate on a tie); says what was tuned, and on what."""
    scores = [result["top1"] for result in accuracies(heads, x, y, device=ctx.device)]
    best = [i for i, score in enumerate(scores) if score == max(scores)]
    chosen = min(best, key=lambda i: heads.rates[i])
    ctx.tuned |= {
        "lr": heads.rates[chosen],
        "on": f"{len(x)} images held out of train",
        "top1_there": {f"{rate:g}": score for rate, score in zip(heads.rates, scores, strict=True)},
    }
    if len(scores) > 2 and heads.rates[chosen] in (min(heads.rates), max(heads.rates)):
        ctx.notes.append(f"the chosen rate {heads.rates[chosen]:g} is at the edge of the sweep: widen `rates`")
    return chosen
