"""Suite x backbones -> cells: which configuration each resolves to, and which cannot run, with the reason."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from backbench.config import Config, build, configs_folder, digest, read_mapping
from backbench.data import demo
from backbench.data.catalogue import DataPlaces
from backbench.errors import ConfigError, nearest
from backbench.printable import printable
from transfer import tasks
from transfer.protocol import Task, TaskConfig

CONFIGS = configs_folder()

Profile = Literal["full", "smoke"]


class Suite(Config):
    """`configs/suites/<name>.yaml`: a list of cells."""

    cells: tuple[str, ...]
    seeds: int = 1
    seeds_of: Mapping[str, int] = Field(default_factory=dict)  # cells that are repeated otherwise
    data: Literal["demo"] | None = None  # where the data lie when nothing else is said
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cell:
    """A cell with its configuration resolved."""

    name: str
    task_name: str
    config: TaskConfig

    @property
    def task(self) -> Task:
        """The task's module."""
        return tasks.get(self.task_name)

    @property
    def config_sha256(self) -> str:
        """Identity of the resolved configuration."""
        return digest(self.config.identity())


def cell_names() -> list[str]:
    """Every cell there is."""
    return sorted(path.stem for path in (CONFIGS / "tasks").glob("*.yaml"))


def suite_names() -> list[str]:
    """Every suite there is."""
    return sorted(path.stem for path in (CONFIGS / "suites").glob("*.yaml"))


def load_suite(name: str) -> Suite:
    """A suite by name; ConfigError with the nearest name otherwise."""
    if name not in suite_names():
        raise ConfigError(f"unknown suite '{name}'{nearest(name, suite_names())}")
    return build(Suite, read_mapping(CONFIGS / "suites" / f"{name}.yaml"), where=f"suite {name}")


def load_cell(name: str, overrides: Sequence[str] = (), profile: Profile = "full") -> Cell:
    """A cell with its preset, its own fields, the rehearsal's (`smoke`) and `field=value` overrides, the last winning.

    Raises:
        ConfigError: unknown cell, task, preset or field, with the nearest name; a value out of range.
    """
    if name not in cell_names():
        raise ConfigError(f"unknown cell '{name}'{nearest(name, cell_names())}")
    values: dict[str, Any] = read_mapping(CONFIGS / "tasks" / f"{name}.yaml")
    task_name = values.pop("task", None)
    if not isinstance(task_name, str):
        raise ConfigError(f"cell {name}: key 'task' is missing")
    task = tasks.get(task_name)
    said = {**values, **{key: value for key, _, value in (o.partition("=") for o in overrides)}}
    preset = said.get("preset")
    fields = tasks.preset_fields(task, preset, said) if preset else {}
    config = build(task.Config, {**fields, **values}, overrides, where=f"cell {name}")
    if profile == "smoke":
        rehearsal = task.smoke(config)
        merged = config.model_dump(mode="json")
        data = {**merged["data"], "expect": "any", **rehearsal.pop("data", {})}
        config = build(task.Config, {**merged, **rehearsal, "data": data}, overrides, where=f"cell {name} (smoke)")
    return Cell(name, task_name, config)


def named_cells(names: str) -> list[str]:
    """The cells of `--tasks a,b`, each once.

    Raises:
        ConfigError: none, or one that there is not.
    """
    found = list(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    if not found:
        raise ConfigError(f"--tasks '{printable(names)}': no cell; known: {', '.join(cell_names())}")
    for name in found:
        if name not in cell_names():
            raise ConfigError(f"unknown cell '{printable(name)}'{nearest(name, cell_names())}")
    return found


def split_overrides(overrides: Sequence[str], cells: Sequence[str]) -> dict[str, list[str]]:
    """`<cell>.<field>=value` by cell; a pattern means every planned cell that it fits (`voc0712*.data.limit=16`).

    Raises:
        ConfigError: not of that form, or a cell that is not planned.
    """
    by_cell: dict[str, list[str]] = {name: [] for name in cells}
    for override in overrides:
        name, dot, rest = override.partition(".")
        if not dot or "=" not in rest:
            raise ConfigError(f"'{override}' is not of the form <cell>.<field>=<value>")
        fitting = fnmatch.filter(by_cell, name)
        if not fitting:
            known = cell_names()
            is_cell = bool(fnmatch.filter(known, name))
            why = "is not among the cells of this run" if is_cell else f"is no cell{nearest(name, known)}"
            raise ConfigError(f"'{override}': '{name}' {why}")
        for cell in fitting:
            by_cell[cell].append(rest)
    return by_cell


def places_of(suite: Suite, data_root: Path | None, named: dict[str, Path]) -> DataPlaces:
    """Where the data lie: as said on the command line, else the demo's data root for the demo suite."""
    if data_root is None and suite.data == "demo":
        data_root = demo.root()
    return DataPlaces(data_root, named)
