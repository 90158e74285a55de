"""ImageNet's linear head on v2, -A, -R, Sketch and ReaL: top-1, and calibration before and after temperature scaling.

The head is that of `linear_probe` with the same fields, the cell `imagenet_linear`: taken from that cell's folder if its run
left it there, else trained by the same code. Nothing is trained or chosen on the test sets.

- -A and -R have 200 of the 1,000 classes: the other logits are left out before the softmax (hendrycks/natural-adv-examples and
  hendrycks/imagenet-r, eval.py). v2 numbers its folders in the order of the WordNet ids, Sketch names them.
- ReaL: an answer is right if it is one of the image's labels; images without a label do not count (google-research/
  reassessed-imagenet).
- `ece`: expected calibration error with 15 bins, Guo et al. 2017. `ece_scaled`: the same, with the logits divided by the
  temperature of the least cross-entropy on the images of *train* that the probe holds out to choose its rate. Presets that
  train on all of *train* hold out none and have no `ece_scaled`. The logits of -A and -R are divided by it too.

`top1`, `ece` and `ece_scaled` are those of the validation images; `top1_a` and so on those of a test set.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor

from backbench.config import build
from backbench.data import catalogue
from backbench.data.catalogue import DataPlaces
from backbench.data.splits import ImageSplit
from backbench.errors import DataError
from model_zoo.backbone import Backbone
from transfer.calibration import COLDEST, HOTTEST, expected_calibration_error, fit_temperature
from transfer.features import extract
from transfer.heads import Heads, items_of
from transfer.pooling import needs_stages
from transfer.protocol import Metric, RunContext, Task, labelled_splits, limited
from transfer.tasks import linear_probe

Name = Literal["v2", "a", "r", "sketch", "real"]


class Config(linear_probe.Config):
    """Fields of the cell: those of the linear probe, and the test sets."""

    sets: Annotated[tuple[Name, ...], Field(min_length=1)] = ("v2", "a", "r", "sketch", "real")  # the first: headline
    bins: Annotated[int, Field(gt=0)] = 15  # of the calibration error

    @field_validator("sets")
    @classmethod
    def _once(cls, sets: tuple[Name, ...]) -> tuple[Name, ...]:
        if len(set(sets)) < len(sets):
            raise ValueError("names a test set twice")
        return sets


def primary(config: Config) -> str:
    """Return the name of the headline metric."""
    return f"top1_{config.sets[0]}"


def smoke(config: Config) -> dict[str, Any]:
    """Return fields for a few images and two epochs."""
    return linear_probe.smoke(config)


# ---------------------------------------------------------------- the test sets


def missing(config: Config, places: DataPlaces) -> str | None:
    """Return why ImageNet or some of the test sets cannot be read, all of them in one sentence, or None."""
    if reason := catalogue.missing(config.data.name, places):
        return reason
    absent = {name: catalogue.missing(f"imagenet_{name}", _with_real(config, places)) for name in config.sets}
    reasons = {name: reason for name, reason in absent.items() if reason}
    if not reasons:
        return None
    sources = "; ".join(f"{reason} ({catalogue.info(f'imagenet_{name}').source})" for name, reason in reasons.items())
    there = [name for name in config.sets if name not in reasons]
    fewer = f", or measure the others: sets=[{','.join(there)}]" if there else ""
    return f"{len(reasons)} of {len(config.sets)} test sets are absent: {sources}. Give their folders{fewer}"


def _with_real(config: Config, places: DataPlaces) -> DataPlaces:
    """Return the places with ImageNet's own folder as that of ReaL, where `real.json` lies in it and no place is given."""
    own = places.of(config.data.name)
    if own is None or catalogue.missing("imagenet_real", places) is None or not (Path(own) / "real.json").exists():
        return places
    return DataPlaces(places.root, {**places.named, "imagenet_real": Path(own)})


def splits(config: Config, places: DataPlaces) -> dict[str, ImageSplit]:
    """Return ImageNet's train and test split, and the test sets under their names in `sets`.

    Raises:
        DataError: a data set is incomplete or not the published one, or has a class that ImageNet's training images lack.
    """
    found = labelled_splits(config.data, places)
    places = _with_real(config, places)
    for name in config.sets:
        data = f"imagenet_{name}"
        split = catalogue.load(data, "test", places)
        if config.data.expect == "published" and not catalogue.is_published(data, {"test": split}):
            want = ", ".join(f"{k} {v}" for k, v in catalogue.info(data).counts.items())
            raise DataError(
                f"'{data}' has {len(split)} images of {len(split.classes)} classes; published: {want}. Is the data set "
                "incomplete? For other images set imagenet_robustness.data.expect=any"
            )
        rows_of(split, found["train"].classes)
        found[name] = limited(split, config.data.limit)
    return found


def rows_of(split: ImageSplit, classes: tuple[str, ...]) -> Tensor:
    """Return the rows of the head (K,) that a test set's classes are, of the training images' `classes`.

    Raises:
        DataError: a class is not among them.
    """
    places = {name: i for i, name in enumerate(classes)}
    if all(name.isdecimal() for name in split.classes) and not set(split.classes) <= set(classes):
        places = {str(i): i for i in range(len(classes))}  # v2: folder i is the i-th class
    if unknown := [name for name in split.classes if name not in places]:
        raise DataError(
            f"'{split.dataset}' has {len(unknown)} classes that the training images lack, e.g. {unknown[0]}: are their "
            "folders named by WordNet id?"
        )
    return torch.tensor([places[name] for name in split.classes])


