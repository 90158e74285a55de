"""Features of several augmented views of every image, by a frozen backbone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from backbench.data.splits import ImageSplit
from backbench.distributed import all_reduce_sum
from backbench.precision import Precision, in_precision
from backbench.progress import track
from model_zoo.backbone import Backbone
from transfer.augment import View, crop_and_flip, image_batches, ssl_view
from transfer.features import refuse_not_finite
from transfer.protocol import RunContext
from transfer.supervised import Order

_BATCH = 128

Augmentation = Literal["byol_pair", "table9", "byol", "crop"]


def views_of(name: Augmentation, size: int) -> tuple[View, View]:
    """Return the transforms of two views, which further views take in turn.

    `byol_pair`: one of BYOL's two distributions per view (Appendix B: blur 1 and no solarisation, blur 0.1 and solarisation
    0.2; bicubic). `byol`: the first one for both, bilinear. `table9`: MSBReg's pretraining augmentation of Table 9 for both
    (blur 1, solarisation 0.2). `crop`: a crop and a flip.
    """
    if name == "byol_pair":
        first, second = ({"blur": 1.0, "solarize": 0.0}, {"blur": 0.1, "solarize": 0.2})
        return ssl_view(size, bicubic=True, **first), ssl_view(size, bicubic=True, **second)
    if name == "table9":
        return (ssl_view(size, blur=1.0, solarize=0.2),) * 2
    return ((ssl_view(size, blur=1.0, solarize=0.0) if name == "byol" else crop_and_flip(size)),) * 2


def view_features(
    backbone: Backbone,
    split: ImageSplit,
    views: Sequence[View],
    ctx: RunContext[ImageSplit],
    *,
    count: int,
    size: int,
    precision: Precision,
) -> Tensor:
    """Return pooled features (count, N, C) float32 of `count` views of every image; the transforms take turns.

    A view depends on the seed, its number and the image's row only. All ranks share the work, and all get the features.

    Raises:
        NotFinite: a feature is not finite.
    """
    module = backbone.build().eval().requires_grad_(False).to(ctx.device).to(memory_format=torch.channels_last)
    encoder = in_precision(module, precision)
    # An epoch is one view of every image in random order, so each feature goes to the row of its image.
    order = Order(len(split), _BATCH, count, ctx.seed)
    unlabelled = dataclasses.replace(split, labels=None)  # an image may have several labels; none is used
    batches = image_batches(unlabelled, views, backbone.input, order, ctx, size)
    x = torch.zeros(count, len(split), backbone.feature_dim, device=ctx.device)
    total = order.epochs * order.steps_per_epoch
    with torch.no_grad():
        for (epoch, rows), (images, _) in zip(order.rows(), track(batches(0), total=total, label="views"), strict=True):
            x[epoch, rows.to(x.device)] = encoder(images).float()
    x = all_reduce_sum(x)  # each rank fills its own rows; the others are zero
    refuse_not_finite(x.flatten(0, 1), split, precision)
    return x
