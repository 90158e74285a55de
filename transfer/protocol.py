"""Definition, inputs and result of a task."""

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
    """The data of a cell, and whether they must be the published ones."""

    name: str = "imagenet"
    expect: Literal["published", "any"] = "published"
    limit: Annotated[int, Field(ge=0)] = 0  # at most this many images per split, the first of a seeded order; 0: all


class TaskConfig(Config):
    """Fields of all tasks' configurations."""

    PRESETS: ClassVar[Mapping[str, Preset]] = {}
    # Fields added after the first records. At its default such a field is neither stored nor hashed, so protocols that it
    # does not change keep their identity and their old records.
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
        """Return the fields of `LATER` with their defaults. Records without these fields were made with the defaults."""
        names = frozenset[str]().union(*(base.__dict__.get("LATER", ()) for base in cls.__mro__))
        return {name: cls.model_fields[name].default for name in sorted(names)}

    def every_field(self) -> dict[str, Any]:
        """Return all fields as plain values, including those that are not stored."""
        return self.model_dump(mode="json", context="every field")

    def identity(self) -> dict[str, Any]:
        """Return the stored fields that identify this protocol, under their first names.

        Fields that change no number have their defaults here, not this configuration's values.
        """
        return without_indifferent(self).model_dump(mode="json")


class ForwardConfig(TaskConfig):
    """Fields of a task that runs the backbone in our own code, not in a detection library."""

    LATER: ClassVar[frozenset[str]] = frozenset({"precision"})

    precision: Precision = (
        "fp32"  # how the backbone runs: fp32 without TF32, or autocast to bf16 or fp16; heads stay fp32
    )


S = TypeVar("S", bound=Split)


@dataclass
class RunContext(Generic[S]):
    """Data, seed and device for a task, and the place for its notes and scores per item."""

    splits: Mapping[str, S]
    seed: int
    device: torch.device
    cache: Path
    folder: Path = Path()  # folder of this run: checkpoints, native configurations, pictures; Path(): keep none
    workers: int = 0
    tuned: dict[str, Any] = field(default_factory=dict)  # chosen values, and the split that chose them
    notes: list[str] = field(default_factory=list)
    resumed_at: list[int] = field(default_factory=list)  # iterations done at each resume
    items: dict[str, Any] = field(default_factory=dict)  # arrays with one row per test item, stored beside the record
    artefacts: dict[str, str] = field(default_factory=dict)  # files kept in `folder`, with their SHA-256
    curve: list[dict[str, float]] = field(default_factory=list)  # training losses by epoch, kept in the folder

    @property
    def keeps_files(self) -> bool:
        """Whether the run has a folder: pictures go there, and the measuring program writes the curve."""
        return self.folder != Path()

    def resume_file(self, backbone: Backbone, config: TaskConfig, version: int) -> Path:
        """Return the file for the state of a long training. Its name depends on everything that must match."""
        key = {
            "weights": backbone.weights_sha256,
            "arch": backbone.arch.model_dump(mode="json"),
            "input": backbone.input.model_dump(mode="json"),
            "config": config.identity(),
            "version": version,
            "train": self.splits["train"].manifest_sha256(),
            "state": self.splits["train"].state_sha256(),  # detects images replaced since the kill
            "seed": self.seed,
            "torch": str(torch.__version__),
        }
        return make_folder(self.cache) / f"training-{digest(key)}.ckpt"


def labelled_splits(spec: DataSpec, places: DataPlaces) -> dict[str, ImageSplit]:
    """Return the train and test split of a labelled data set.

    Raises:
        DataError: the data are incomplete, or not the published images although `expect` asks for them.
    """
    found = {role: catalogue.load(spec.name, role, places) for role in ("train", "test")}
    if spec.expect == "published" and not catalogue.is_published(spec.name, found):
        have = ", ".join(f"{split.split} {len(split)}" for split in found.values())
        want = ", ".join(f"{k} {v}" for k, v in catalogue.info(spec.name).counts.items())
        raise DataError(
            f"'{spec.name}' has {have}, {len(found['train'].classes)} classes; published: {want}. Is the data set "
            "incomplete? If it is another data set, set <cell>.data.expect=any; its numbers are then not marked as published"
        )
    if found["train"].classes != found["test"].classes:
        raise DataError(
            f"'{spec.name}' {found['train'].split} and {found['test'].split} have different classes, so their labels differ "
            "in meaning: is one of them from another data set?"
        )
    return {role: limited(split, spec.limit) for role, split in found.items()}


def limited(split: ImageSplit, limit: int) -> ImageSplit:
    """Return at most `limit` images, a fixed random sample in the split's order."""
    if not limit or limit >= len(split):
        return split
    chosen = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:limit].sort().values.numpy()
    return split.part(chosen)


def image_data_missing(config: TaskConfig, places: DataPlaces) -> str | None:
    """Return why the data are missing, or None: `missing` of tasks that need only a labelled image data set."""
    return catalogue.missing(config.data.name, places)


def image_splits(config: TaskConfig, places: DataPlaces) -> dict[str, ImageSplit]:
    """Return the train and test split: `splits` of tasks on a labelled image data set."""
    return labelled_splits(config.data, places)


def fits_every(backbone: Backbone, config: TaskConfig) -> str | None:
    """Return None: `unfit` of tasks that can measure any backbone."""
    return None


def no_engine(config: TaskConfig) -> str | None:
    """Return None: `engine_version` of tasks without a detection library."""
    return None


C = TypeVar("C", bound=TaskConfig)


@dataclass(frozen=True)
class Task(Generic[C, S]):
    """A protocol. `transfer/tasks/<name>.py` exports it as `TASK`."""

    name: str  # the module's name
    version: int  # raise it when the same configuration gives another number
    Config: type[C]
    primary: Callable[[C], str]  # the headline metric's name
    smoke: Callable[[C], dict[str, Any]]  # fields of a rehearsal with a few steps
    splits: Callable[[C, DataPlaces], dict[str, S]]
    run: Callable[[Backbone, C, RunContext[S]], dict[str, Metric]]
    deterministic: bool = False  # no random numbers: one seed is enough
    missing: Callable[[C, DataPlaces], str | None] = image_data_missing  # a reason, not an exception
    unfit: Callable[[Backbone, C], str | None] = fits_every  # why it cannot measure a backbone, or None
    engine_version: Callable[[C], str | None] = (
        no_engine  # library and version of the engine: part of a record's identity
    )
