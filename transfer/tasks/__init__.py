"""One module per protocol; the module name is the registry. See `transfer.protocol.Task`."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from types import ModuleType
from typing import Any, cast

from backbench.errors import ConfigError, nearest
from model_zoo.backbone import Backbone
from transfer.protocol import Task, TaskConfig


def names() -> list[str]:
    """Every task there is."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def get(name: str) -> Task:
    """The task's module; ConfigError with the nearest name otherwise."""
    if name not in names():
        raise ConfigError(f"unknown task '{name}'{nearest(name, names())}")
    return cast(Task, _module(name))


def unfit(task: Task, backbone: Backbone, config: TaskConfig) -> str | None:
    """Why a protocol cannot measure this backbone; a task that takes only some says so in its own `unfit`."""
    says = getattr(task, "unfit", None)
    return says(backbone, config) if says else None


def preset_fields(task: Task, preset: str, values: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The fields a preset sets; ConfigError with the nearest name otherwise.

    A key `field=value` of a preset (`share=1%`, `data.name=stl10`) holds fields that it sets only where the cell's `field`
    has that value.
    """
    if preset not in task.Config.PRESETS:
        raise ConfigError(f"unknown preset '{preset}'{nearest(preset, task.Config.PRESETS)}")
    fields: dict[str, Any] = {}
    for key, value in task.Config.PRESETS[preset].items():
        field, conditional, wanted = key.partition("=")
        if not conditional:
            fields[key] = value
        elif _said(task, values or {}, field) == wanted:
            fields |= value
    return fields


def _said(task: Task, values: Mapping[str, Any], field: str) -> Any:
    """A cell's field, `a.b` of nested ones too: as an override says, else the cell, else the default."""
    if field in values:
        return values[field]
    first, dot, rest = field.partition(".")
    if not dot:
        return task.Config.model_fields[field].default
    nested = values.get(first)
    return (
        nested[rest]
        if isinstance(nested, Mapping) and rest in nested
        else getattr(task.Config.model_fields[first].default, rest)
    )


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"transfer.tasks.{name}")
