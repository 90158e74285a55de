"""Attentive probe on a frozen encoder: a learned query attends to C5's cells or to patch tokens, and a linear layer classifies.

Preset `capi` is facebookresearch/capi's eval_classification.py, whose probe is in `transfer.attention`: 12,500 steps of AdamW
(betas 0.9 and 0.95) on random crops (bicubic) and flips, the rate rising for 1,250 steps and falling by a cosine. All pairs of
ten rates and three weight decays are trained on the same forward passes. The source runs 128 images on each of 8 GPUs (batch
1024; train_distributed.py) and multiplies its rates by the batch over 256. The pair with the best top-1 on images held out of
*train* is reported: the published validation images where a data set has them, else 10% of train. Nothing is chosen on the test
split.

Other than in the source: the held-out images are drawn as `logistic` draws them; the last batch of an epoch may be smaller; the
tokens are those after the last norm (timm's `forward_features`) or C5's cells, which have no norm. V-JEPA's probe has a whole
transformer block around the attention; it is not offered.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from backbench.data.splits import ImageSplit
from backbench.data.transforms import Interpolation
from backbench.files.hashes import tensors_sha256
from backbench.precision import in_precision
from model_zoo.backbone import Backbone, identity_tensors
from transfer.attention import Answers, AttentiveClassifier, AttentiveHeads, points
from transfer.augment import crop_and_flip, image_batches
from transfer.curve import Curve
from transfer.feature_spec import FeatureSpec
from transfer.features import FrozenMoved, compute
from transfer.heads import hits, items_of
from transfer.presets import Preset
from transfer.protocol import Metric, RunContext, Task, image_splits
from transfer.supervised import Order, SgdConfig, fit
from transfer.tokens import Tokens, without_tokens
from transfer.validation import headline, mean_per_class, parts

Rate = Annotated[float, Field(gt=0)]
Decay = Annotated[float, Field(ge=0)]


class Config(SgdConfig):
    """Fields of the cell."""

    PRESETS: ClassVar[Mapping[str, Preset]] = {
        "capi": Preset({"optimizer": "adamw", "betas": [0.9, 0.95], "batch": 1024}),
    }

    preset: str = "capi"
    steps: Annotated[int, Field(gt=0)] = 12_500  # instead of `epochs`
    warmup: Annotated[int, Field(ge=0)] = 1_250  # steps in which the rate rises from 0
    rates: Annotated[tuple[Rate, ...], Field(min_length=1)] = (
        1e-5,
        2e-5,
        5e-5,
        1e-4,
        2e-4,
        5e-4,
        1e-3,
        2e-3,
        5e-3,
        1e-2,
    )  # at a batch of 256; multiplied by batch / 256
    decays: Annotated[tuple[Decay, ...], Field(min_length=1)] = (5e-4, 1e-3, 5e-2)  # weight decays; biases have none
    head_width: Annotated[int, Field(gt=0)] = 64  # channels of an attention head
    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.1  # of train, where no validation images are published
    size: Annotated[int, Field(ge=16)] | None = None  # side of the crops in pixels; none: the backbone's
    resize: Annotated[int, Field(ge=16)] | None = (
        None  # shorter side at evaluation, in pixels; none: 256/224 of the size
    )
    interpolation: Interpolation = "bicubic"

    def factor(self, step: int, steps_per_epoch: int) -> float:
        """Return the factor on the rates at a step: linear from 0 to 1, then a cosine to 0 at the last step."""
        if step < self.warmup:
            return step / max(1, self.warmup - 1)
        last = max(1, self.steps - self.warmup - 1)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - self.warmup) / last)))


def primary(config: Config) -> str:
    """Return the headline of the data set."""
    return headline(config.data.name)


def smoke(config: Config) -> dict[str, Any]:
    """Return fields for a few images, steps and probes."""
    few = {"rates": config.rates[:2], "decays": config.decays[:1]}
    return {"data": {"limit": 64}, "steps": 4, "warmup": 1, "batch": 16, **few}


def unfit(backbone: Backbone, config: Config) -> str | None:
    """Return why the backbone has no tokens, or channels that do not divide into attention heads."""
    if reason := without_tokens(backbone):
        return reason
    if backbone.feature_dim % config.head_width:
        return f"its {backbone.feature_dim} channels do not divide into attention heads of {config.head_width}: set head_width"
    return None


def run(backbone: Backbone, config: Config, ctx: RunContext[ImageSplit]) -> dict[str, Metric]:
    """Return `top1`, `top5` and `mean_per_class` of the chosen probe. Stores the top five classes of every test image."""
    train, test = ctx.splits["train"], ctx.splits["test"]
    fit_on, held_out, words = parts(train, config.holdout)
    model, curve = _trained(backbone, fit_on, config, ctx)
    aside = train.part(held_out.numpy())
    chosen = _choose(model, _answers(model, backbone, aside, config, ctx), aside, words, config, ctx)
    ctx.curve = curve.of(chosen)
    best = _answers(model, backbone, test, config, ctx)[chosen]
    y = torch.as_tensor(test.labels)
    ctx.items |= items_of(best, y, len(test.classes))
    found = {name: Metric(value) for name, value in hits(best, y).items()}
    return {**found, "mean_per_class": Metric(mean_per_class(best[:, 0] == y, y, len(test.classes)))}


def _trained(
    backbone: Backbone, rows: Tensor, config: Config, ctx: RunContext[ImageSplit]
) -> tuple[AttentiveClassifier, Curve]:
    """Train every probe on some rows of train; return them with their losses. Raises FrozenMoved if the encoder changed."""
    train, encoder = ctx.splits["train"], backbone.build()
    rates, decays = points([rate * config.batch / 256 for rate in config.rates], config.decays)
    heads = AttentiveHeads(backbone.feature_dim, len(train.classes), rates, decays, ctx.seed, config.head_width)
    model = AttentiveClassifier(in_precision(Tokens(encoder), config.precision), heads)
    size = config.size or backbone.input.size
    epochs = -(-config.steps // -(-len(rows) // config.batch))
    order = Order(len(rows), config.batch, epochs, ctx.seed, most=config.steps)
    view = crop_and_flip(size, config.interpolation)
    batches = image_batches(train, view, backbone.input, order, ctx, size, rows)
    how = config.model_copy(update={"epochs": epochs})
    resume = ctx.resume_file(backbone, config, TASK.version)
    curve = fit(model, batches, how, order, device=ctx.device, resume=resume)
    if tensors_sha256(identity_tensors(encoder.state_dict())) != backbone.weights_sha256:
        raise FrozenMoved("the frozen encoder changed while the probes were trained")
    return model, curve


def _answers(
    model: AttentiveClassifier, backbone: Backbone, split: ImageSplit, config: Config, ctx: RunContext[ImageSplit]
) -> list[Tensor]:
    """Return every probe's best classes for the images of a split, (N, 5) or fewer columns."""
    spec = FeatureSpec(config.size, config.resize, interpolation=config.interpolation)
    found = compute(Answers(model), backbone.input, split, ctx, spec)
    return list(found.long().unflatten(1, (len(model.heads.rates), -1)).unbind(dim=1))


