"""Monitors during training: online 20-NN and diagnostics of the features; spread and rank of the predictions (collapse)."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from backbench import distributed
from backbench.data.decode import CorruptImage
from backbench.data.splits import ImageSplit
from backbench.data.transforms import evaluation_view
from backbench.diagnostics import measure
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

    `std` is backbench.embeddings.std_per_dimension of the predictions, `effective_rank` (backbench.spectra) that of one view
    (if measured).
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
def measure_online(
    backbone: nn.Module, split: ImageSplit, config: PretrainConfig, device: torch.device
) -> dict[str, float]:
    """Return what is measured on the backbone's features of at most `run.knn_images` training images; {} on other ranks.

    `online_knn20` is the 20-NN accuracy within the *training* split in percent (4/5 are the bank). `online_<name>` are the
    diagnostics that the same features define (backbench.diagnostics). The images are the labelled ones (STL-10's split is
    partly labelled); where none has a class, all serve the diagnostics.
    """
    if not distributed.is_main():
        return {}
    one_each = split.labels is not None and split.labels.ndim == 1
    labels = torch.as_tensor(split.labels if one_each else np.full(len(split), -1))
    labelled = (labels >= 0).nonzero()[:, 0]
    usable = labelled if len(labelled) else torch.arange(len(split))
    order = usable[torch.randperm(len(usable), generator=torch.Generator().manual_seed(0))[: config.run.knn_images]]
    x, kept = _features(backbone, split, order.tolist(), config, device)
    if len(x) < 2:
        return {}
    found: dict[str, float] = {}
    cut = len(x) * 4 // 5
    if len(labelled) and cut >= 20:
        y, classes = labels[kept].to(device), len(split.classes)
        found["online_knn20"] = knn_accuracy(x[cut:], y[cut:], x[:cut], y[:cut], ks=[20], classes=classes)[20]
    values, _ = measure(x)
    return found | {f"online_{name}": value for name, value in values.items()}


def _features(
    backbone: nn.Module, split: ImageSplit, rows: Sequence[int], config: PretrainConfig, device: torch.device
) -> tuple[Tensor, list[int]]:
    """Return features (N, C) of the images that can be read, and their rows in the split."""
    backbone.eval()
    views, kept, features = [], [], []
    for row in rows:
        with contextlib.suppress(CorruptImage):  # announced when a training step reads it
            views.append(evaluation_view(split.source.pil(row), config.data.size))
            kept.append(row)
    for start in range(0, len(views), 128):
        images = torch.from_numpy(np.stack(views[start : start + 128]))[:, None]
        with torch.autocast(device.type, **autocast_fields(config)):
            features.append(backbone(to_device(images, config.data, device, dtype(config))[0]).float())
    backbone.train()
    return torch.cat(features) if features else torch.empty(0, 0), kept
