"""Train a network on masks, segment the test images, count classes, and draw some of them."""

from __future__ import annotations

from typing import Annotated, Any, Self

import numpy as np
import torch
from pydantic import Field, model_validator

from backbench.config import CHANGES_NO_NUMBER
from backbench.data.catalogue import DataPlaces
from backbench.distributed import gather, is_main, rank, world_size
from backbench.errors import ConfigError, DataError
from backbench.progress import say
from model_zoo.backbone import Backbone
from transfer.detection.job import Job
from transfer.detection.training import accumulation
from transfer.protocol import RunContext, TaskConfig, image_data_missing
from transfer.segmentation import engines
from transfer.segmentation.annotations.reading import confirm
from transfer.segmentation.annotations.split import SegmentationSplit
from transfer.segmentation.scoring import draw
from transfer.segmentation.scoring.confusion import counts_of
from transfer.segmentation.spec import SegmentationSpec, scaled

ENGINE = "mmseg"
_PICTURES = 8
# Of the smallest size that every head takes; the batch of 8 divides by 1, 2, 4 and 8 processes.
SMOKE = {"iterations": 3, "batch": 8, "resize": [128, 64], "crop": [64, 64], "resize_test": [128, 64], "milestones": []}


class SegmentationConfig(TaskConfig):
    """Fields of a cell that trains a segmentation network."""

    spec: SegmentationSpec
    batch: Annotated[int, Field(gt=0)] | None = (
        None  # crops per step; a batch other than the spec's scales rate and schedule
    )
    accumulate: Annotated[int, Field(gt=0)] = 1  # parts of the batch processed one after the other, to save memory
    checkpoint_every: Annotated[int, Field(gt=0), CHANGES_NO_NUMBER] = 5000  # iterations
    log_every: Annotated[int, Field(gt=0), CHANGES_NO_NUMBER] = 20

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if wrong := accumulation.indivisible(self.batch or self.spec.batch, self.accumulate, "the batch"):
            raise ValueError(wrong)
        return self

    def course(self) -> SegmentationSpec:
        """Return the spec scaled to this cell's batch."""
        return scaled(self.spec, self.batch or self.spec.batch)


def missing(config: SegmentationConfig, places: DataPlaces) -> str | None:
    """Return why the data or the engine are missing, or None."""
    return image_data_missing(config, places) or engines.get(ENGINE).missing()


def unfit(backbone: Backbone, config: SegmentationConfig) -> str | None:
    """Return why the engine cannot build this backbone, or None."""
    return engines.get(ENGINE).unfit(backbone)


def engine_version(config: SegmentationConfig) -> str:
    """Return the engine's version, part of a record's identity."""
    return engines.get(ENGINE).version()


def counts(backbone: Backbone, config: SegmentationConfig, ctx: RunContext[SegmentationSplit]) -> np.ndarray:
    """Train on the train split and segment the test split. Writes pictures and losses to the run's folder.

    Returns:
        (N, C, C) int64, for each test image its pixels by true class (row) and predicted class.

    Raises:
        DataError: a mask or an image cannot be used, or there are fewer than two classes.
        ConfigError: the batch does not divide among processes and parts.
    """
    torch.backends.cudnn.benchmark = False  # nearly every test image has a new shape, and each would be benchmarked
    engine, spec = engines.get(ENGINE), config.course()
    train, test = ctx.splits["train"], ctx.splits["test"]
    if len(train.classes) < 2:
        raise DataError(f"{train.dataset}: has one class, and a segmentation needs two at least; is one missing?")
    if wrong := accumulation.indivisible(spec.batch // world_size(), config.accumulate, "the batch of each process"):
        raise ConfigError(wrong)
    ctx.notes += _notes(config, spec)
    for split in (train, test):
        confirm(split)
    job = Job(
        ctx.folder, ctx.seed, ctx.device, ctx.workers, config.checkpoint_every, config.log_every, ctx.notes,
        ctx.resumed_at, test, config.accumulate,
    )  # fmt: skip
    model = engine.train(spec, backbone, train, job)
    return _measured(engine, model, spec, test, job)


def _measured(
    engine: engines.Engine, model: object, spec: SegmentationSpec, test: SegmentationSplit, job: Job[SegmentationSplit]
) -> np.ndarray:
    """Return every test image's counts, on every rank. Each rank segments a share of the images."""
    rows = range(rank(), len(test), world_size())
    shown = np.linspace(0, len(test) - 1, min(_PICTURES, len(test))).astype(int).tolist()
    own: dict[int, np.ndarray] = {}
    drawn: dict[int, np.ndarray] = {}
    for row, predicted in zip(rows, engine.segment(model, spec, test, rows, job), strict=True):
        own[row] = counts_of(predicted, test.label(row), len(test.classes))
        if row in shown:
            drawn[row] = predicted
    everything: dict[int, np.ndarray] = {}
    pictures: dict[int, np.ndarray] = {}
    for found, kept in gather((own, drawn)):
        everything |= found
        pictures |= kept
    if is_main():
        draw.grid(test, [pictures[row] for row in shown], shown, job.folder / "pictures.png")
    return np.stack([everything[row] for row in range(len(test))])


def _notes(config: SegmentationConfig, spec: SegmentationSpec) -> list[str]:
    """Return notes about batch and processes. Warns where the published rows are not comparable."""
    notes = []
    if config.accumulate > 1:
        notes.append(accumulation.note(spec.batch, config.accumulate, frozen=False))
    if spec != config.spec:
        notes.append(
            f"batch {spec.batch} instead of {config.spec.batch}: rate {spec.lr:g}, {spec.iterations} iterations by the "
            f"linear rule, BatchNorm over {spec.batch} crops; not comparable with the published rows"
        )
        say(f"warning: {notes[-1]}")
    if world_size() > 1 and spec.dropout:
        notes.append(f"each rank draws its own dropout: {world_size()} processes give numbers like another seed")
    return notes


def smoke_fields(config: SegmentationConfig) -> dict[str, Any]:
    """Return fields for a few iterations on a few small images."""
    spec = {**config.spec.model_dump(mode="json"), **SMOKE, "batch": 8 * config.accumulate}
    if config.spec.stride_test is not None:
        spec["stride_test"] = [48, 48]
    return {"data": {"limit": 8}, "batch": None, "spec": spec}
