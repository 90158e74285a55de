"""One module per protocol, exported as `TASK` and found by its module name. See `transfer.protocol.Task`."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from typing import Any

from backbench import plugins
from backbench.errors import ConfigError, nearest
from transfer.protocol import Task


def names() -> list[str]:
    """Return the names of all tasks: the modules of this folder and plug-ins."""
    return plugins.module_names("tasks", sys.modules[__name__])


def get(name: str) -> Task[Any, Any]:
    """Return the task with this name.

    Raises:
        ConfigError: the name is unknown (the nearest is named), the plug-in is broken, or the module has no `TASK`.
    """
    module = plugins.module("tasks", sys.modules[__name__], name, "task")
    task = getattr(module, "TASK", None)
    if not isinstance(task, Task):
        raise ConfigError(f"task '{name}': {module.__file__} must define TASK = Task(...)")
    return task


def known() -> Mapping[str, Task[Any, Any]]:
    """Return all tasks by name. A broken plug-in is named in a warning."""
    return plugins.attempt("tasks", {name: functools.partial(get, name) for name in names()}).found


def preset_fields(task: Task[Any, Any], preset: str, values: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the fields that a preset sets in a cell with fields `values`.

    Raises:
        ConfigError: the preset is unknown; the nearest one is named.
    """
    presets = task.Config.PRESETS
    if preset not in presets:
        raise ConfigError(f"unknown preset '{preset}'{nearest(preset, presets)}")
    return presets[preset].resolved(task.Config, values or {})
