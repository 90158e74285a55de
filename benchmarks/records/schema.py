"""Fields of a record: one JSON per (backbone, cell, seed). `benchmarks.records.store` writes, finds and reads them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from backbench.config import digest

SCHEMA = 1


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class MetricRecord(_Strict):
    """One number; percent unless the unit says otherwise."""

    value: Annotated[float, Field(strict=True)]
    unit: str
    higher_is_better: bool


class BackboneRecord(_Strict):
    """The backbone of a record."""

    name: str
    weights_sha256: str
    format: str
    arch: dict[str, Any]
    input: dict[str, Any]
    named: bool | None = None  # whether the user gave the name; older records do not say
    source: str = ""  # the file or other origin, as it was given


class TaskRecord(_Strict):
    """The protocol of a record, with the whole resolved configuration."""

    name: str
    version: int
    config: dict[str, Any]
    config_sha256: str
    tuned: dict[str, Any] = {}  # chosen values, and the split they were chosen on
    notes: list[str] = []
    engine: str | None = None  # library and version that run the protocol, if any


class DataRecord(_Strict):
    """The data of a record."""

    name: str
    train: str
    test: str
    counts: dict[str, int]
    manifest_sha256: str
    is_published: bool
    is_demo: bool = False
    repaired: dict[str, int] = {}  # corrections of annotations, by split: how many
    passed_over: dict[str, dict[str, int]] = {}  # skipped files, by split and reason: how many


class Provenance(_Strict):
    """Where and how a number was measured."""

    commit: str
    dirty: bool
    packages: dict[str, str]
    device: str
    wall_s: float
    peak_memory: int  # bytes
    argv: list[str]
    threads: int
    processes: int = 1  # of torchrun's job; older records do not say
    tf32: bool | None = None  # whether float32 products might use TF32, which has 10 bits; older records do not say
    energy_j: dict[str, float] | None = None  # joules of `cpu` and `gpu` meanwhile, where the machine counts them
    resumed_at: list[int] = []  # iterations (or steps) done, each time that the training was resumed


class Result(_Strict):
    """A record. Status `skipped` and `failed` come with a reason and without metrics."""

    schema_version: Annotated[int, Field(alias="schema", strict=True)] = SCHEMA
    status: Literal["ok", "failed", "skipped"]
    reason: str | None = None
    profile: Literal["full", "smoke"]
    suite: str
    seed: int
    backbone: BackboneRecord
    cell: str
    task: TaskRecord
    data: DataRecord | None = None
    metrics: dict[str, MetricRecord] = {}
    primary: str | None = None
    provenance: Provenance | None = None
    artefacts: dict[str, str] = {}  # files of the run, relative to the record, with their SHA-256
    error: str | None = None

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, populate_by_name=True)

    def identity(self) -> str:
        """Hash of all that decides the number: weights, task, configuration, data, seed, profile."""
        return digest(
            {
                "weights": self.backbone.weights_sha256,
                "arch": self.backbone.arch,
                "input": self.backbone.input,
                "cell": self.cell,
                "task": [self.task.name, self.task.version, self.task.config_sha256, self.task.engine],
                "manifest": self.data.manifest_sha256 if self.data else None,
                "profile": self.profile,
                "seed": self.seed,
            }
        )
