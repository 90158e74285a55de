"""One module per engine, found by its name. Each offers the functions of `Engine`."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import pkgutil
from collections.abc import Iterable
from typing import Protocol, cast

from backbench.errors import ConfigError, nearest
from model_zoo.backbone import Backbone
from transfer.detection.annotations.split import Detections, DetectionSplit
from transfer.detection.job import Job
from transfer.detection.spec import DetectionSpec


class Engine(Protocol):
    """The functions that a module `transfer/detection/engines/<name>.py` offers."""

    def prepare(self) -> None: ...  # applies the engine's adaptations; nothing else does
    def missing(self) -> str | None: ...  # why it cannot be used, or None
    def version(self) -> str: ...  # versions of everything that affects its numbers
    def compiled(self) -> bool: ...  # True if it has its own operators
    def try_operators(self) -> None: ...  # raises when NMS or ROIAlign do not work
    def train(self, spec: DetectionSpec, backbone: Backbone, train: DetectionSplit, job: Job) -> object: ...
    def detect(self, model: object, spec: DetectionSpec, test: DetectionSplit, job: Job) -> list[Detections]: ...


def absent(modules: tuple[str, ...]) -> str | None:
    """Return why an engine that needs these modules cannot be used, or None."""
    lacking = [name for name in modules if importlib.util.find_spec(name) is None]
    return f"{', '.join(lacking)} not installed: python -m transfer.detection install" if lacking else None


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the installed packages' versions, by name. Reads these alone: the metadata of all take a third of a second."""
    found = {}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def names() -> list[str]:
    """Return the names of all engines."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def get(name: str) -> Engine:
    """Return the engine's module. Raises ConfigError with the nearest name if it is unknown."""
    if name not in names():
        raise ConfigError(f"unknown engine '{name}'{nearest(name, names())}")
    return cast(Engine, importlib.import_module(f"transfer.detection.engines.{name}"))
