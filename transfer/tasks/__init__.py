"""One module per protocol; the module name is the registry. See `transfer.protocol.Task`."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType
from typing import Any, cast

from core.errors import ConfigError, nearest
from transfer.protocol import Task


def names() -> list[str]:
    """Every task there is."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def get(name: str) -> Task:
    """The task's module; ConfigError with the nearest name otherwise."""
    if name not in names():
        raise ConfigError(f"unknown task '{name}'{nearest(name, names())}")
    return cast(Task, _module(name))


def preset_fields(task: Task, preset: str) -> dict[str, Any]:
    """The fields a preset sets; ConfigError with the nearest name otherwise."""
    if preset not in task.Config.PRESETS:
        raise ConfigError(f"unknown preset '{preset}'{nearest(preset, task.Config.PRESETS)}")
    return dict(task.Config.PRESETS[preset])


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"transfer.tasks.{name}")
