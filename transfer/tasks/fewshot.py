"""Few-shot classification of frozen features: episodes with a few images of some classes, or of all classes.

An episode draws classes, `shots` images of each to learn from and `queries` others to classify, from all labelled images of the
data set, training and test images alike. The number is the mean accuracy of the episodes, and `_ci95` half its 95% interval,
1.96 standard deviations (divided by n) over the root of the number of episodes (linusericsson/ssl-transfer few_shot.py).

`top1_5way_5shot` assigns a query to the nearest class mean, by the Euclidean distance of unnormalised features, as the source
does. With `_logistic`: logistic regression with penalty 1 on features of length 1 (Tian et al. 2020, "Rethinking few-shot
image classification", appendix). Classes with too few images are left out, with a note.

Preset `crop` has the usual views. Preset `ssl_transfer` resizes both sides to 257 pixels before the crop, as the source does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from backbench.data.splits import ImageSplit
from backbench.errors import DataError
from backbench.progress import track
from model_zoo.backbone import Backbone
from transfer import logistic
from transfer.feature_spec import FeatureSpec
from transfer.features import extract, note_degenerate
from transfer.presets import Preset
from transfer.protocol import ForwardConfig, Metric, RunContext, Task, image_splits
from transfer.resident import resident

_PENALTY = 1.0  # of the logistic regressions, whose features have length 1
_ITERATIONS = 1000
_NUMBERS = 2**24  # of features that are worked on at a time


class Config(ForwardConfig):
    """Fields of the cell."""

    PRESETS: ClassVar[Mapping[str, Preset]] = {
        "crop": Preset(),
        "ssl_transfer": Preset({"ways": [5], "stretch": True}),
    }

    preset: str = "crop"
    ways: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (5, 0)  # classes; 0: all of them
    shots: Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(min_length=1)] = (1, 5, 20)  # images of each class
    headline_shots: Annotated[int, Field(gt=0)] = 5  # with the first of `ways`
    queries: Annotated[int, Field(gt=0)] = 15  # images of each class to classify
    episodes: Annotated[int, Field(ge=2)] = 600
    episodes_all: Annotated[int, Field(ge=2)] = 20  # of all classes: each has far more queries
    stretch: bool = False  # resize both sides, then crop
    size: Annotated[int, Field(ge=16)] | None = None  # side of the crop in pixels; none: the backbone's
    resize: Annotated[int, Field(ge=16)] | None = None  # in pixels; none: 256/224 of the size, stretched 257/224


def primary(config: Config) -> str:
    """Return the name of the headline metric."""
    return _name(config.ways[0], config.headline_shots)


def _name(ways: int, shots: int) -> str:
    return f"top1_{ways or 'all'}way_{shots}shot"


def smoke(config: Config) -> dict[str, Any]:
    """Return fields for a few images and episodes of two classes."""
    few = {"ways": [2], "shots": [1], "headline_shots": 1, "queries": 1, "episodes": 4}
    return {"data": {"limit": 512}, **few}


def run(backbone: Backbone, config: Config, ctx: RunContext[ImageSplit]) -> dict[str, Metric]:
    """Return the mean accuracy of every number of ways and shots, by both classifiers, with `_ci95`."""
    if config.headline_shots not in config.shots:
        raise DataError(f"headline_shots {config.headline_shots} is not among shots {list(config.shots)}")
    size = config.size or backbone.input.size
    side = config.resize or (int(size * 1.15) if config.stretch else None)
    spec = FeatureSpec(size, side, stretch=config.stretch, precision=config.precision)
    parts = [ctx.splits["train"], ctx.splits["test"]]
    found = [extract(backbone, part, ctx, spec=spec) for part in parts]
    note_degenerate(found[0], parts[0], ctx)
    x = [resident(each, ctx.device) for each in found]
    labels = np.concatenate([part.labels for part in parts if part.labels is not None])
    metrics = {}
    for ways in config.ways:
        for shots in config.shots:
            rows = _episodes(labels, ways, shots, config, ctx)
            for name, accuracy in _accuracies(x, rows, shots, ctx).items():
                metrics[f"{_name(ways, shots)}{name}"] = Metric(float(accuracy.mean()))
                interval = 1.96 * float(accuracy.std()) / len(accuracy) ** 0.5
                metrics[f"{_name(ways, shots)}{name}_ci95"] = Metric(interval, higher_is_better=False)
                ctx.items[f"{_name(ways, shots)}{name}"] = accuracy  # of each episode, %
    return metrics


def _episodes(labels: np.ndarray, ways: int, shots: int, config: Config, ctx: RunContext[ImageSplit]) -> np.ndarray:
    """Return rows (E, ways, shots + queries), drawn with the seed, equal for all backbones.

    Raises:
        DataError: too few classes have enough images.
    """
    count = shots + config.queries
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    enough = [rows for rows in members if len(rows) >= count]
    classes = len(ctx.splits["train"].classes)
    if len(enough) < max(ways, 2):
        raise DataError(
            f"{len(enough)} of {classes} classes have {count} images for {shots} shots and {config.queries} queries; "
            f"{max(ways, 2)} are needed: set shots, queries or ways to less"
        )
    if len(enough) < classes:
        ctx.notes.append(f"{shots} shots: {classes - len(enough)} of {classes} classes have too few images, left out")
    rng = np.random.default_rng([ctx.seed, ways, shots])
    return np.stack([
        np.stack([rng.choice(enough[k], count, replace=False) for k in rng.permutation(len(enough))[: ways or None]])
        for _ in range(config.episodes if ways else config.episodes_all)
    ])  # fmt: skip


def _accuracies(
    x: list[Tensor], rows_EWI: np.ndarray, shots: int, ctx: RunContext[ImageSplit]
) -> dict[str, np.ndarray]:
    """Return the accuracy (E,) of each episode in percent, by the nearest prototype and by logistic regression."""
    episodes, ways, images = rows_EWI.shape
    size = max(1, _NUMBERS // (ways * images * x[0].shape[1]))
    found: dict[str, list[Tensor]] = {"": [], "_logistic": []}
    unfinished = 0

    def parts() -> Iterator[Tensor]:
        for start in range(0, episodes, size):
            yield _taken(x, torch.from_numpy(rows_EWI[start : start + size])).to(ctx.device)  # (e, W, I, C)

    for part in track(parts(), total=episodes, label=f"episodes of {ways} classes, {shots} shots", size=len):
        truth = torch.arange(ways, device=ctx.device).repeat_interleave(images - shots)
        found[""].append(nearest_prototypes(part, shots) == truth)
        answers, stopped = logistic_answers(part, shots)
        found["_logistic"].append(answers == truth)
        unfinished += stopped
    if unfinished:
        ctx.notes.append(f"{unfinished} regressions stopped at {_ITERATIONS} iterations before they converged")
    return {name: 100 * torch.cat(right).double().mean(dim=1).cpu().numpy() for name, right in found.items()}


def _taken(x: list[Tensor], rows: Tensor) -> Tensor:
    """Return rows of the training and test features as if they were one matrix, which would not fit for ImageNet."""
    train, test = x
    found = train.new_empty((*rows.shape, train.shape[1]))
    first = rows < len(train)
    for part, where, offset in ((train, first, 0), (test, ~first, len(train))):
        found[where.to(found.device)] = part[(rows[where] - offset).to(part.device)].to(found.device)
    return found


def nearest_prototypes(x_EWIC: Tensor, shots: int) -> Tensor:
    """Return the class (E, W * queries) of the nearest mean of the first `shots` rows, for the other rows."""
    prototypes, queries = x_EWIC[:, :, :shots].mean(dim=2), x_EWIC[:, :, shots:].flatten(1, 2)
    return torch.cdist(queries, prototypes, compute_mode="donot_use_mm_for_euclid_dist").argmin(dim=2)


def logistic_answers(x_EWIC: Tensor, shots: int) -> tuple[Tensor, int]:
    """Return the same by logistic regression on rows of length 1, and how many fits stopped before they converged."""
    x = F.normalize(x_EWIC, dim=3)
    support, queries = x[:, :, :shots].flatten(1, 2), x[:, :, shots:].flatten(1, 2)
    ways = x.shape[1]
    y = torch.arange(ways, device=x.device).repeat_interleave(shots)
    if len(y) <= x.shape[3]:
        how: dict[str, Any] = {"iterations": _ITERATIONS}
        scores, unfinished = logistic.scores_apart(support, y.expand(len(x), -1), queries, ways, _PENALTY, **how)
        return scores.argmax(dim=2).T, unfinished
    answers, unfinished = [], 0
    for own, asked in zip(support, queries, strict=True):
        rows = logistic.Rows(own, x.device)
        (fit,) = logistic.fit_path(rows, y[:, None], ways, [_PENALTY], iterations=_ITERATIONS)
        answers.append(fit.scores(rows.project(asked))[:, 0].argmax(dim=1))
        unfinished += fit.unfinished
    return torch.stack(answers), unfinished


TASK = Task(
    name="fewshot",
    version=1,
    Config=Config,
    primary=primary,
    smoke=smoke,
    splits=image_splits,
    run=run,
)
