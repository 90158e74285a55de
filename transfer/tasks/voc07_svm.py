"""VOC07 classification: one linear SVM per class on frozen features (MSBReg section 8.4, Table 5, without details).

Cross-validation on trainval chooses the cost of each class by its average precision. The machine is then refitted on all of
trainval. Nothing is chosen on the test split. mAP is the mean area under the *interpolated* precision-recall curve (VISSL,
FAIR); mAP_11pt is the 11-point AP of VOC 2007 and not comparable with it.

Preset `gap_crop`: globally pooled features, Resize 256, centre crop 224, VISSL's 11 costs. Preset `vissl`: C5 pooled to 2x2
(8192 numbers for a ResNet-50), images squashed to 224x224. Preset `obow`: globally pooled features of squashed images, as OBoW
runs it (its yaml: scale, global_resize 224), and FAIR's costs: 0.05, 0.1, 0.3, 0.5, 1, 3, 5 and 0.5**4 to 0.5**19. `obow`
differs from OBoW in two ways: FAIR resizes with OpenCV, which does not smooth; and OBoW's README trains on the blob `pool5_bn`,
which FAIR's extraction normalises by each batch on trainval and not at all at test, while we use `pool5`. Preset `pcl`: the
single cost 0.5 without cross-validation; difficult objects are negatives at test too (PCL eval_svm_voc.py tries several costs
and reports the best on the test split; we do not).

Images with only difficult objects of a class are negatives in training and dropped at test, as in the published numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from backbench.config import CHANGES_NO_NUMBER
from backbench.data.catalogue import DataPlaces
from backbench.data.splits import ImageSplit
from backbench.errors import DataError
from backbench.printable import printable
from model_zoo.backbone import Backbone
from transfer import newton, svm
from transfer.feature_spec import FeatureSpec
from transfer.features import extract, note_degenerate
from transfer.metrics import area_ap, class_aps, eleven_point_ap
from transfer.pooling import Pooling, needs_stages
from transfer.presets import Preset
from transfer.protocol import DataSpec, ForwardConfig, Metric, RunContext, Task, labelled_splits

_OBOW_COSTS = [
    0.05,
    0.1,
    0.3,
    0.5,
    1.0,
    3.0,
    5.0,
    *(0.5**n for n in range(4, 20)),
]  # in FAIR's order: on a tie the first one is chosen

Difficult = Literal["negative", "drop"]


class FeatureConfig(ForwardConfig):
    """Fields of all protocols with SVMs on frozen features."""

    LATER: ClassVar[frozenset[str]] = frozenset({"solver"})

    data: DataSpec = DataSpec(name="voc")
    feature: Pooling = "gap"
    transform: Literal["crop", "squash"] = "crop"  # squash: no crop, both sides resized to `size`
    normalize: bool = True  # x / (||x|| + 1e-5)
    difficult_test: Difficult = "drop"  # test images with difficult objects only
    size: Annotated[int, Field(ge=16)] | None = None  # side of the view in pixels; none: the backbone's
    resize: Annotated[int, Field(ge=16)] | None = None  # shorter side in pixels; none: 256/224 of the size
    solver: svm.Solver = "liblinear"  # newton: all machines at once, at the optimum; it uses the GPU
    jobs: Annotated[Annotated[int, Field(gt=0)] | None, CHANGES_NO_NUMBER] = (
        None  # processes of liblinear, about 1 GB each for 8192 features; none: one per core
    )


class Config(FeatureConfig):
    """Fields of the cell."""

    PRESETS: ClassVar[Mapping[str, Preset]] = {
        "gap_crop": Preset({"feature": "gap", "transform": "crop", "solver": "newton"}),
        "obow": Preset({"feature": "gap", "transform": "squash", "costs": _OBOW_COSTS, "solver": "newton"}),
        "vissl": Preset({"feature": "res5_2x2", "transform": "squash", "solver": "newton"}),
        "pcl": Preset({"costs": [0.5], "difficult": "negative", "difficult_test": "negative"}),
    }

    preset: str = "gap_crop"
    costs: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = (
        *(0.01, 0.1, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 50.0, 100.0, 1000.0),
    )  # with a single cost there is no cross-validation
    folds: Annotated[int, Field(ge=2)] = 3
    difficult: Difficult = "negative"  # training and cross-validation images with difficult objects only

    def identity(self) -> dict[str, Any]:
        """Return the identity of the first records: `gap_crop` was called `obow` then, but OBoW does not run it."""
        values = super().identity()
        return values | {"preset": "obow"} if self.preset == "gap_crop" else values


def primary(config: Config) -> str:
    """Return the name of the headline metric."""
    return "mAP"


def smoke(config: Config) -> dict[str, Any]:
    """Return fields for a few images, two folds and at most two costs."""
    costs = sorted({config.costs[0], config.costs[len(config.costs) // 2]})
    return {"data": {"limit": 512}, "costs": costs, "folds": 2}


def splits(config: FeatureConfig, places: DataPlaces) -> dict[str, ImageSplit]:
    """Return the train and test split, with labels (N, classes).

    Raises:
        DataError: the data are incomplete, are not the published images, or have one label per image.
    """
    found = labelled_splits(config.data, places)
    if any(split.labels is None or split.labels.ndim != 2 for split in found.values()):
        raise DataError(f"'{config.data.name}' has one label per image: set data.name to a data set with several (voc)")
    return found


def run(backbone: Backbone, config: Config, ctx: RunContext[ImageSplit]) -> dict[str, Metric]:
    """Return `mAP` (area) and `mAP_11pt` on the test split."""
    train, test = ctx.splits["train"], ctx.splits["test"]
    labels, truth = resolved(train, config.difficult), resolved(test, config.difficult_test)
    if len(config.costs) > 1:
        refuse_rare(train, labels, config.folds, f"for {config.folds} folds: set folds to less, or give more images")
    else:
        refuse_rare(train, labels, 1, "to fit a machine: give more images")
    refuse_unmeasurable(test, truth)
    x = embed(backbone, train, config, ctx)
    note_degenerate(torch.from_numpy(x), train, ctx)
    costs, unfinished = choose(x, labels, config, ctx)
    fits = svm.fit_all(x, list(labels.T), costs, jobs=config.jobs, solver=config.solver, device=ctx.device)
    note_unfinished(unfinished + fits.unfinished, config.solver, ctx)
    scores = fits.scores(embed(backbone, test, config, ctx))
    per_class = 100 * class_aps(area_ap, scores, truth)
    ctx.items |= {"scores": scores.astype(np.float32), "labels": test.labels, "per_class_AP": per_class}  # %
    eleven = 100 * class_aps(eleven_point_ap, scores, truth)
    return {"mAP": Metric(float(per_class.mean())), "mAP_11pt": Metric(float(eleven.mean()))}


def resolved(split: ImageSplit, difficult: Difficult) -> np.ndarray:
    """Return (N, classes) int8: 1, -1, and 0 for images left out. `difficult` decides about the 0s of the data set."""
    assert split.labels is not None
    return np.where(split.labels == 0, np.int8(-1), split.labels) if difficult == "negative" else split.labels


def refuse_rare(
    split: ImageSplit, labels: np.ndarray, positives: int, advice: str, *, negatives: int | None = None
) -> None:
    """Raise DataError with the names of classes that have too few images with or without them. Runs before any fit."""
    negatives = positives if negatives is None else negatives
    counts = [(int((column == 1).sum()), int((column == -1).sum())) for column in labels.T]
    rare = [
        f"{name} ({have} with it, {without} without)"
        for name, (have, without) in zip(split.classes, counts, strict=True)
        if have < positives or without < negatives
    ]
    if rare:
        raise DataError(f"{split.dataset} {split.split} has too few images of class {', '.join(rare)} {advice}")


def refuse_unmeasurable(test: ImageSplit, truth: np.ndarray) -> None:
    """Raise DataError if a class has no AP at test, or an AP of 100 for any scores because 0 was written for -1."""
    refuse_rare(test, truth, 1, "at test, so its AP does not exist: give more images", negatives=0)
    for name, column in zip(test.classes, truth.T, strict=True):
        if (column == 0).any() and not (column == -1).any():
            raise DataError(
                f"{test.dataset} {test.split}: {int((column == 0).sum())} images are 0 in class '{printable(name)}', which "
                "means 'difficult objects only' and does not count, and no image is -1, absent: the AP would be 100 for any "
                "scores. Write -1 where 0 means absent, or set difficult_test=negative"
            )


def embed(backbone: Backbone, split: ImageSplit, config: FeatureConfig, ctx: RunContext[ImageSplit]) -> np.ndarray:
    """Return features (N, C) float32, with rows of length 1 if `normalize` is set."""
    squash = config.transform == "squash"
    spec = FeatureSpec(config.size, config.resize, config.feature, squash, precision=config.precision)
    x = extract(backbone, split, ctx, spec=spec).numpy()
    return svm.unit_rows(x) if config.normalize else x


def choose(x: np.ndarray, labels: np.ndarray, config: Config, ctx: RunContext[ImageSplit]) -> tuple[list[float], int]:
    """Return every class's cost (the first on a tie) and the number of unconverged fits. Records the tuning in `ctx`."""
    train = ctx.splits["train"]
    if len(config.costs) == 1:
        return list(config.costs) * len(train.classes), 0
    how: dict[str, Any] = {"jobs": config.jobs, "solver": config.solver, "device": ctx.device}
    by_fold, unfinished = svm.cross_validate(x, labels, config.costs, folds=config.folds, **how)
    by_cost = by_fold.mean(axis=2)
    costs = [config.costs[i] for i in by_cost.argmax(axis=1)]
    ctx.tuned |= {
        "costs": dict(zip(train.classes, costs, strict=True)),
        "on": f"{config.folds}-fold cross-validation on {train.split}",
        "AP_there": dict(zip(train.classes, (100 * by_cost.max(axis=1)).tolist(), strict=True)),
    }
    ends = {min(config.costs), max(config.costs)}
    edge = [f"{name} ({cost:g})" for name, cost in zip(train.classes, costs, strict=True) if cost in ends]
    if len(config.costs) > 2 and edge:
        ctx.notes.append(f"the chosen cost is at an end of the list for {', '.join(edge)}: widen `costs`")
    return costs, unfinished


def note_unfinished(count: int, solver: svm.Solver, ctx: RunContext[ImageSplit]) -> None:
    """Note how many fits stopped at the iteration limit. The references have the same limit."""
    if count:
        most = newton.MAX_STEPS if solver == "newton" else svm.MAX_ITER
        ctx.notes.append(f"{count} SVM fits stopped at {most} iterations before they converged")


TASK = Task(
    name="voc07_svm",
    version=1,
    Config=Config,
    primary=primary,
    smoke=smoke,
    splits=splits,
    run=run,
    deterministic=True,  # the folds are not shuffled, and liblinear's random state is fixed
    unfit=needs_stages,
)
