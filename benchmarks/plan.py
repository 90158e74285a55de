"""Resolve the cells of a suite or a command line to their configurations.

A cell is a pair of a data set and a protocol, `<data>_<protocol>`. A file `configs/tasks/<cell>.yaml` exists where a pair
differs from its parts or has another name. A detection cell on another engine has it at its end: `<cell>_mmdet`.
"""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from backbench import plugins
from backbench.config import Config, build, digest, read_mapping
from backbench.data import demo
from backbench.data.catalogue import DataPlaces
from backbench.errors import ConfigError, nearest
from backbench.files.folders import configs_folder
from backbench.printable import printable
from benchmarks import pairs
from benchmarks.records.renamed import base_and_engine, with_engine
from transfer import tasks
from transfer.protocol import Task, TaskConfig

Profile = Literal["full", "smoke"]


class Suite(Config):
    """`configs/suites/<name>.yaml`: a list of cells."""

    cells: tuple[str, ...]
    seeds: int = 1
    seeds_of: Mapping[str, int] = Field(default_factory=dict)  # cells with another number of seeds
    data: Literal["demo"] | None = None  # the data to use unless the command line names some
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cell:
    """A cell with its configuration resolved."""

    name: str  # ends with the engine if it is not the cell's usual one
    task_name: str
    config: TaskConfig

    @property
    def task(self) -> Task:
        """The task that measures this cell."""
        return tasks.get(self.task_name)

    @property
    def config_sha256(self) -> str:
        """Hash of the resolved configuration."""
        return digest(self.config.identity())


def cell_names() -> list[str]:
    """Return the name of every cell: files, then pairs without a file; each on its usual engine."""
    return pairs.names()


def is_cell(name: str) -> bool:
    """Return whether a name is a cell's, with or without an engine at its end, or a pair that a cell file states."""
    base, engine = base_and_engine(name)
    return any(pairs.exists(pairs.called(n)) for n in ((name, base) if engine else (name,)))


def suites() -> plugins.Parts[Suite]:
    """Every suite, by name."""
    return plugins.read_files("suites", configs_folder() / "suites", _read_suite)


def suite_names() -> list[str]:
    """The names of all suites."""
    return sorted(suites().found)


def load_suite(name: str) -> Suite:
    """Return a suite by name; raises ConfigError with the nearest name for an unknown one."""
    return suites().get(name, "suite")


def _read_suite(file: Path) -> Suite:
    return build(Suite, read_mapping(file), where=f"suite {file.stem}")


def load_cell(name: str, overrides: Sequence[str] = (), profile: Profile = "full") -> Cell:
    """Load a cell: its preset, then its own fields, the rehearsal's (`smoke`) and the `field=value` overrides.

    Raises:
        ConfigError: the cell, task, preset or field is unknown (with the nearest name), or a value is out of range.
    """
    base, engine = pairs.called(name), None
    if not pairs.exists(base):
        base, engine = base_and_engine(name)
        base = pairs.called(base)
        if engine is None or not pairs.exists(base):
            raise ConfigError(pairs.why_not(name) or f"unknown cell '{printable(name)}'{nearest(name, cell_names())}")
    values = pairs.fields(base)
    task_name = values.pop("task", None)
    if not isinstance(task_name, str):
        raise ConfigError(f"cell {name}: key 'task' is missing")
    task = tasks.get(task_name)
    if engine is not None:
        if "engine" not in task.Config.model_fields:
            raise ConfigError(f"cell {printable(name)}: '{base}' runs on no engine; leave '_{engine}' out")
        values["engine"] = engine
    said = {**values, **{key: value for key, _, value in (o.partition("=") for o in overrides)}}
    preset = said.get("preset")
    fields = tasks.preset_fields(task, preset, said) if preset else {}
    config = build(task.Config, pairs.merged(fields, values), overrides, where=f"cell {name}")
    if profile == "smoke":
        rehearsal = task.smoke(config)
        merged = config.model_dump(mode="json")
        data = {**merged["data"], "expect": "any", **rehearsal.pop("data", {})}
        config = build(task.Config, {**merged, **rehearsal, "data": data}, overrides, where=f"cell {name} (smoke)")
    return Cell(with_engine(base, getattr(config, "engine", None)), task_name, config)


def all_cells() -> plugins.Parts[Cell]:
    """Load every cell; a warning names each one that cannot be loaded."""
    return plugins.attempt("cells", {name: functools.partial(load_cell, name) for name in cell_names()})


def load_cells(
    names: Sequence[str], overrides: Mapping[str, Sequence[str]], profile: Profile = "full"
) -> tuple[list[Cell], dict[str, list[str]]]:
    """Load cells, each once; returns them and their overrides, by the name that they have on their engine."""
    cells: dict[str, Cell] = {}
    of_cell: dict[str, list[str]] = {}
    for name in names:
        cell = load_cell(name, overrides[name], profile)
        if cell.name not in cells:
            cells[cell.name], of_cell[cell.name] = cell, list(overrides[name])
        elif cells[cell.name].config != cell.config:
            raise ConfigError(f"'{cell.name}' has two configurations; run them one after the other")
    return list(cells.values()), of_cell


def named_cells(names: str) -> list[str]:
    """Return the cells of `--tasks a,b`, each once.

    Raises:
        ConfigError: there is no name, or a cell is unknown.
    """
    found = list(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    if not found:
        raise ConfigError(f"--tasks '{printable(names)}': names no cell; known: {', '.join(cell_names())}")
    for name in found:
        if not is_cell(name):
            raise ConfigError(pairs.why_not(name) or f"unknown cell '{printable(name)}'{nearest(name, cell_names())}")
    return found


def split_overrides(overrides: Sequence[str], cells: Sequence[str]) -> dict[str, list[str]]:
    """Sort `<cell>.<field>=value` by cell; a pattern (`voc0712*.data.limit=16`) applies to every planned cell it matches.

    Raises:
        ConfigError: an override does not have this form, or names a cell that is not planned.
    """
    by_cell: dict[str, list[str]] = {name: [] for name in cells}
    for override in overrides:
        name, dot, rest = override.partition(".")
        if not dot or "=" not in rest:
            raise ConfigError(f"'{override}' is not of the form <cell>.<field>=<value>")
        fitting = fnmatch.filter(by_cell, name)
        if not fitting:
            known = cell_names()
            exists = is_cell(name) or bool(fnmatch.filter(known, name))
            why = "is not among the cells of this run" if exists else f"names no cell{nearest(name, known)}"
            raise ConfigError(f"'{override}': '{name}' {why}")
        for cell in fitting:
            by_cell[cell].append(rest)
    return by_cell


def places_of(suite: Suite, data_root: Path | None, named: dict[str, Path]) -> DataPlaces:
    """Return where the data are: as the command line says, else the demo's data root for the demo suite."""
    if data_root is None and suite.data == "demo":
        data_root = demo.root()
    return DataPlaces(data_root, named)
