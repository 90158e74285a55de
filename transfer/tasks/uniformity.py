"""Alignment and uniformity of the frozen features (Wang and Isola 2020; MSBReg Table 12).

It makes two augmented views of every test image. On L2-normalised pooled features, alignment is the mean squared distance of
the two views, and uniformity is the logarithm of the mean Gaussian potential between different images, averaged over the
views. The paper names neither the layer nor the augmentation. Preset `byol`: one of BYOL's two distributions per view
(Appendix B: blur 1 and no solarisation, blur 0.1 and solarisation 0.2; bicubic). `table9`: MSBReg's pretraining augmentation
of Table 9 for both views (blur 1, solarisation 0.2). `crop`: a crop and a flip.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field

from backbench.data.splits import ImageSplit
from backbench.distributed import all_reduce_sum
from backbench.embeddings import alignment, uniformity
from backbench.errors import DataError
from backbench.precision import in_precision
from backbench.progress import track
from model_zoo.backbone import Backbone
from transfer.augment import View, crop_and_flip, image_batches, ssl_view
from transfer.features import note_degenerate, refuse_not_finite
from transfer.presets import Preset
from transfer.protocol import ForwardConfig, Metric, RunContext, Task, image_splits
from transfer.supervised import Order

_BATCH = 128


class Config(ForwardConfig):
    """Fields of the cell."""

    PRESETS: ClassVar[Mapping[str, Preset]] = {
        "byol": Preset({"views": "byol_pair"}),
        "table9": Preset({"views": "table9"}),
        "crop": Preset({"views": "crop"}),
    }

    preset: str = "byol"
    views: Literal["byol_pair", "table9", "byol", "crop"] = (
        "byol_pair"  # byol: BYOL's first distribution twice, bilinear
    )
    t: Annotated[float, Field(gt=0)] = 2.0
    size: Annotated[int, Field(ge=16)] | None = None  # side of the crops in pixels; none: the backbone's


def primary(config: Config) -> str:
    """Return the name of the headline metric."""
    return "uniformity"


def smoke(config: Config) -> dict[str, Any]:
    """Return fields for a few images."""
    return {"data": {"limit": 128}}


def views_of(name: str, size: int) -> tuple[View, View]:
    """Return the transforms of the two views."""
    if name == "byol_pair":
        first, second = ({"blur": 1.0, "solarize": 0.0}, {"blur": 0.1, "solarize": 0.2})
        return ssl_view(size, bicubic=True, **first), ssl_view(size, bicubic=True, **second)
    if name == "table9":
        return (ssl_view(size, blur=1.0, solarize=0.2),) * 2
    return ((ssl_view(size, blur=1.0, solarize=0.0) if name == "byol" else crop_and_flip(size)),) * 2


def run(backbone: Backbone, config: Config, ctx: RunContext[ImageSplit]) -> dict[str, Metric]:
    """Return `alignment` and `uniformity`, raw; lower is better for both."""
    test = ctx.splits["test"]
    if len(test) < 2:
        raise DataError(f"{test.dataset} {test.split}: uniformity needs at least two images")
    size = config.size or backbone.input.size
    view = views_of(config.views, size)
    module = backbone.build().eval().requires_grad_(False).to(ctx.device).to(memory_format=torch.channels_last)
    encoder = in_precision(module, config.precision)
    # An epoch is one view of every image in random order, so each feature goes to the row of its image.
    order = Order(len(test), _BATCH, 2, ctx.seed)
    batches = image_batches(test, view, backbone.input, order, ctx, size)
    x = torch.zeros(2, len(test), backbone.feature_dim, device=ctx.device)
    total = order.epochs * order.steps_per_epoch
    with torch.no_grad():
        for (epoch, rows), (images, _) in zip(order.rows(), track(batches(0), total=total, label="views"), strict=True):
            x[epoch, rows.to(x.device)] = encoder(images).float()
    x = all_reduce_sum(x)  # each rank fills its own rows; the others are zero
    refuse_not_finite(x.flatten(0, 1), test, config.precision)
    note_degenerate(x.flatten(0, 1), test, ctx)
    even = (uniformity(x[0], config.t) + uniformity(x[1], config.t)) / 2
    return {
        "alignment": Metric(float(alignment(x[0], x[1])), unit="", higher_is_better=False),
        "uniformity": Metric(float(even), unit="", higher_is_better=False),
    }


TASK = Task(
    name="uniformity",
    version=1,
    Config=Config,
    primary=primary,
    smoke=smoke,
    splits=image_splits,
    run=run,
)