def _choose(
    model: AttentiveClassifier,
    best: list[Tensor],
    aside: ImageSplit,
    words: str,
    config: Config,
    ctx: RunContext[ImageSplit],
) -> int:
    """Return the probe with the best top-1 on the images aside, the first on a tie. Records the tuning."""
    y = torch.as_tensor(aside.labels)
    scores = [hits(each, y)["top1"] for each in best]
    sound = [index for index, finite in enumerate(model.heads.sound) if finite]
    chosen = max(sound, key=lambda index: scores[index])
    rates, decays = points(config.rates, config.decays)
    ctx.tuned |= {"rate": rates[chosen], "decay": decays[chosen], "on": words}
    ctx.tuned["top1_there"] = {f"{r:g}, {d:g}": score for r, d, score in zip(rates, decays, scores, strict=True)}
    if len(sound) < len(scores):
        ctx.notes.append(f"{len(scores) - len(sound)} of {len(scores)} probes diverged")
    if len(config.rates) > 2 and rates[chosen] in (min(rates), max(rates)):
        ctx.notes.append(f"the chosen rate {rates[chosen]:g} is at the edge of the sweep: widen `rates`")
    return chosen


TASK = Task(
    name="attentive",
    version=1,
    Config=Config,
    primary=primary,
    smoke=smoke,
    splits=image_splits,
    run=run,
    unfit=unfit,
)