def truth_of(split: ImageSplit) -> tuple[Tensor, Tensor]:
    """Return which images count (M,), and their classes (M, L), filled up with -1: one, or for ReaL those that people saw.

    Raises:
        DataError: no image has a class.
    """
    labels = torch.as_tensor(split.labels)
    if labels.ndim == 1:
        counted = (labels >= 0).nonzero()[:, 0]
        truth = labels[counted, None].long()
    else:
        images, classes = (labels == 1).nonzero(as_tuple=True)
        counted, of_image, many = images.unique(return_inverse=True, return_counts=True)
        place = torch.arange(len(images)) - (many.cumsum(0) - many)[of_image]
        truth = torch.full((len(counted), int(many.max()) if len(many) else 1), -1)
        truth[of_image, place] = classes
    if not len(counted):
        raise DataError(f"no image of '{split.dataset}' has a class; is the data set whole?")
    return counted, truth


# ---------------------------------------------------------------- measuring


def run(backbone: Backbone, config: Config, ctx: RunContext[ImageSplit]) -> dict[str, Metric]:
    """Return top-1 and calibration errors in percent. Stores the answer to every image of every set."""
    fields = {k: v for k, v in config.every_field().items() if k in linear_probe.Config.model_fields}
    probe = build(linear_probe.Config, fields)
    found = linear_probe.stored(backbone, probe, ctx)
    head = found[0] if found else linear_probe.trained(backbone, probe, ctx)
    ctx.notes.append(f"the head of {found[1]}" if found else "the head was trained for this cell")
    temperature = _temperature(head, backbone, probe, ctx)
    test = ctx.splits["test"]
    metrics: dict[str, Metric] = {}
    for name in (None, *config.sets):
        split = test if name is None else ctx.splits[name]
        same = name == "real" and split.state_sha256() == test.state_sha256()  # the same images, already computed
        x = extract(backbone, test if same else split, ctx, spec=linear_probe.spec_of(probe))
        rows, (counted, truth) = rows_of(split, ctx.splits["train"].classes), truth_of(split)
        best, *confidences = answers(head, x[counted], rows, temperature, device=ctx.device)
        right = (best[:, :1] == truth).any(dim=1)
        end = "" if name is None else f"_{name}"
        metrics[f"top1{end}"] = Metric(100.0 * int(right.sum()) / len(right))
        for kind, confidence in zip(("ece", "ece_scaled"), confidences, strict=False):
            error = 100.0 * expected_calibration_error(confidence, right, config.bins)
            metrics[f"{kind}{end}"] = Metric(error, higher_is_better=False)
        if name is None:
            ctx.items |= items_of(best, truth[:, 0], len(split.classes))
        else:
            ctx.items[f"best{end}"] = best[:, :1].to(torch.int32).numpy()
            ctx.items[f"labels{end}"] = np.squeeze(truth.to(torch.int32).numpy(), 1 if truth.shape[1] == 1 else ())
    return metrics


@torch.no_grad()
def answers(
    head: Heads, x_NC: Tensor, rows_K: Tensor, temperature: float | None, *, device: torch.device
) -> tuple[Tensor, ...]:
    """Return the 5 best of the K classes (N, 5), or (N, K), best first; the confidence of the best (N,); and the scaled one.

    Args:
        rows_K: the rows of the head that are a set's classes; the softmax is over them alone.
        temperature: None gives no scaled confidence.
    """
    head = head.to(device).eval()
    found: list[tuple[Tensor, ...]] = []
    for x in x_NC.split(4096):
        (logits,) = head(x.to(device))
        logits = logits[:, rows_K.to(device)]
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices
        sure = [(logits.double() / t).softmax(dim=1).amax(dim=1) for t in (1.0, temperature) if t is not None]
        found.append((best.cpu(), *(each.cpu() for each in sure)))
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))


def _temperature(
    head: Heads, backbone: Backbone, config: linear_probe.Config, ctx: RunContext[ImageSplit]
) -> float | None:
    """Return the temperature that fits best on the training images held out; None if the probe holds out none."""
    train = ctx.splits["train"]
    held_out = linear_probe.hold_out(len(train), config, ctx.seed)[1]
    if not len(held_out):
        ctx.notes.append(f"preset {config.preset} holds out no training images: no temperature, no ece_scaled")
        return None
    aside = train.part(held_out.numpy())
    x = extract(backbone, aside, ctx, spec=linear_probe.spec_of(config))
    with torch.no_grad():
        (logits,) = head.to(ctx.device).eval()(x.to(ctx.device))
    temperature = fit_temperature(logits, torch.as_tensor(aside.labels).to(ctx.device))
    ctx.tuned |= {"temperature": temperature, "temperature_on": f"{len(aside)} images held out of train"}
    if not COLDEST * 1.001 < temperature < HOTTEST / 1.001:
        ctx.notes.append(f"no temperature is best: the cross-entropy falls as far as {temperature:g}")
    return temperature


TASK = Task(
    name="robustness",
    version=1,
    Config=Config,
    primary=primary,
    smoke=smoke,
    splits=splits,
    run=run,
    missing=missing,
    unfit=needs_stages,
)
