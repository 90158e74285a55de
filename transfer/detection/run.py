"""Shared by both detection tasks: train on an engine, detect, write pictures and configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator

from backbench.config import CHANGES_NO_NUMBER
from backbench.data.catalogue import DataPlaces, info
from backbench.distributed import gather, gather_words, is_main, rank, world_size
from backbench.errors import ConfigError, DataError
from backbench.printable import some
from backbench.progress import say
from model_zoo import export
from model_zoo.backbone import Backbone
from transfer.detection import engines
from transfer.detection.annotations.faults import UNDECODED, undecodable, whole_images
from transfer.detection.annotations.repeats import repeated
from transfer.detection.annotations.split import Detections, DetectionSplit, check_learnable, check_measurable, of_rows
from transfer.detection.engines import Engine
from transfer.detection.job import Job
from transfer.detection.scoring import draw
from transfer.detection.spec import DetectionSpec, scaled
from transfer.detection.training import accumulation, frozen
from transfer.protocol import RunContext, TaskConfig, image_data_missing

_PICTURES = 12
# The batch of 8 divides by 1, 2, 4 and 8 processes.
SMOKE = {"iterations": 3, "batch": 8, "milestones": [2], "warmup": 1, "sides_train": [96, 128], "side_test": 128,
         "side_max": 192, "rois": 32, "proposals_train": [200, 50], "proposals_test": [200, 50], "precise_bn": 1}  # fmt: skip


class DetectionConfig(TaskConfig):
    """Fields of a detection cell."""

    LATER: ClassVar[frozenset[str]] = frozenset({"accumulate", "frozen", "oversample"})

    engine: Literal["detectron2", "mmdet"] = "detectron2"
    spec: DetectionSpec
    batch: Annotated[int, Field(gt=0)] | None = (
        None  # images per step; a batch other than the spec's scales rate and schedule
    )
    accumulate: Annotated[int, Field(gt=0)] = 1  # parts of the batch processed one after the other, to save memory
    frozen: bool = False  # the backbone keeps its weights and statistics; C4's head, its last stage, trains
    oversample: Annotated[float, Field(ge=0, lt=1)] = 0.0  # repeat images of classes in a smaller share of them
    bad: Literal["error", "skip"] = "error"  # unusable annotations: stop, or leave them out and report it
    checkpoint_every: Annotated[int, Field(gt=0), CHANGES_NO_NUMBER] = 5000  # iterations
    log_every: Annotated[int, Field(gt=0), CHANGES_NO_NUMBER] = 20

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if wrong := accumulation.indivisible(self.batch or self.spec.batch, self.accumulate, "the batch"):
            raise ValueError(wrong)
        return self

    def course(self) -> DetectionSpec:
        """Return the spec scaled to this cell's batch."""
        return scaled(self.spec, self.batch or self.spec.batch)


def check_names(train: str, test: str) -> None:
    """Raise ValueError if train and test are the same split, or a name leads out of the data set."""
    if train == test:
        raise ValueError(f"train and test are both '{test}': give different splits")
    for name in (train, test):
        if not name or "/" in name or "\\" in name:
            raise ValueError(f"'{name}' is not the name of a split")


def unscaled(config: DetectionConfig) -> str | None:
    """Return a note if the spec's batch was changed but not its rate and schedule, else None."""
    if config.preset not in config.PRESETS:
        return None
    preset: DetectionSpec = config.PRESETS[config.preset].fields["spec"]
    if (config.spec.lr, config.spec.iterations) != (preset.lr, preset.iterations) or config.spec.batch == preset.batch:
        return None
    batch = config.spec.batch
    return f"batch {batch} with the rate and iterations for {preset.batch}: set <cell>.batch={batch} to scale them"


def missing(config: DetectionConfig, places: DataPlaces) -> str | None:
    """Return why the data or the engine are missing, or None."""
    return image_data_missing(config, places) or engines.get(config.engine).missing()


