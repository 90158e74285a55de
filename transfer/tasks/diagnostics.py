"""Diagnostics of frozen features without labels: RankMe, LiDAR, alpha-ReQ, CLID's two parts, effective rank, uniformity.

`backbench.diagnostics` and `backbench.spectra` have each formula with its paper. All but LiDAR judge the pooled features of a
seeded sample of at most 25,600 test images (RankMe's number), seen as in the kNN cells, whose cached features they share.
LiDAR takes 50 augmented views of 1000 of them, with its paper's delta 1e-4; preset `cheap` leaves it out.

It differs from the papers in this: RankMe and LiDAR judge the outputs of the projector, which checkpoints lack, and training
images; we judge the backbone's features of test images. LiDAR takes the augmentation of the pretraining; ours is one for all
backbones, BYOL's. CLID is the sum of its parts, each standardised over the backbones that are compared:
`backbench evidence predictors` adds them.

Features may not define a number: alpha-ReQ needs 100 eigenvalues. It is then left out, with a note of the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field

from backbench.data.splits import ImageSplit
from backbench.data.transforms import Interpolation
from backbench.diagnostics import DIAGNOSTICS, measure
from backbench.errors import DataError
from backbench.spectra import Undefined, lidar
from model_zoo.backbone import Backbone
from transfer.feature_spec import FeatureSpec
from transfer.features import extract, note_degenerate
from transfer.presets import Preset
from transfer.protocol import ForwardConfig, Metric, RunContext, Task, image_splits
from transfer.view_features import Augmentation, view_features, views_of


class Config(ForwardConfig):
    """Fields of the cell."""

    PRESETS: ClassVar[Mapping[str, Preset]] = {"papers": Preset(), "cheap": Preset({"lidar_views": None})}

    preset: str = "papers"
    images: Annotated[int, Field(ge=2)] = 25_600  # at most, of the test split; they share one draw by the seed
    lidar_images: Annotated[int, Field(ge=2)] = 1000  # at most, of those
    lidar_views: Annotated[int, Field(ge=2)] | None = 50  # of each of its images; none: no LiDAR
    delta: Annotated[float, Field(gt=0)] = 1e-4  # LiDAR's, added to the diagonal of the covariance within images
    views: Augmentation = "byol_pair"  # LiDAR's; byol_pair: BYOL's two distributions in turn
    size: Annotated[int, Field(ge=16)] | None = None  # side of the views in pixels; none: the backbone's
    resize: Annotated[int, Field(ge=16)] | None = None  # shorter side in pixels; none: 256/224 of the size
    interpolation: Interpolation = "bilinear"  # of the resizing


def primary(config: Config) -> str:
    """Return the name of the headline metric."""
    return "rankme"


def smoke(config: Config) -> dict[str, Any]:
    """Return fields for a few images and views."""
    return {"data": {"limit": 256}, "lidar_images": 32, "lidar_views": config.lidar_views and 4}


def run(backbone: Backbone, config: Config, ctx: RunContext[ImageSplit]) -> dict[str, Metric]:
    """Return the diagnostics that the features define, raw numbers but `cluster_learnability`, and `lidar`."""
    test = ctx.splits["test"]
    if len(test) < 2:
        raise DataError(f"{test.dataset} {test.split}: diagnostics need at least two images")
    spec = FeatureSpec(
        size=config.size, resize=config.resize, interpolation=config.interpolation, precision=config.precision
    )
    features = extract(backbone, test, ctx, spec)
    note_degenerate(features, test, ctx)
    drawn = torch.randperm(len(test), generator=torch.Generator().manual_seed(ctx.seed))[: config.images]
    values, reasons = measure(features[drawn].to(ctx.device))
    found = {
        name: Metric(value, unit=DIAGNOSTICS[name].unit, higher_is_better=DIAGNOSTICS[name].higher_is_better)
        for name, value in values.items()
    }
    if config.lidar_views is not None:
        try:
            found["lidar"] = _lidar(backbone, config, test.part(drawn[: config.lidar_images].numpy()), ctx)
        except Undefined as reason:
            reasons["lidar"] = str(reason)
    ctx.notes += [f"no {name}: {reason}" for name, reason in reasons.items()]
    return found


def _lidar(backbone: Backbone, config: Config, split: ImageSplit, ctx: RunContext[ImageSplit]) -> Metric:
    assert config.lidar_views is not None
    size = config.size or backbone.input.size
    views = views_of(config.views, size)
    x = view_features(backbone, split, views, ctx, count=config.lidar_views, size=size, precision=config.precision)
    return Metric(lidar(x.transpose(0, 1), config.delta), unit="", higher_is_better=True)


TASK = Task(
    name="diagnostics",
    version=1,
    Config=Config,
    primary=primary,
    smoke=smoke,
    splits=image_splits,
    run=run,
)
