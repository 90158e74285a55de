"""Alignment and uniformity of the frozen features (Wang and Isola 2020; MSBReg Table 12).

It makes two augmented views of every test image. On L2-normalised pooled features, alignment is the mean squared distance of
the two views, and uniformity is the logarithm of the mean Gaussian potential between different images, averaged over the
views. The paper names neither the layer nor the augmentation: the presets are those of `transfer.view_features.views_of`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field

from backbench.data.splits import ImageSplit
from backbench.embeddings import alignment, uniformity
from backbench.errors import DataError
from model_zoo.backbone import Backbone
from transfer.features import note_degenerate
from transfer.presets import Preset
from transfer.protocol import ForwardConfig, Metric, RunContext, Task, image_splits
from transfer.view_features import Augmentation, view_features, views_of


class Config(ForwardConfig):
    """Fields of the cell."""

    PRESETS: ClassVar[Mapping[str, Preset]] = {
        "byol": Preset({"views": "byol_pair"}),
        "table9": Preset({"views": "table9"}),
        "crop": Preset({"views": "crop"}),
    }

    preset: str = "byol"
    views: Augmentation = "byol_pair"  # byol: BYOL's first distribution twice, bilinear
    t: Annotated[float, Field(gt=0)] = 2.0
    size: Annotated[int, Field(ge=16)] | None = None  # side of the crops in pixels; none: the backbone's


def primary(config: Config) -> str:
    """Return the name of the headline metric."""
    return "uniformity"


def smoke(config: Config) -> dict[str, Any]:
    """Return fields for a few images."""
    return {"data": {"limit": 128}}


def run(backbone: Backbone, config: Config, ctx: RunContext[ImageSplit]) -> dict[str, Metric]:
    """Return `alignment` and `uniformity`, raw; lower is better for both."""
    test = ctx.splits["test"]
    if len(test) < 2:
        raise DataError(f"{test.dataset} {test.split}: uniformity needs at least two images")
    size = config.size or backbone.input.size
    views = views_of(config.views, size)
    x = view_features(backbone, test, views, ctx, count=2, size=size, precision=config.precision)
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