def unfit(backbone: Backbone, config: DetectionConfig) -> str | None:
    """Return why the engine cannot build this backbone, or None."""
    try:
        export.get(config.engine).refuse(backbone)
    except export.ExportError as error:
        return str(error)
    return None


def engine_version(config: DetectionConfig) -> str:
    """Return the engine's version, part of a record's identity."""
    return engines.get(config.engine).version()


def read_splits(
    config: DetectionConfig, places: DataPlaces, names: tuple[str, str], read: Callable[[Path, str], DetectionSplit]
) -> dict[str, DetectionSplit]:
    """Return the annotated images of both splits, checked, cut to `data.limit`, without what `bad=skip` leaves out.

    With `bad=error`, images are decoded only before training, not when a record is reused.

    Args:
        names: of the train and the test split.
        read: reads a split, given the data set's folder and the split's name.

    Raises:
        DataError: as `check_splits`; no image can be decoded; no object to learn; or no object that a metric counts.
    """
    root = places.of(config.data.name)
    assert root is not None, "`missing` was asked"
    counts = dict(info(config.data.name).counts)
    found = {role: read(root, name) for role, name in zip(("train", "test"), names, strict=True)}
    check_splits(found, config, counts)
    found = {role: replace(split, official_part=_is_official_part(split, counts)) for role, split in found.items()}
    used = {role: limited(split, config.data.limit) for role, split in found.items()}
    if _leaves_out(config):
        used = {role: whole_images(split, bad="skip") for role, split in used.items()}
    check_learnable(used["train"])
    check_measurable(used["test"], masks=config.spec.masks)
    return used


def _is_official_part(split: DetectionSplit, counts: dict[str, int]) -> bool:
    """Return whether a split is a whole draw from a published split."""
    if split.part_of is None or split.left_out:
        return False
    name, images = split.part_of
    return counts.get(name) == images


def _leaves_out(config: DetectionConfig) -> bool:
    return config.bad == "skip" and config.data.expect == "any"


def check_splits(splits: dict[str, DetectionSplit], config: DetectionConfig, counts: dict[str, int]) -> None:
    """Raise DataError if the splits' classes differ, or the images are not the published ones that `expect` asks for."""
    train, test = splits["train"], splits["test"]
    if train.classes != test.classes:  # a detector identifies a class by its index in the list
        pairs = enumerate(zip_longest(train.classes, test.classes), start=1)
        place, (one, other) = next((i, pair) for i, pair in pairs if pair[0] != pair[1])
        raise DataError(
            f"'{config.data.name}': class {place} is {one!r} in {train.split} and {other!r} in {test.split}; both need "
            "the same classes in the same order"
        )
    if config.data.expect == "published" and (lacking := [s.split for s in (train, test) if s.left_out]):
        raise DataError(
            f"'{config.data.name}': bad=skip left something out of {' and '.join(lacking)}, so these are not the published "
            "data; set <cell>.data.expect=any"
        )
    have = dict(split.part_of or (split.split, len(split)) for split in splits.values())
    if config.data.expect == "published" and any(counts.get(name) != count for name, count in have.items()):
        want = ", ".join(f"{name} {counts.get(name)}" for name in have)
        raise DataError(
            f"'{config.data.name}' has {', '.join(f'{k} {v}' for k, v in have.items())}; published: {want}. Is the "
            "data set incomplete? If it is another data set, set <cell>.data.expect=any"
        )


def confirm_images(split: DetectionSplit) -> None:
    """Raise DataError if an image cannot be decoded to the size in its annotation. Each rank reads a share."""
    broken = undecodable(split, range(rank(), len(split), world_size()))
    if names := gather_words([split.source.name(row) for row in sorted(broken)]):
        raise DataError(
            f"{split.source.root}: {UNDECODED}: {some(names)}. Replace them, or leave them out with bad=skip and "
            "data.expect=any"
        )


def limited(split: DetectionSplit, limit: int) -> DetectionSplit:
    """Return at most `limit` images, always the same ones."""
    if not limit or limit >= len(split):
        return split
    rows = np.sort(np.random.default_rng(0).permutation(len(split))[:limit]).tolist()
    return replace(of_rows(split, rows), split=f"{split.split}[{limit}]", official_part=False)


