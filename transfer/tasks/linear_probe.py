"""Linear classifier on a frozen encoder, trained on cached features or on augmented images (RandomResizedCrop, flip).

MSBReg section 8.1 prints no rate, schedule or batch for ImageNet. Preset `sweep` is ours: many rates share one pass, and a
slice held out of *train* chooses the head. Nothing is chosen on the test split. The other presets each follow one published
schedule on the whole train split. All report the last epoch:

- `msbreg`: section 8.4, Places205 and iNat18. We read "equally spaced" decays as thirds of the iterations.
- `vissl`: VISSL's head on C5 (one of five), pooled to 2x2 (8192 numbers for a ResNet-50), BatchNorm over the 2048 channels,
  PyTorch's initialisation (vissl configs/.../places205/eval_resnet_8gpu_transfer_places205_linear.yaml, eval_mlp).
- `moco` (main_lincls.py), `barlow` (evaluate.py), `simsiam` (main_lincls.py, LARS): the sources print the best epoch on val.
- `wmse` (htdt eval/sgd.py): Adam, PyTorch's initialisation, bicubic resizing of STL-10; for ImageNet-100 see `knn`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from backbench.data.splits import ImageSplit
from backbench.data.transforms import Interpolation
from backbench.errors import DataError
from backbench.files.hashes import tensors_sha256
from backbench.precision import in_precision
from model_zoo.backbone import Backbone, identity_tensors
from transfer import head_file
from transfer.augment import crop_and_flip, image_batches
from transfer.curve import Curve
from transfer.feature_spec import FeatureSpec
from transfer.features import FrozenMoved, extract, note_degenerate
from transfer.heads import Classifier, HeadInit, Heads, accuracies, best_classes, hits, items_of
from transfer.pooling import CELLS, Pooled, Pooling, needs_stages, width_of
from transfer.presets import Preset, When
from transfer.protocol import Metric, RunContext, Task, image_splits
from transfer.resident import resident
from transfer.supervised import Order, SgdConfig, batches_of, fit, refuse_single

_STEPS = {"schedule": "steps", "gamma": 0.1}
_PUBLISHED = {"holdout": 0.0, "features": "augmented", "nesterov": False}


class Config(SgdConfig):
    """Fields of the cell."""

    PRESETS: ClassVar[Mapping[str, Preset]] = {
        "sweep": Preset(),
        "msbreg": Preset({**_PUBLISHED, **_STEPS, "rates": [0.2], "batch": 256, "weight_decay": 1e-4, "epochs": 28,
                          "milestones": [1 / 3, 2 / 3]}),
        "vissl": Preset({**_PUBLISHED, **_STEPS, "rates": [0.01], "batch": 256, "weight_decay": 5e-4, "epochs": 14,
                         "milestones": [4 / 14, 8 / 14, 12 / 14], "nesterov": True, "head_norm": "affine",
                         "feature": "res5_2x2", "head_init": "linear"}),
        "moco": Preset({**_PUBLISHED, **_STEPS, "rates": [30.0], "batch": 256, "milestones": [0.6, 0.8]}),
        "barlow": Preset({**_PUBLISHED, "rates": [0.3], "batch": 256, "weight_decay": 1e-6, "per_epoch": True}),
        "simsiam": Preset({**_PUBLISHED, "rates": [1.6], "batch": 4096, "epochs": 90, "optimizer": "lars",
                           "per_epoch": True}),
        "wmse": Preset({**_PUBLISHED, "features": "cached", "rates": [0.01], "batch": 1000, "epochs": 500,
                        "optimizer": "adam", "weight_decay": 5e-6, "schedule": "exponential", "gamma": 1e-4,
                        "per_epoch": True, "head_init": "linear"},
                       when=(When("data.name", "stl10", {"interpolation": "bicubic"}),)),
    }  # fmt: skip
    LATER: ClassVar[frozenset[str]] = frozenset({"feature", "head_init", "interpolation"})

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
    features: Literal["cached", "augmented"] = "cached"
    feature: Pooling = "gap"
    head_norm: Literal["none", "plain", "affine"] = "none"
    head_init: HeadInit = "normal"  # N(0, 0.01) and bias 0; linear: PyTorch's default
    holdout: Annotated[float, Field(ge=0, lt=0.5)] = (
        0.1  # fraction of train that chooses the rate; 0: one rate, all of train
    )
    holdout_max: Annotated[int, Field(gt=0)] = 10_000
    size: Annotated[int, Field(ge=16)] | None = None  # side of the crops in pixels; none: the backbone's
    resize: Annotated[int, Field(ge=16)] | None = None
    interpolation: Interpolation = "bilinear"  # of the resizing at evaluation

    @model_validator(mode="after")
    def _choice_needs_a_slice(self) -> Self:
        if not self.rates:
            raise ValueError("rates: at least one is needed, e.g. rates=[0.1]")
        if len(self.rates) > 1 and not self.holdout:
            raise ValueError(
                "several rates need a slice of train that chooses one: set holdout above 0, or give one rate"
            )
        return self


def primary(config: Config) -> str:
    """Return the name of the headline metric."""
    return "top1"


def smoke(config: Config) -> dict[str, Any]:
    """Return fields for a few images and two epochs."""
    return {"data": {"limit": 256}, "epochs": 2, "batch": 64}


def run(backbone: Backbone, config: Config, ctx: RunContext[ImageSplit]) -> dict[str, Metric]:
    """Return `top1` and `top5` of the chosen head on the test split. Stores the top five classes of every test image."""
    test = ctx.splits["test"]
    head = trained(backbone, config, ctx)
    y_test = torch.as_tensor(test.labels)
    best = best_classes(head, extract(backbone, test, ctx, spec=spec_of(config)), device=ctx.device)[0]
    ctx.items |= items_of(best, y_test, len(test.classes))
    return {name: Metric(value) for name, value in hits(best, y_test).items()}


def spec_of(config: Config) -> FeatureSpec:
    """Return the features that the heads are scored on."""
    return FeatureSpec(
        size=config.size,
        resize=config.resize,
        pooling=config.feature,
        interpolation=config.interpolation,
        precision=config.precision,
    )


def trained(backbone: Backbone, config: Config, ctx: RunContext[ImageSplit]) -> Heads:
    """Train all heads and return the chosen one alone. It is kept as a file in the run's folder (`transfer.head_file`)."""
    train, spec = ctx.splits["train"], spec_of(config)
    fit_on, held_out = hold_out(len(train), config, ctx.seed)
    order = Order(len(fit_on), config.batch, config.epochs, ctx.seed)
    if config.head_norm != "none":
        refuse_single(order)
    if config.features == "cached":
        x, y = extract(backbone, train, ctx, spec=spec), torch.as_tensor(train.labels)
        note_degenerate(x, train, ctx)
        heads = new_heads(x.shape[1], len(train.classes), config, ctx.seed)
        near = resident(x, ctx.device)
        batches = batches_of(near, y.to(near.device), order, fit_on)
        curve = fit(Classifier(None, heads), batches, config, order, device=ctx.device)
        del near, batches  # from the GPU
        there = (x[held_out], y[held_out]) if len(held_out) else None
    else:
        heads = new_heads(width_of(backbone, config.feature), len(train.classes), config, ctx.seed)
        curve = _fit_on_images(heads, backbone, train, fit_on, order, config, ctx)
        aside = train.part(held_out.numpy())
        there = (extract(backbone, aside, ctx, spec=spec), torch.as_tensor(aside.labels)) if len(held_out) else None
    chosen = choose(heads, *there, ctx) if there else 0
    ctx.curve = curve.of(chosen)
    head = heads.alone(chosen)
    head_file.keep(head, backbone, config, TASK.name, TASK.version, ctx)
    return head


