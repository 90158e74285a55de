"""Fine-tuning of encoder and classifier on all training images: 5,000 steps of SGD (linusericsson/ssl-transfer finetune.py).

SimCLR's recipe (appendix B.8) in fewer steps: batches of 64, Nesterov momentum 0.9, a cosine over the steps, random crops
(bicubic) and flips. A grid of four rates and five weight decays, each divided by the rate, is trained on the training images
without the validation images; the best on the latter is trained again on all. BatchNorms are trained too, and everything is
decayed, biases and BatchNorms included. The last step is evaluated; nothing is chosen on the test split.

Where no validation images are published, 20% of the training images are held out as in `logistic`. A grid point that diverges
scores nothing. A killed run continues: finished grid points are kept in the cache, the one in training from its last state.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from backbench.data.splits import ImageSplit
from backbench.data.transforms import Interpolation
from backbench.distributed import barrier, is_main
from backbench.files.atomic import atomic_write_text
from backbench.precision import in_precision
from backbench.progress import say
from model_zoo.backbone import Backbone
from transfer.augment import crop_and_flip, image_batches
from transfer.feature_spec import FeatureSpec
from transfer.features import compute
from transfer.heads import Classifier, Heads, best_classes, hits, items_of
from transfer.presets import Preset
from transfer.protocol import Metric, RunContext, Task, image_splits
from transfer.supervised import Diverged, Order, SgdConfig, fit
from transfer.validation import headline, mean_per_class, parts

Rate = Annotated[float, Field(gt=0)]
Decay = Annotated[float, Field(ge=0)]


class Config(SgdConfig):
    """Fields of the cell."""

    PRESETS: ClassVar[Mapping[str, Preset]] = {"ssl_transfer": Preset({"batch": 64})}

    preset: str = "ssl_transfer"
    steps: Annotated[int, Field(gt=0)] = 5000  # instead of `epochs`
    rates: Annotated[tuple[Rate, ...], Field(min_length=1)] = (0.1, 0.01, 1e-3, 1e-4)  # of encoder and classifier
    decays: Annotated[tuple[Decay, ...], Field(min_length=1)] = (0.0, 1e-6, 1e-5, 1e-4, 1e-3)  # weight decay times rate
    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.2  # of train, where no validation images are published
    size: Annotated[int, Field(ge=16)] | None = None  # side of the crops in pixels; none: the backbone's
    resize: Annotated[int, Field(ge=16)] | None = None  # shorter side at evaluation, in pixels; none: the size
    interpolation: Interpolation = "bicubic"

    def factor(self, step: int, steps_per_epoch: int) -> float:
        """Return the factor on the rates at a step: a cosine over all steps."""
        return 0.5 * (1 + math.cos(math.pi * step / self.steps))


class _Decayed(Classifier):
    """All parameters in one group with weight decay."""

    def groups(self, weight_decay: float) -> list[dict[str, Any]]:
        return [{"params": list(self.parameters()), "rate": self.rate_encoder, "weight_decay": weight_decay}]


def primary(config: Config) -> str:
    """Return the headline of the data set."""
    return headline(config.data.name)


def smoke(config: Config) -> dict[str, Any]:
    """Return fields for a few images, steps and grid points."""
    return {"data": {"limit": 64}, "steps": 2, "batch": 16, "rates": config.rates[:2], "decays": config.decays[:1]}


def run(backbone: Backbone, config: Config, ctx: RunContext[ImageSplit]) -> dict[str, Metric]:
    """Return `top1`, `top5` and `mean_per_class` after the last step."""
    train, test = ctx.splits["train"], ctx.splits["test"]
    rate, decay = config.rates[0], config.decays[0]
    if len(config.rates) * len(config.decays) > 1:
        rate, decay = _choose(backbone, config, ctx)
    rows = torch.arange(len(train))
    best = _answers(backbone, _point(config, rate, decay), rows, test, ctx, holdout=False)
    y = torch.as_tensor(test.labels)
    ctx.items |= items_of(best, y, len(test.classes))
    found = {name: Metric(value) for name, value in hits(best, y).items()}
    return {**found, "mean_per_class": Metric(mean_per_class(best[:, 0] == y, y, len(test.classes)))}


def _point(config: Config, rate: float, decay: float) -> Config:
    """Return the configuration of one grid point."""
    return config.model_copy(update={"rates": (rate,), "decays": (decay,)})


def _choose(backbone: Backbone, config: Config, ctx: RunContext[ImageSplit]) -> tuple[float, float]:
    """Return the grid point with the best headline on the validation images, the first on a tie. Records the tuning.

    Raises:
        Diverged: no grid point was trained to the end.
    """
    train = ctx.splits["train"]
    fit_on, validation, words = parts(train, config.holdout)
    aside = train.part(validation.numpy())
    scores: dict[tuple[float, float], float] = {}
    for rate in config.rates:
        for decay in config.decays:
            point = _point(config, rate, decay)
            scores[rate, decay] = _score(backbone, point, fit_on, aside, ctx)
            say(f"rate {rate:g}, decay {decay:g}: {headline(config.data.name)} {scores[rate, decay]:.2f} on {words}")
    sound = {point: score for point, score in scores.items() if not math.isnan(score)}
    if not sound:
        raise Diverged(f"every grid point diverged: rates {list(config.rates)} are too high")
    rate, decay = max(sound, key=lambda point: sound[point])
    there = {f"{r:g}, {d:g}": score for (r, d), score in sound.items()}
    ctx.tuned |= {"rate": rate, "decay": decay, "on": words, f"{headline(config.data.name)}_there": there}
    if len(sound) < len(scores):
        ctx.notes.append(f"{len(scores) - len(sound)} of {len(scores)} grid points diverged")
    if len(config.rates) > 2 and rate in (min(config.rates), max(config.rates)):
        ctx.notes.append(f"the chosen rate {rate:g} is at the edge of the grid: widen `rates`")
    return rate, decay


def _score(backbone: Backbone, point: Config, fit_on: Tensor, aside: ImageSplit, ctx: RunContext[ImageSplit]) -> float:
    """Return the headline on the images aside, in percent; NaN for a grid point that diverged."""
    kept = ctx.resume_file(backbone, point, TASK.version).with_suffix(".json")
    if (score := _kept(kept)) is not None:
        return score
    try:
        best = _answers(backbone, point, fit_on, aside, ctx, holdout=True)
    except Diverged:
        score = math.nan
    else:
        y = torch.as_tensor(aside.labels)
        right = best[:, 0] == y
        mean = mean_per_class(right, y, len(aside.classes))
        score = mean if headline(point.data.name) == "mean_per_class" else float(100 * right.double().mean())
    barrier()
    if is_main():
        atomic_write_text(kept, json.dumps({"score": score}))
    return score


def _kept(file: Path) -> float | None:
    """Return the score of a finished grid point; None if there is none to read."""
    try:
        return float(json.loads(file.read_text(encoding="utf-8"))["score"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _answers(
    backbone: Backbone, point: Config, rows: Tensor, split: ImageSplit, ctx: RunContext[ImageSplit], *, holdout: bool
) -> Tensor:
    """Train one grid point on some rows of train, and return the best classes of a split, (N, 5) or fewer columns."""
    train, (rate,), (decay,) = ctx.splits["train"], point.rates, point.decays
    size = point.size or backbone.input.size
    heads = Heads(backbone.feature_dim, len(train.classes), [rate], ctx.seed, init="linear")
    model = _Decayed(in_precision(backbone.build(), point.precision), heads, rate_encoder=rate)
    epochs = -(-point.steps // -(-len(rows) // point.batch))
    order = Order(len(rows), point.batch, epochs, ctx.seed, most=point.steps)
    batches = image_batches(train, crop_and_flip(size, point.interpolation), backbone.input, order, ctx, size, rows)
    state = ctx.resume_file(backbone, point, TASK.version)
    state = state if holdout else state.with_suffix(".final.ckpt")
    how = point.model_copy(update={"epochs": epochs, "weight_decay": decay / rate})
    curve = fit(model, batches, how, order, device=ctx.device, resume=state)
    ctx.curve = [] if holdout else curve.of(0)  # of the training that is reported
    assert model.encoder is not None
    spec = FeatureSpec(size, point.resize or size, interpolation=point.interpolation, precision=point.precision)
    return best_classes(heads, compute(model.encoder, backbone.input, split, ctx, spec), device=ctx.device)[0]


TASK = Task(
    name="finetune",
    version=1,
    Config=Config,
    primary=primary,
    smoke=smoke,
    splits=image_splits,
    run=run,
)
