"""Alignment and uniformity of the frozen features (Wang and Isola 2020; MSBReg Table 12).

Two augmented views of every test image; alignment is the mean squared distance of the two, uniformity the logarithm of
the mean Gaussian potential between different images, averaged over the views; on L2-normalised pooled features. The
paper names neither the layer nor the augmentation: `byol` is what it pretrains with, `crop` a crop and a flip.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field

from core.distributed import all_reduce_sum
from core.embeddings import alignment, uniformity
from core.errors import DataError
from core.progress import track
from model_zoo.backbone import Backbone
from transfer.augment import byol_view, crop_and_flip, image_batches
from transfer.protocol import Metric, RunContext, TaskConfig, image_data_missing, image_splits
from transfer.supervised import Order

version = 1
_BATCH = 128


class Config(TaskConfig):
    """Fields of the cell."""

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {"byol": {"views": "byol"}, "crop": {"views": "crop"}}

    preset: str = "byol"
    views: Literal["byol", "crop"] = "byol"
    t: Annotated[float, Field(gt=0)] = 2.0
    size: Annotated[int, Field(ge=16)] | None = None  # pixels of the crops; none: the backbone's


def primary(config: Config) -> str:
    """Headline metric."""
    return "uniformity"


def deterministic(config: Config) -> bool:
    """Never: the views are drawn."""
    return False


def smoke(config: Config) -> dict[str, Any]:
    """A few images."""
    return {"data": {"limit": 128}}


missing = image_data_missing
splits = image_splits


def run(backbone: Backbone, config: Config, ctx: RunContext) -> dict[str, Metric]:
    """`alignment` and `uniformity`, raw; lower is better of both."""
    test = ctx.splits["test"]
    if len(test) < 2:
        raise DataError(f"{test.dataset} {test.split}: uniformity needs two images at least")
    size = config.size or backbone.input.size
    view = {"byol": byol_view, "crop": crop_and_flip}[config.views](size)
    module = backbone.build().eval().requires_grad_(False).to(ctx.device, memory_format=torch.channels_last)
    # An epoch is one view of every image; its order is drawn, so features go to their image's row.
    order = Order(len(test), _BATCH, 2, ctx.seed)
    batches = image_batches(test, view, backbone.input, order, ctx, size)
    x = torch.zeros(2, len(test), backbone.feature_dim, device=ctx.device)
    total = order.epochs * order.steps_per_epoch
    with torch.no_grad():
        for (epoch, rows), (images, _) in zip(order.rows(), track(batches(0), total=total, label="views"), strict=True):
            x[epoch, rows.to(x.device)] = module(images).float()
    x = all_reduce_sum(x)  # every rank has its own rows, zeros elsewhere
    if not bool(torch.isfinite(x).all()):
        raise FloatingPointError(f"features of {test.dataset} {test.split} hold NaN or infinite values")
    even = (uniformity(x[0], config.t) + uniformity(x[1], config.t)) / 2
    return {
        "alignment": Metric(float(alignment(x[0], x[1])), unit="", higher_is_better=False),
        "uniformity": Metric(float(even), unit="", higher_is_better=False),
    }