def detections(backbone: Backbone, config: DetectionConfig, ctx: RunContext[DetectionSplit]) -> list[Detections]:
    """Train on the train split and detect in the test split. Writes pictures and losses to the run's folder."""
    torch.backends.cudnn.benchmark = False  # nearly every batch has a new shape, and each would be benchmarked
    engine, spec = engines.get(config.engine), config.course()
    train, test = ctx.splits["train"], ctx.splits["test"]
    job = Job(
        ctx.folder, ctx.seed, ctx.device, ctx.workers, config.checkpoint_every, config.log_every, ctx.notes,
        ctx.resumed_at, test, config.accumulate, config.frozen,
    )  # fmt: skip
    if wrong := accumulation.indivisible(spec.batch // world_size(), config.accumulate, "the batch of each process"):
        raise ConfigError(wrong)
    ctx.notes += _about(config, spec, train)
    for split in (train, test):
        ctx.notes += [f"left out of {split.split}: {sentence}" for sentence in split.left_out]
        if not _leaves_out(config):
            confirm_images(split)
    model = engine.train(spec, backbone, _taught(config, train, ctx.notes), job)
    if config.frozen:
        frozen.confirm(model, export.get(config.engine), backbone, spec, job)
    found = detect(engine, model, spec, test, job)
    if is_main():
        shown = np.linspace(0, len(test) - 1, min(_PICTURES, len(test))).astype(int).tolist()
        draw.grid(test, found, shown, ctx.folder / "pictures.png")
    return found


def _taught(config: DetectionConfig, train: DetectionSplit, notes: list[str]) -> DetectionSplit:
    """Return the images to train on: those of rare classes several times, where the cell says so."""
    if not config.oversample:
        return train
    more = repeated(train, config.oversample)
    notes.append(
        f"images of classes in less than {config.oversample:.2%} of the images are repeated: {len(train)} images, "
        f"{len(more)} in a pass"
    )
    return more


def _about(config: DetectionConfig, spec: DetectionSpec, train: DetectionSplit) -> list[str]:
    """Return the record's sentences about this run: accumulation, another batch, processes, a part of the images."""
    notes = []
    if config.accumulate > 1:
        notes.append(accumulation.note(spec.batch, config.accumulate, frozen=spec.norm == "frozen"))
    if spec != config.spec:
        notes.append(
            f"batch {spec.batch} instead of {config.spec.batch}: rate {spec.lr:g}, {spec.iterations} iterations, drops "
            f"after {', '.join(map(str, spec.milestones)) or 'none'} by the linear rule, BatchNorm over {spec.batch} "
            "images; not comparable with the published rows"
        )
        say(f"warning: {notes[-1]}")
    elif note := unscaled(config):
        notes.append(note)
        say(f"warning: {note}")
    if world_size() > 1:
        notes.append(
            f"each rank draws its own proposals and flips: {world_size()} processes give numbers like another seed"
        )
    if train.part_of:
        whole, images = train.part_of
        notes.append(f"trained on {train.split}: {len(train)} of the {images} images of {whole}, for all iterations")
    return notes


def detect(engine: Engine, model: object, spec: DetectionSpec, test: DetectionSplit, job: Job) -> list[Detections]:
    """Return detections of every image in the split's order, on every rank. Each rank detects in a share of the images."""
    ranks = world_size()
    shares = gather(engine.detect(model, spec, of_rows(test, range(rank(), len(test), ranks)), job))
    return [shares[row % ranks][row // ranks] for row in range(len(test))]


def smoke_fields(config: DetectionConfig) -> dict[str, Any]:
    """Return fields for a few iterations on a few small images."""
    spec = {**config.spec.model_dump(mode="json"), **SMOKE, "batch": 8 * config.accumulate}
    return {"data": {"limit": 8}, "batch": None, "spec": spec}
