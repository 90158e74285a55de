"""Choose on validation images: which they are, and by which metric of the data set."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from backbench.data import catalogue, layouts
from backbench.data.splits import ImageSplit
from backbench.errors import DataError

_SEED = 0  # of ssl-transfer's linear.py and finetune.py


def headline(data: str) -> str:
    """Return a data set's metric: `mAP_11pt` for several classes per image, else `mean_per_class` or `top1`."""
    info = catalogue.info(data)
    if "class" not in layouts.labels(info.layout):
        return "mAP_11pt"
    return "mean_per_class" if info.metric == "mean_per_class" else "top1"


def mean_per_class(right_N: Tensor, labels_N: Tensor, classes: int) -> float:
    """Return the mean over the classes that occur of the share of right answers, in percent."""
    counts = torch.bincount(labels_N, minlength=classes)
    correct = torch.bincount(labels_N, weights=right_N.double(), minlength=classes)
    return float(100 * (correct / counts).nanmean())


def parts(train: ImageSplit, holdout: float) -> tuple[Tensor, Tensor, str]:
    """Return rows to fit on, rows to choose on, and what the latter are.

    The published validation images choose; without them a share of the images, drawn as ssl-transfer draws it.

    Raises:
        DataError: too few images to hold any out.
    """
    marked = train.validation
    if marked is not None and marked.any() and not marked.all():
        fit_on, validation = (torch.from_numpy(np.flatnonzero(each)) for each in (~marked, marked))
        return fit_on, validation, f"{len(validation)} images, the published validation part of {train.split}"
    order = list(range(len(train)))
    np.random.RandomState(_SEED).shuffle(order)
    count = int(holdout * len(train))
    if not 0 < count < len(train):
        raise DataError(f"{len(train)} training images are too few to hold out {holdout:.0%}: give more images")
    return torch.tensor(order[count:]), torch.tensor(order[:count]), f"{count} images held out of {train.split}"
