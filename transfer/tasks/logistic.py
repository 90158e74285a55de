"""Multinomial logistic regression by L-BFGS on frozen features, without augmentation: linear transfer to the field's data sets.

SimCLR (appendix B.8), BYOL (appendix D) and Ericsson et al. 2021 fit it for 45 penalties from 1e-6 to 1e5 and choose one on
validation images: the published ones, else 20% of the training images, drawn as ssl-transfer's linear.py draws them. The
regression is then fitted again on all training images. Images are resized (bicubic) to the size of the centre crop.

Preset `optimum` fits every penalty to its optimum (`transfer.logistic`). Preset `ssl_transfer` runs the source's loop over
scikit-learn (`transfer.logistic_loop`), which stops after 100 iterations: at weak penalties far from the optimum. Where the
loop converges, both give the same scores within 0.1 and choose the same penalty.

Images with several classes (VOC07): a binary regression for each class with one penalty for all of them, chosen by the 11-point
mAP. Objects that are only difficult count as absent, in training and at test, as in the source. The source's precision at
recall 0 is always 1, the devkit's and ours is the best precision: lower by at most 1/11 of what that lacks to 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from backbench.data.splits import ImageSplit
from backbench.data.transforms import Interpolation
from backbench.errors import DataError
from backbench.progress import track
from model_zoo.backbone import Backbone
from transfer import logistic, logistic_loop
from transfer.feature_spec import FeatureSpec
from transfer.features import extract, note_degenerate
from transfer.heads import hits, items_of
from transfer.metrics import area_ap, class_aps, eleven_point_ap
from transfer.presets import Preset
from transfer.protocol import ForwardConfig, Metric, RunContext, Task, image_splits
from transfer.tasks.voc07_svm import refuse_rare
from transfer.validation import headline, mean_per_class, parts


class Config(ForwardConfig):
    """Fields of the cell."""

    PRESETS: ClassVar[Mapping[str, Preset]] = {
        "optimum": Preset({"solver": "lbfgs"}),
        "ssl_transfer": Preset({"solver": "scikit-learn"}),
    }

    preset: str = "optimum"
    solver: Literal["lbfgs", "scikit-learn"] = "lbfgs"  # the optimum on the device; the source's loop on the CPU
    weakest: Annotated[float, Field(gt=0)] = 1e-6  # penalty; the loss is a sum over images
    strongest: Annotated[float, Field(gt=0)] = 1e5
    penalties: Annotated[int, Field(ge=1)] = 45  # logarithmically spaced; a single one is `weakest`
    iterations: Annotated[int, Field(gt=0)] = 100  # of L-BFGS for one penalty, at most
    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.2  # of train, where no validation images are published
    size: Annotated[int, Field(ge=16)] | None = None  # side of the centre crop in pixels; none: the backbone's
    resize: Annotated[int, Field(ge=16)] | None = None  # shorter side in pixels; none: the size
    interpolation: Interpolation = "bicubic"  # of the resizing


def primary(config: Config) -> str:
    """Return the headline of the data set: `mAP_11pt` for several classes per image, else `mean_per_class` or `top1`."""
    return headline(config.data.name)


def smoke(config: Config) -> dict[str, Any]:
    """Return fields for a few images and penalties."""
    return {"data": {"limit": 256}, "penalties": min(config.penalties, 5)}


def run(backbone: Backbone, config: Config, ctx: RunContext[ImageSplit]) -> dict[str, Metric]:
    """Return `top1`, `top5` and `mean_per_class`, or `mAP_11pt` and `mAP`; stores the scores of every test image."""
    train, test = ctx.splits["train"], ctx.splits["test"]
    y, y_test = _targets(train), _targets(test)
    fit_on, validation, words = parts(train, config.holdout)
    _refuse_unmeasurable(train, test, fit_on)
    size = config.size or backbone.input.size
    spec = FeatureSpec(size, config.resize or size, interpolation=config.interpolation, precision=config.precision)
    x = extract(backbone, train, ctx, spec=spec)
    note_degenerate(x, train, ctx)
    penalty = config.weakest
    if config.penalties > 1:
        penalty = _choose((x[fit_on], y[fit_on]), (x[validation], y[validation]), config, ctx)
        ctx.tuned["on"] = words
    path = [each for each in _penalties(config) if each >= penalty] if config.solver == "lbfgs" else [penalty]
    x_test = extract(backbone, test, ctx, spec=spec)
    for last, scores in _fits((x, y), x_test, path, config, ctx):
        if last.penalty == penalty:
            if last.unfinished:
                ctx.notes.append(f"the regression on all training images stopped at {config.iterations} iterations")
            return _measured(scores.cpu(), y_test, ctx)
    raise AssertionError("the path ends with the chosen penalty")


def _penalties(config: Config) -> list[float]:
    return np.geomspace(config.weakest, config.strongest, config.penalties).tolist()


def _targets(split: ImageSplit) -> Tensor:
    """Return labels (N, 1), or for several classes per image 0 and 1, (N, classes); int64."""
    assert split.labels is not None
    labels = torch.as_tensor(split.labels)
    return labels.long()[:, None] if labels.ndim == 1 else (labels == 1).long()


def _refuse_unmeasurable(train: ImageSplit, test: ImageSplit, fit_on: Tensor) -> None:
    """Raise DataError for a class of several per image that has no positive or no negative to fit on, or none at test."""
    assert train.labels is not None and test.labels is not None
    if train.labels.ndim == 2:
        signs = np.where(train.labels == 1, 1, -1)
        refuse_rare(train, signs[fit_on.numpy()], 1, "to fit a regression: give more images")
        refuse_rare(test, test.labels, 1, "at test, so its AP does not exist: give more images", negatives=0)


def _choose(
    fit_on: tuple[Tensor, Tensor], validation: tuple[Tensor, Tensor], config: Config, ctx: RunContext[ImageSplit]
) -> float:
    """Return the penalty with the best headline on the validation images, the weakest on a tie. Records the tuning.

    Args:
        fit_on: features and targets; so is `validation`.
    """
    found: dict[float, float] = {}
    unfinished = 0
    for fit, scores in _fits(fit_on, validation[0], _penalties(config), config, ctx):
        found[fit.penalty] = _headline(scores.cpu(), validation[1], primary(config))
        unfinished += fit.unfinished
    best = min(penalty for penalty, score in found.items() if score == max(found.values()))
    score_of = {f"{penalty:.3g}": score for penalty, score in sorted(found.items())}
    ctx.tuned |= {"penalty": best, f"{primary(config)}_there": score_of}
    if len(found) > 2 and best in (min(found), max(found)):
        ctx.notes.append(f"the chosen penalty {best:.3g} is at an end of the list: widen `weakest` or `strongest`")
    if unfinished:
        ctx.notes.append(f"{unfinished} regressions stopped at {config.iterations} iterations before they converged")
    return best


def _fits(
    fit_on: tuple[Tensor, Tensor], other: Tensor, penalties: list[float], config: Config, ctx: RunContext[ImageSplit]
) -> Iterator[tuple[logistic.Fit, Tensor]]:
    """Yield every penalty's fit, and the scores (M, B, K) of other features (M, C)."""
    x, y = fit_on
    classes = len(ctx.splits["train"].classes) if y.shape[1] == 1 else 2
    if config.solver == "lbfgs":
        axes = logistic.Rows(x, ctx.device)
        fits = logistic.fit_path(axes, y, classes, penalties, iterations=config.iterations)
        z = axes.project(other)
    else:
        plain = logistic_loop.Rows(x)
        fits = logistic_loop.fit_path(plain, y, classes, penalties, iterations=config.iterations)
        z = plain.project(other)
    for fit in track(fits, total=len(penalties), label="logistic regressions"):
        yield fit, fit.scores(z)


