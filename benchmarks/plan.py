"""Suite x backbones -> cells: which configuration each resolves to, and which cannot run, with the reason.

A cell is a pair of a data set and a protocol, `<data>_<protocol>`. A file `configs/tasks/<cell>.yaml` stands where a pair
differs from its parts or has another name; detection's cells take the engine at their end, `<cell>_mmdet`.
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
    seeds_of: Mapping[str, int] = Field(default_factory=dict)  # cells that are repeated otherwise
    data: Literal["demo"] | None = None  # where the data lie when nothing else is said
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cell:
    """A cell with its configuration resolved."""

    name: str  # with the engine, where that is not the cell's usual one
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
    """Every cell: files, then pairs without a file; each on its usual engine."""
    return pairs.names()


def is_cell(name: str) -> bool:
    """Whether a name is a cell's, with an engine at its end or without, or a pair's that a file stands for."""
    known, (base, engine) = cell_names(), base_and_engine(name)
    return any(pairs.called(n) in known for n in ((name, base) if engine else (name,)))


def suites() -> plugins.Parts[Suite]:
    """Every suite, by name."""
    return plugins.read_files("suites", configs_folder() / "suites", _read_suite)


def suite_names() -> list[str]:
    """The names of all suites."""
    return sorted(suites().found)


def load_suite(name: str) -> Suite:
    """A suite by name; ConfigError with the nearest name otherwise."""
    return suites().get(name, "suite")


def _read_suite(file: Path) -> Suite:
    return build(Suite, read_mapping(file), where=f"suite {file.stem}")


def load_cell(name: str, overrides: Sequence[str] = (), profile: Profile = "full") -> Cell:
    """A cell with its preset, its own fields, the rehearsal's (`smoke`) and `field=value` overrides, the last winning.

    Raises:
        ConfigError: unknown cell, task, preset or field, with the nearest name; a value out of range.
    """
    base, engine = pairs.called(name), None
    if base not in cell_names():
        known = cell_names()
        base, engine = base_and_engine(name)
        base = pairs.called(base)
        if base not in known or engine is None:
            raise ConfigError(pairs.why_not(name) or f"unknown cell '{printable(name)}'{nearest(name, known)}")
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
    """Every cell, resolved; one that cannot be is named in a warning."""
    return plugins.attempt("cells", {name: functools.partial(load_cell, name) for name in cell_names()})


def load_cells(
    names: Sequence[str], overrides: Mapping[str, Sequence[str]], profile: Profile = "full"
) -> tuple[list[Cell], dict[str, list[str]]]:
    """The cells, each once, and the overrides of each under the name that it has with them (another engine)."""
    cells: dict[str, Cell] = {}
    of_cell: dict[str, list[str]] = {}
    for name in names:
        cell = load_cell(name, overrides[name], profile)
        if cell.name not in cells:
            cells[cell.name], of_cell[cell.name] = cell, list(overrides[name])
        elif cells[cell.name].config != cell.config:
            raise ConfigError(f"'{cell.name}' is asked for with two configurations; run them one after the other")
    return list(cells.values()), of_cell


def named_cells(names: str) -> list[str]:
    """The cells of `--tasks a,b`, each once.

    Raises:
        ConfigError: none, or one that there is not.
    """
    found = list(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    if not found:
        raise ConfigError(f"--tasks '{printable(names)}': names no cell; known: {', '.join(cell_names())}")
    for name in found:
        if not is_cell(name):
            raise ConfigError(pairs.why_not(name) or f"unknown cell '{printable(name)}'{nearest(name, cell_names())}")
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
            exists = is_cell(name) or bool(fnmatch.filter(known, name))
            why = "is not among the cells of this run" if exists else f"names no cell{nearest(name, known)}"
            raise ConfigError(f"'{override}': '{name}' {why}")
        for cell in fitting:
            by_cell[cell].append(rest)
    return by_cell


def places_of(suite: Suite, data_root: Path | None, named: dict[str, Path]) -> DataPlaces:
    """Where the data lie: as said on the command line, else the demo's data root for the demo suite."""
    if data_root is None and suite.data == "demo":
        data_root = demo.root()
    return DataPlaces(data_root, named)