def stored(backbone: Backbone, config: Config, ctx: RunContext[ImageSplit]) -> tuple[Heads, str] | None:
    """Return the head that `trained` would return, from a run of the same results folder, and its place; or None."""
    norm, cells = config.head_norm, CELLS[config.feature]
    return head_file.find(config, backbone, TASK.name, TASK.version, ctx, norm=norm, cells=cells)


def new_heads(width: int, classes: int, config: Config, seed: int) -> Heads:
    """Return initialised heads for `width` features."""
    cells = CELLS[config.feature]
    return Heads(width, classes, config.rates, seed, config.head_norm, init=config.head_init, cells=cells)


def _fit_on_images(
    heads: Heads,
    backbone: Backbone,
    train: ImageSplit,
    rows: Tensor,
    order: Order,
    config: Config,
    ctx: RunContext[ImageSplit],
) -> Curve:
    """Train heads on augmented images; return their losses. Raises FrozenMoved if the encoder changed."""
    encoder = backbone.build()
    size = config.size or backbone.input.size
    batches = image_batches(train, crop_and_flip(size), backbone.input, order, ctx, size, rows)
    resume = ctx.resume_file(backbone, config, TASK.version)
    features = in_precision(encoder if config.feature == "gap" else Pooled(encoder, config.feature), config.precision)
    curve = fit(Classifier(features, heads), batches, config, order, device=ctx.device, resume=resume)
    if tensors_sha256(identity_tensors(encoder.state_dict())) != backbone.weights_sha256:
        raise FrozenMoved("the frozen encoder changed while the heads were trained")
    return curve


def hold_out(images: int, config: Config, seed: int) -> tuple[Tensor, Tensor]:
    """Return rows to train on and held-out rows: disjoint, drawn with the seed."""
    count = min(round(images * config.holdout), config.holdout_max)
    if (count < 1 and config.holdout) or images - count < 1:
        raise DataError(f"{images} training images are too few to hold out {config.holdout:.0%}: give more images")
    order = torch.randperm(images, generator=torch.Generator().manual_seed(seed))
    return order[count:], order[:count]


def choose(heads: Heads, x: Tensor, y: Tensor, ctx: RunContext[ImageSplit]) -> int:
    """Return the head with the best held-out top-1 (the lower rate on a tie). Records the tuning in `ctx`.

    It never chooses a head with parameters that are not finite.
    """
    scores = [result["top1"] for result in accuracies(heads, x, y, device=ctx.device)]
    sound = [i for i, finite in enumerate(heads.sound) if finite]
    best = [i for i in sound if scores[i] == max(scores[i] for i in sound)]
    chosen = min(best, key=lambda i: heads.rates[i])
    ctx.tuned |= {
        "lr": heads.rates[chosen],
        "on": f"{len(x)} images held out of train",
        "top1_there": {f"{rate:g}": score for rate, score in zip(heads.rates, scores, strict=True)},
    }
    if len(scores) > 2 and heads.rates[chosen] in (min(heads.rates), max(heads.rates)):
        ctx.notes.append(f"the chosen rate {heads.rates[chosen]:g} is at the edge of the sweep: widen `rates`")
    return chosen


TASK = Task(
    name="linear_probe",
    version=2,
    Config=Config,
    primary=primary,
    smoke=smoke,
    splits=image_splits,
    run=run,
    unfit=needs_stages,
)