def _headline(scores: Tensor, y: Tensor, name: str) -> float:
    """Return the metric in percent; classes that do not occur do not count."""
    if name == "mAP_11pt":
        there = y.any(dim=0).numpy()
        if not there.any():
            raise DataError("none of the validation images has a class: give more images")
        return float(100 * class_aps(eleven_point_ap, *_signed(scores[:, there], y[:, there])).mean())
    right = scores[:, 0].argmax(dim=1) == y[:, 0]
    return (
        mean_per_class(right, y[:, 0], scores.shape[2])
        if name == "mean_per_class"
        else float(100 * right.double().mean())
    )


def _signed(scores: Tensor, y: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return scores (N, classes), positive for an image that probably has the class, and labels 1 and -1."""
    return (scores[:, :, 1] - scores[:, :, 0]).double().numpy(), np.where(y.numpy() == 1, 1, -1).astype(np.int8)


def _measured(scores: Tensor, y: Tensor, ctx: RunContext[ImageSplit]) -> dict[str, Metric]:
    """Return the metrics of the test images, and store their scores."""
    classes = len(ctx.splits["test"].classes)
    if y.shape[1] > 1:
        each, labels = _signed(scores, y)
        per_class = 100 * class_aps(area_ap, each, labels)
        ctx.items |= {"scores": each.astype(np.float32), "labels": labels, "per_class_AP": per_class}  # %
        eleven = 100 * class_aps(eleven_point_ap, each, labels)
        return {"mAP_11pt": Metric(float(eleven.mean())), "mAP": Metric(float(per_class.mean()))}
    best = scores[:, 0].topk(min(5, classes), dim=1).indices
    ctx.items |= items_of(best, y[:, 0], classes)
    found = {name: Metric(value) for name, value in hits(best, y[:, 0]).items()}
    return {**found, "mean_per_class": Metric(mean_per_class(best[:, 0] == y[:, 0], y[:, 0], classes))}


TASK = Task(
    name="logistic",
    version=1,
    Config=Config,
    primary=primary,
    smoke=smoke,
    splits=image_splits,
    run=run,
    deterministic=True,  # the validation images are the same for every seed
)
