"""Fine-tuning on 1% or 10% of ImageNet's labels, by SimCLR's official lists (MSBReg section 8.2, Table 3).

Encoder and classifier have separate rates. A rate of 0 freezes the encoder, and the record says so: the paper's 1% row has a
frozen encoder, the rows of other methods do not. The last epoch is evaluated on the whole test split.

Presets: `msbreg` (rates, momentum and batch from the paper; epochs, cosine and no weight decay are our reading), `barlow`
(barlowtwins README, evaluate.py; its BatchNorms use the statistics of each GPU, ours of the whole batch), `swav`
(eval_semisup.py: 20 epochs, x0.2 after 12 and 16, PyTorch's initialisation, standard deviation 0.228 for red). The sources
of `barlow` and `swav` print the best epoch on val.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from backbench.data import subsets
from backbench.data.catalogue import DataPlaces
from backbench.data.splits import ImageSplit
from backbench.files.hashes import tensors_sha256
from backbench.precision import in_precision
from model_zoo.architecture import InputSpec
from model_zoo.backbone import Backbone, identity_tensors
from transfer.augment import crop_and_flip, image_batches
from transfer.feature_spec import FeatureSpec
from transfer.features import FrozenMoved, compute
from transfer.heads import Classifier, HeadInit, Heads, best_classes, hits, items_of
from transfer.presets import Preset, When
from transfer.protocol import Metric, RunContext, Task, image_splits, limited
from transfer.supervised import Order, SgdConfig, fit

_SWAV = {"batch": 256, "epochs": 20, "nesterov": False, "schedule": "steps", "milestones": [0.6, 0.8], "gamma": 0.2,
         "head_init": "linear", "std": [0.228, 0.224, 0.225]}  # fmt: skip


Positive = Annotated[float, Field(gt=0)]


class Config(SgdConfig):
    """Fields of the cell."""

    PRESETS: ClassVar[Mapping[str, Preset]] = {
        "msbreg": Preset({"batch": 1024}, when=(
            When("share", "1%", {"epochs": 60, "rate_head": 2.0, "rate_encoder": 0.0}),
            When("share", "10%", {"epochs": 30, "rate_head": 0.25, "rate_encoder": 2.5e-4}),
        )),
        "barlow": Preset({"batch": 256, "epochs": 20, "nesterov": False, "per_epoch": True, "rate_head": 0.5,
                          "rate_encoder": 0.005}),
        "swav": Preset(_SWAV, when=(
            When("share", "1%", {"rate_head": 5.0, "rate_encoder": 0.02}),
            When("share", "10%", {"rate_head": 0.2, "rate_encoder": 0.01}),
        )),
    }  # fmt: skip
    LATER: ClassVar[frozenset[str]] = frozenset({"head_init", "std"})

    preset: str = "msbreg"
    share: Literal["1%", "10%"] = "1%"
    list: str | None = None  # a file of image names, or `drawn`, instead of the official list of this share
    rate_head: Annotated[float, Field(gt=0)] = 2.0  # at `batch`
    rate_encoder: Annotated[float, Field(ge=0)] = 0.0  # 0: the encoder is frozen
    head_init: HeadInit = "normal"  # N(0, 0.01) and bias 0; linear: PyTorch's default
    std: tuple[Positive, Positive, Positive] | None = None  # of red, green, blue; none: the backbone's
    size: Annotated[int, Field(ge=16)] | None = None  # side of the crops in pixels; none: the backbone's
    resize: Annotated[int, Field(ge=16)] | None = None


def primary(config: Config) -> str:
    """Return the name of the headline metric."""
    return "top1"


def smoke(config: Config) -> dict[str, Any]:
    """Return fields for a few images drawn from any image folder and two epochs."""
    return {"data": {"limit": 64}, "epochs": 2, "batch": 32, "list": config.list or "drawn"}


def splits(config: Config, places: DataPlaces) -> dict[str, ImageSplit]:
    """Return the listed part of train and the whole test split.

    Raises:
        DataError: a listed name is not in train, the list is of the other share, or a class has no image.
    """
    whole = image_splits(config.model_copy(update={"data": config.data.model_copy(update={"limit": 0})}), places)
    if config.list == "drawn":
        listed = draw(whole["train"], float(config.share.rstrip("%")) / 100)
    else:
        listed = subsets.subset(whole["train"], config.list or config.share, expected=config.share)
    return {"train": limited(listed, config.data.limit), "test": limited(whole["test"], config.data.limit)}


def draw(train: ImageSplit, share: float) -> ImageSplit:
    """Return a fixed share of every class, at least one image, for data without an official list."""
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0)).numpy()
    assert train.labels is not None
    labels = train.labels[order]
    rows = [order[labels == c][: max(1, round(share * int((labels == c).sum())))] for c in range(len(train.classes))]
    return train.part(np.sort(np.concatenate(rows)))


def input_of(backbone: Backbone, config: Config) -> InputSpec:
    """Return the backbone's input, with the protocol's standard deviation if it sets one."""
    if config.std is None:
        return backbone.input
    std = config.std if backbone.input.order == "rgb" else config.std[::-1]  # in the backbone's channel order
    return backbone.input.model_copy(update={"std": std})


def run(backbone: Backbone, config: Config, ctx: RunContext[ImageSplit]) -> dict[str, Metric]:
    """Return `top1` and `top5` after the last epoch."""
    train, test = ctx.splits["train"], ctx.splits["test"]
    size = config.size or backbone.input.size
    encoder = backbone.build()
    given = input_of(backbone, config)
    heads = Heads(backbone.feature_dim, len(train.classes), [config.rate_head], ctx.seed, init=config.head_init)
    model = Classifier(in_precision(encoder, config.precision), heads, rate_encoder=config.rate_encoder)
    order = Order(len(train), config.batch, config.epochs, ctx.seed)
    batches = image_batches(train, crop_and_flip(size), given, order, ctx, size)
    resume = ctx.resume_file(backbone, config, TASK.version)
    ctx.curve = fit(model, batches, config, order, device=ctx.device, resume=resume).of(0)
    frozen = not config.rate_encoder
    if frozen and tensors_sha256(identity_tensors(encoder.state_dict())) != backbone.weights_sha256:
        raise FrozenMoved("the frozen encoder changed while the head was trained")
    ctx.notes.append(
        "encoder frozen: a linear probe on few labels"
        if frozen
        else f"encoder fine-tuned at rate {config.rate_encoder:g}"
    )
    assert model.encoder is not None
    x = compute(model.encoder, given, test, ctx, FeatureSpec(config.size, config.resize, precision=config.precision))
    y_test = torch.as_tensor(test.labels)
    best = best_classes(heads, x, device=ctx.device)[0]
    ctx.items |= items_of(best, y_test, len(test.classes))
    return {name: Metric(value) for name, value in hits(best, y_test).items()}


TASK = Task(
    name="semi_supervised",
    version=1,
    Config=Config,
    primary=primary,
    smoke=smoke,
    splits=splits,
    run=run,
)
