"""One module per protocol, which exports it as `TASK`; the module name is the registry. See `transfer.protocol.Task`."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from typing import Any

from backbench import plugins
from backbench.errors import ConfigError, nearest
from transfer.protocol import Task


def names() -> list[str]:
    """The names of all tasks: the modules of this folder, and plug-ins."""
    return plugins.module_names("tasks", sys.modules[__name__])


def get(name: str) -> Task[Any, Any]:
    """The task of a name.

    Raises:
        ConfigError: unknown (with the nearest name), a plug-in that is broken, or a module without a `TASK`.
    """
    module = plugins.module("tasks", sys.modules[__name__], name, "task")
    task = getattr(module, "TASK", None)
    if not isinstance(task, Task):
        raise ConfigError(f"task '{name}': {module.__file__} must hold TASK = Task(...)")
    return task


def known() -> Mapping[str, Task[Any, Any]]:
    """Every task by name; a plug-in that is broken is named in a warning."""
    return plugins.attempt("tasks", {name: functools.partial(get, name) for name in names()}).found


def preset_fields(task: Task[Any, Any], preset: str, values: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The fields a preset sets in a cell that says `values`; ConfigError with the nearest name otherwise."""
    presets = task.Config.PRESETS
    if preset not in presets:
        raise ConfigError(f"unknown preset '{preset}'{nearest(preset, presets)}")
    return presets[preset].resolved(task.Config, values or {})
