"""Monitors during training: online 20-NN, and spread and rank of the predictions (collapse)."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from backbench import distributed
from backbench.data.decode import CorruptImage
from backbench.data.splits import ImageSplit
from backbench.data.transforms import evaluation_view
from backbench.embeddings import knn_accuracy
from pretrain.config import PretrainConfig
from pretrain.data import to_device
from pretrain.precision import autocast_fields, dtype

# On 3,000 photographs at 32 pixels, MSBReg with BatchNorm heads stays above 0.13. Without its two dispersive losses the spread
# falls to 0.01 to 0.07 within 20 steps and may rise again later, but 20-NN ends at 18 to 23% instead of 29 to 35%. So a spread
# below the limit shows a fault; above it the online kNN decides.
SPREAD_LIMIT = 0.1
RANK_LIMIT = 1.5
PATIENCE = 2  # logged steps in a row: the spread may be low in the first steps


def verdict(monitored: Mapping[str, float]) -> str | None:
    """Return a sentence if the predictions have collapsed, else None.

    `std` is backbench.embeddings.std_per_dimension of the predictions, `effective_rank` that of one view (if measured).
    """
    if monitored.get("std", 1.0) < SPREAD_LIMIT:
        return (
            f"collapse: the predictions' spread is {monitored['std']:.3f} (an even spread is 1, the limit {SPREAD_LIMIT}): "
            "all images get nearly the same embedding; lower optim.base_lr, use model.norm=batch or raise method.lambda_b"
        )
    if monitored.get("effective_rank", RANK_LIMIT) < RANK_LIMIT:
        return (
            f"collapse: the predictions' effective rank is {monitored['effective_rank']:.2f}: they lie on a line; "
            "lower optim.base_lr or raise method.lambda_s"
        )
    return None


@torch.no_grad()
def online_knn(backbone: nn.Module, split: ImageSplit, config: PretrainConfig, device: torch.device) -> float | None:
    """Return the 20-NN accuracy within the *training* split in percent (4/5 are the bank); None without labels.

    A partly labelled split (STL-10's) is measured on its labelled part.
    """
    if split.labels is None or not distributed.is_main():
        return None
    labelled = torch.from_numpy(np.flatnonzero(split.labels >= 0))
    order = labelled[torch.randperm(len(labelled), generator=torch.Generator().manual_seed(0))[: config.run.knn_images]]
    backbone.eval()
    views, kept, features = [], [], []
    for row in order.tolist():
        with contextlib.suppress(CorruptImage):  # announced when a training step reads it
            views.append(evaluation_view(split.source.pil(row), config.data.size))
            kept.append(row)
    for start in range(0, len(views), 128):
        images = torch.from_numpy(np.stack(views[start : start + 128]))[:, None]
        with torch.autocast(device.type, **autocast_fields(config)):
            features.append(backbone(to_device(images, config.data, device, dtype(config))[0]).float())
    backbone.train()
    labels = torch.from_numpy(split.labels)[kept].to(device)
    cut = len(kept) * 4 // 5
    if cut < 20:
        return None
    x = torch.cat(features)
    return knn_accuracy(x[cut:], labels[cut:], x[:cut], labels[:cut], ks=[20], classes=len(split.classes))[20]
