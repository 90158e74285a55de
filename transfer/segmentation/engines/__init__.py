"""One module per segmentation engine, found by its name. Each offers the functions of `Engine`."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Sequence
from typing import Protocol, cast

import numpy as np

from backbench.errors import ConfigError, nearest
from model_zoo.backbone import Backbone
from transfer.detection.job import Job
from transfer.segmentation.annotations.split import SegmentationSplit
from transfer.segmentation.spec import SegmentationSpec


class Engine(Protocol):
    """The functions that a module `transfer/segmentation/engines/<name>` offers."""

    def prepare(self) -> None: ...  # applies the engine's adaptations; nothing else does
    def missing(self) -> str | None: ...  # why it cannot be used, or None
    def version(self) -> str: ...  # versions of everything that affects its numbers
    def compiled(self) -> bool: ...  # True if it has its own operators
    def try_operators(self) -> None: ...  # raises when a head or its loss does not work
    def unfit(self, backbone: Backbone) -> str | None: ...  # why it cannot build this backbone, or None
    def train(self, spec: SegmentationSpec, backbone: Backbone, train: SegmentationSplit, job: Job) -> object: ...
    def segment(
        self, model: object, spec: SegmentationSpec, test: SegmentationSplit, rows: Sequence[int], job: Job
    ) -> Iterator[np.ndarray]: ...  # (H, W) uint8 labels of each row, in the image's own size


def names() -> list[str]:
    """Return the names of all engines."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def get(name: str) -> Engine:
    """Return the engine's module. Raises ConfigError with the nearest name if it is unknown."""
    if name not in names():
        raise ConfigError(f"unknown engine '{name}'{nearest(name, names())}")
    return cast(Engine, importlib.import_module(f"transfer.segmentation.engines.{name}"))
