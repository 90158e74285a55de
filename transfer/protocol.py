"""A task: its definition, its inputs, its result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar

import torch
from pydantic import Field, SerializationInfo, SerializerFunctionWrapHandler, model_serializer

from backbench.config import Config, digest, without_indifferent
from backbench.data import catalogue
from backbench.data.catalogue import DataPlaces
from backbench.data.splits import ImageSplit, Split
from backbench.errors import DataError
from backbench.files.atomic import make_folder
from backbench.precision import Precision
from model_zoo.backbone import Backbone
from transfer.presets import Preset


@dataclass(frozen=True)
class Metric:
    """One number of a result."""

    value: float
    unit: str = "%"
    higher_is_better: bool = True


class DataSpec(Config):
    """Which data a cell uses, and how strictly they must be the published ones."""

    name: str = "imagenet"
    expect: Literal["published", "any"] = "published"
    limit: Annotated[int, Field(ge=0)] = 0  # images per split at most, the first ones of a seeded order; 0: all


class TaskConfig(Config):
    """Fields that every task's configuration has."""

    PRESETS: ClassVar[Mapping[str, Preset]] = {}
    # Fields that came after the first records. At its default such a field is left out of what is stored and hashed: a
    # protocol that the field does not change keeps its identity, and its old records.
    LATER: ClassVar[frozenset[str]] = frozenset()

    data: DataSpec = DataSpec()
    preset: str = "default"

    @model_serializer(mode="wrap")
    def _stored(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        values = handler(self)
        if info.context == "every field":
            return values
        default = self.later_fields()
        return {k: v for k, v in values.items() if k not in default or getattr(self, k) != default[k]}

    @classmethod
    def later_fields(cls) -> dict[str, Any]:
        """The fields of `LATER`, each with its default: what records that lack them were made with."""
        names = frozenset[str]().union(*(base.__dict__.get("LATER", ()) for base in cls.__mro__))
        return {name: cls.model_fields[name].default for name in sorted(names)}

    def every_field(self) -> dict[str, Any]:
        """All fields as plain values, also those that are not stored."""
        return self.model_dump(mode="json", context="every field")

    def identity(self) -> dict[str, Any]:
        """What tells this protocol from every other: the stored fields, under the names that they had first.

        Fields that change no number are at their defaults, whatever this configuration says.
        """
        return without_indifferent(self).model_dump(mode="json")


class ForwardConfig(TaskConfig):
    """Fields of a task that runs the backbone in our own code, not in a detection library."""

    LATER: ClassVar[frozenset[str]] = frozenset({"precision"})

    precision: Precision = (
        "fp32"  # of the backbone's passes, TF32 off; bf16, fp16: autocast; heads and losses stay fp32
    )


S = TypeVar("S", bound=Split)


@dataclass
class RunContext(Generic[S]):
    """The data, seed and device that a task gets, and the place for its notes and scores per item."""

    splits: Mapping[str, S]
    seed: int
    device: torch.device
    cache: Path
    folder: Path = Path()  # this run's own: checkpoints, native configurations, pictures
    workers: int = 0
    tuned: dict[str, Any] = field(default_factory=dict)  # what was chosen, and on which split
    notes: list[str] = field(default_factory=list)
    resumed_at: list[int] = field(default_factory=list)  # iterations done, each time that a training was resumed
    items: dict[str, Any] = field(default_factory=dict)  # arrays, one row a test item: stored beside the record

    def resume_file(self, backbone: Backbone, config: TaskConfig, version: int) -> Path:
        """Where a long training leaves its state; another one's state is never found there."""
        key = {
            "weights": backbone.weights_sha256,
            "arch": backbone.arch.model_dump(mode="json"),
            "input": backbone.input.model_dump(mode="json"),
            "config": config.identity(),
            "version": version,
            "train": self.splits["train"].manifest_sha256(),
            "state": self.splits["train"].state_sha256(),  # images exchanged since the kill, of the same size
            "seed": self.seed,
            "torch": str(torch.__version__),
        }
        return make_folder(self.cache) / f"training-{digest(key)}.ckpt"


def labelled_splits(spec: DataSpec, places: DataPlaces) -> dict[str, ImageSplit]:
    """Train and test split of a labelled data set.

    Raises:
        DataError: incomplete, or not the published images although `expect` asks for them.
    """
    found = {role: catalogue.load(spec.name, role, places) for role in ("train", "test")}
    if spec.expect == "published" and not catalogue.is_published(spec.name, found):
        have = ", ".join(f"{split.split} {len(split)}" for split in found.values())
        want = ", ".join(f"{k} {v}" for k, v in catalogue.info(spec.name).counts.items())
        raise DataError(
            f"'{spec.name}' has {have}, {len(found['train'].classes)} classes; published: {want}. Half a data set? "
            "If it is meant to be another one, set <cell>.data.expect=any: its numbers are then not called the published ones"
        )
    if found["train"].classes != found["test"].classes:
        raise DataError(
            f"'{spec.name}' {found['train'].split} and {found['test'].split} have different classes, so that their labels "
            "do not mean the same: is one of them of another data set?"
        )
    return {role: limited(split, spec.limit) for role, split in found.items()}


def limited(split: ImageSplit, limit: int) -> ImageSplit:
    """At most `limit` images in a fixed random order, every class as likely as it is."""
    if not limit or limit >= len(split):
        return split
    chosen = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:limit].sort().values.numpy()
    return split.part(chosen)


def image_data_missing(config: TaskConfig, places: DataPlaces) -> str | None:
    """A task's `missing` where all it needs is a labelled image data set."""
    return catalogue.missing(config.data.name, places)


def image_splits(config: TaskConfig, places: DataPlaces) -> dict[str, ImageSplit]:
    """A task's `splits` where it uses the train and test split of a labelled image data set."""
    return labelled_splits(config.data, places)


def fits_every(backbone: Backbone, config: TaskConfig) -> str | None:
    """A task's `unfit` where it can measure any backbone."""
    return None


def no_engine(config: TaskConfig) -> str | None:
    """A task's `engine_version` where no detection library runs it."""
    return None


C = TypeVar("C", bound=TaskConfig)


@dataclass(frozen=True)
class Task(Generic[C, S]):
    """A protocol: what `transfer/tasks/<name>.py` exports as `TASK`."""

    name: str  # the module's
    version: int  # raised whenever the same configuration would give another number
    Config: type[C]
    primary: Callable[[C], str]  # the headline metric's name
    smoke: Callable[[C], dict[str, Any]]  # fields of a dress rehearsal: a few steps
    splits: Callable[[C, DataPlaces], dict[str, S]]
    run: Callable[[Backbone, C, RunContext[S]], dict[str, Metric]]
    deterministic: bool = False  # nothing is drawn: one seed is enough
    missing: Callable[[C, DataPlaces], str | None] = image_data_missing  # a reason, not an exception
    unfit: Callable[[Backbone, C], str | None] = fits_every  # why it cannot measure a backbone
    engine_version: Callable[[C], str | None] = (
        no_engine  # library and version that run it: part of a record's identity
    )
