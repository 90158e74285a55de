"""VOC07 with few images: linear SVMs on k positives and 19k negatives per class (FAIR extra_scripts/README.md).

Each k is drawn five times. mAP_k<k> is the mean over the draws (area AP as in `voc07_svm`), mAP_k<k>_std their standard
deviation: the sample's (divided by 4), or with preset `fair` the population's (divided by 5), as FAIR and VISSL print it.
Training leaves out images that are not drawn and images with difficult objects only. The draws are seeded, without
replacement, equal for all backbones and independent of the other k.

The only cost is 0.5, as in PCL. One image is too few to tune on, and we do not choose on the test split. Preset `gap`:
globally pooled features, centre crop. Preset `fair`: C5 pooled to 2x2, images squashed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from backbench.data.splits import ImageSplit
from backbench.errors import DataError
from model_zoo.backbone import Backbone
from transfer import svm
from transfer.features import note_degenerate
from transfer.metrics import area_ap, class_aps
from transfer.pooling import needs_stages
from transfer.presets import Preset
from transfer.protocol import Metric, RunContext, Task
from transfer.tasks import voc07_svm
from transfer.tasks.voc07_svm import FeatureConfig, embed, note_unfinished, refuse_rare, refuse_unmeasurable, resolved


class Config(FeatureConfig):
    """Fields of the cell."""

    PRESETS: ClassVar[Mapping[str, Preset]] = {
        "gap": Preset({"feature": "gap", "transform": "crop"}),
        "fair": Preset({"feature": "res5_2x2", "transform": "squash", "spread": "population"}),
    }
    LATER: ClassVar[frozenset[str]] = frozenset({"spread"})

    preset: str = "gap"
    k: Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(min_length=1)] = (1, 2, 4, 8, 16, 32, 64, 96)
    headline_k: Annotated[int, Field(gt=0)] = 16
    negatives: Annotated[int, Field(gt=0)] = 19  # per positive
    samples: Annotated[int, Field(gt=0)] = 5  # draws per k
    cost: Annotated[float, Field(gt=0)] = 0.5
    spread: Literal["sample", "population"] = "sample"  # kind of standard deviation: divided by n - 1 or by n


def primary(config: Config) -> str:
    """Return the name of the headline metric."""
    return f"mAP_k{config.headline_k}"


def smoke(config: Config) -> dict[str, Any]:
    """Return fields for a few images, the smallest k and two draws."""
    kept = [k for k in config.k if k <= 2] or [2]
    headline = config.headline_k if config.headline_k in kept else kept[-1]
    return {"data": {"limit": 512}, "k": kept, "headline_k": headline, "samples": min(config.samples, 2)}


def run(backbone: Backbone, config: Config, ctx: RunContext[ImageSplit]) -> dict[str, Metric]:
    """Return `mAP_k<k>` and, with several draws, `mAP_k<k>_std` for every k that the data allow."""
    train, test = ctx.splits["train"], ctx.splits["test"]
    truth = resolved(test, config.difficult_test)
    refuse_unmeasurable(test, truth)
    sizes = possible(train, config, ctx)
    assert train.labels is not None
    draws = [
        column
        for k in sizes
        for sample in range(config.samples)
        for column in draw(train.labels, k, config.negatives * k, sample).T
    ]
    x = embed(backbone, train, config, ctx)
    note_degenerate(torch.from_numpy(x), train, ctx)
    how: dict[str, Any] = {"jobs": config.jobs, "solver": config.solver, "device": ctx.device}
    fits = svm.fit_all(x, draws, [config.cost] * len(draws), **how)
    note_unfinished(fits.unfinished, config.solver, ctx)
    scores = fits.scores(embed(backbone, test, config, ctx)).reshape(len(test), -1, len(train.classes))
    each = [100 * class_aps(area_ap, scores[:, i], truth).mean() for i in range(scores.shape[1])]
    metrics, ddof = {}, int(config.spread == "sample")
    for k, found in zip(sizes, np.reshape(each, (len(sizes), config.samples)), strict=True):
        metrics[f"mAP_k{k}"] = Metric(float(found.mean()))
        if config.samples > 1:
            metrics[f"mAP_k{k}_std"] = Metric(float(found.std(ddof=ddof)), higher_is_better=False)
    return metrics


def possible(train: ImageSplit, config: Config, ctx: RunContext[ImageSplit]) -> list[int]:
    """Return the k with enough positives in every class. A note names k that are left out or lack negatives.

    Raises:
        DataError: the headline's k is not among them, or a class has no negative.
    """
    assert train.labels is not None
    if config.headline_k not in config.k:
        raise DataError(f"headline_k {config.headline_k} is not among k {list(config.k)}")
    refuse_rare(
        train, train.labels, config.headline_k, f"for headline_k={config.headline_k}: set it to less", negatives=1
    )
    positives, negatives = ((train.labels == sign).sum(axis=0) for sign in (1, -1))
    kept = [k for k in dict.fromkeys(config.k) if k <= positives.min()]
    left_out = [str(k) for k in sorted(set(config.k) - set(kept))]
    if left_out:
        rarest = int(positives.argmin())
        have = f"{train.classes[rarest]} has only {positives[rarest]} positive images"
        ctx.notes.append(f"left out: k={', '.join(left_out)}, because {have}")
    for k in kept:
        short = [name for name, have in zip(train.classes, negatives, strict=True) if have < config.negatives * k]
        if short:
            ctx.notes.append(
                f"k={k}: fewer than {config.negatives * k} negatives of {', '.join(short)}; all were taken"
            )
    return kept


def draw(labels_NK: np.ndarray, positives: int, negatives: int, sample: int) -> np.ndarray:
    """Return (N, classes) int8: 1 and -1 for the images drawn for a class, 0 for the rest. Too few negatives: all of them."""
    drawn = np.zeros_like(labels_NK)
    for label in range(labels_NK.shape[1]):
        generator = np.random.default_rng([positives, sample, label])
        for sign, count in ((1, positives), (-1, negatives)):
            rows = np.flatnonzero(labels_NK[:, label] == sign)
            drawn[generator.permutation(rows)[:count], label] = sign
    return drawn


TASK = Task(
    name="voc07_lowshot",
    version=1,
    Config=Config,
    primary=primary,
    smoke=smoke,
    splits=voc07_svm.splits,
    run=run,
    deterministic=True,  # the draws are fixed too
    unfit=needs_stages,
)
