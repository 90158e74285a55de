"""One module per protocol, which exports it as `TASK`; the module name is the registry. See `transfer.protocol.Task`."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from backbench.errors import ConfigError, nearest
from transfer.protocol import Task


def names() -> list[str]:
    """Every task there is."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def get(name: str) -> Task[Any, Any]:
    """A task by name; ConfigError with the nearest name otherwise."""
    if name not in names():
        raise ConfigError(f"unknown task '{name}'{nearest(name, names())}")
    task: Task[Any, Any] = importlib.import_module(f"transfer.tasks.{name}").TASK
    return task


def preset_fields(task: Task[Any, Any], preset: str, values: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The fields a preset sets in a cell that says `values`; ConfigError with the nearest name otherwise."""
    presets = task.Config.PRESETS
    if preset not in presets:
        raise ConfigError(f"unknown preset '{preset}'{nearest(preset, presets)}")
    return presets[preset].resolved(task.Config, values or {})
