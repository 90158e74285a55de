"""Parts from outside this package: folders given by `--include DIR`, and entry points of installed packages.

An included folder holds `{data,protocols,tasks,suites,entries}/*.yaml` and `{layouts,formats,methods,transfer_tasks}/*.py`.
BACKBENCH_INCLUDE lists the folders, so that processes started later know them too. An entry point of a group
`backbench.<kind>` is a module, or for kinds made of YAML a package or path whose *.yaml are read.

A broken file is named in a warning and everything else keeps working; using that part is an error.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.util
import os
import pkgutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar, cast

from backbench.errors import BackbenchError, ConfigError, nearest
from backbench.printable import printable

VARIABLE = "BACKBENCH_INCLUDE"
# kind -> its folder below an included one; the kind is also the entry points' group, `backbench.<kind>`.
FILES = {"data": "data", "protocols": "protocols", "cells": "tasks", "suites": "suites", "entries": "entries"}
MODULES = {"layouts": "layouts", "formats": "formats", "methods": "methods", "tasks": "transfer_tasks"}

T = TypeVar("T")
_warned: set[str] = set()
_seen: dict[tuple[Any, ...], Any] = {}  # what files held when they were read


@dataclass(frozen=True)
class Parts(Generic[T]):
    """Parts of one kind by name, and those that cannot be read with the reason."""

    kind: str
    found: Mapping[str, T]
    broken: Mapping[str, str]

    def get(self, name: str, what: str) -> T:
        """Return a part by name. Raises ConfigError: it is broken, or unknown (with the nearest name)."""
        if name in self.found:
            return self.found[name]
        if name in self.broken:
            raise ConfigError(self.broken[name])
        raise ConfigError(f"unknown {what} '{printable(name)}'{nearest(name, self.found)}")


class _Include(argparse.Action):
    """Takes effect during parsing: options parsed later may name a plug-in's parts."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        include([Path(str(values))])
        setattr(namespace, self.dest, [*(getattr(namespace, self.dest) or []), Path(str(values))])


def add_option(parser: argparse.ArgumentParser) -> None:
    """`--include DIR` of a command line; repeatable, and inherited by the processes that the command starts."""
    parser.add_argument(
        "--include",
        action=_Include,
        default=[],
        metavar="DIR",
        help="a folder of your own data sets, cells, suites, layouts, ...; may be given several times",
    )


def include(folders: Iterable[Path]) -> None:
    """Add folders of plug-ins for this process and those that it starts. Raises ConfigError: no such folder."""
    known = included()
    for folder in folders:
        place = Path(folder).expanduser().absolute()
        if not place.is_dir():
            raise ConfigError(f"--include {printable(folder)}: no such folder")
        if os.pathsep in str(place):
            raise ConfigError(
                f"--include {printable(folder)}: a path with '{os.pathsep}' cannot be passed on; rename it"
            )
        if place not in known:
            known.append(place)
    os.environ[VARIABLE] = os.pathsep.join(map(str, known))


def included() -> list[Path]:
    """The folders in BACKBENCH_INCLUDE."""
    return [Path(word) for word in os.environ.get(VARIABLE, "").split(os.pathsep) if word]


def yaml_files(kind: str, own: Path) -> dict[str, Path]:
    """Every YAML file of a kind by its name: this package's own, included ones, those of installed packages."""
    found = {path.stem: path for path in sorted(own.glob("*.yaml"))}
    places = [folder / FILES[kind] for folder in included()] + [
        place for point in _points(kind) for place in _place(point)
    ]
    for place in places:
        for path in sorted(place.glob("*.yaml")) if place.is_dir() else [place]:
            if path.is_file() and found.setdefault(path.stem, path) != path:
                warn(f"{path}: not used, since {found[path.stem]} has this name; give it another one")
    return found


def read_files(kind: str, own: Path, read: Callable[[Path], T]) -> Parts[T]:
    """Every YAML file of a kind, read once for as long as it does not change; a broken one is named in a warning."""
    return attempt(kind, {name: functools.partial(_read, read, path) for name, path in yaml_files(kind, own).items()})


def _read(read: Callable[[Path], T], path: Path) -> T:
    status = path.stat()
    key = (read, path, status.st_mtime_ns, status.st_size, status.st_ino)
    if key not in _seen:
        try:
            _seen[key] = read(path)
        except BackbenchError as error:
            _seen[key] = error
    if isinstance(_seen[key], BackbenchError):
        raise ConfigError(str(_seen[key]))
    return cast(T, _seen[key])


def attempt(kind: str, readers: Mapping[str, Callable[[], T]]) -> Parts[T]:
    """Read each part; warn once about each that cannot be read."""
    found, broken = {}, {}
    for name, read in readers.items():
        try:
            found[name] = read()
        except BackbenchError as error:
            broken[name] = str(error)
            warn(f"{error}; left out" if name in str(error) else f"{kind} '{name}': {error}; left out")
    return Parts(kind, found, broken)


def module_names(kind: str, package: ModuleType) -> list[str]:
    """Return the sorted names of all modules of a kind; only entry points' packages are imported."""
    return sorted({*_built_in(package), *_outside(kind, package)})


def module(kind: str, package: ModuleType, name: str, what: str) -> ModuleType:
    """A module of a kind by name.

    Raises:
        ConfigError: unknown (with the nearest name), or a plug-in that cannot be imported.
    """
    if name in _built_in(package):
        return importlib.import_module(f"{package.__name__}.{name}")
    outside = _outside(kind, package)
    if name not in outside:
        raise ConfigError(f"unknown {what} '{printable(name)}'{nearest(name, module_names(kind, package))}")
    return outside[name]()


def modules(kind: str, package: ModuleType) -> Parts[ModuleType]:
    """Every module of a kind, imported; a plug-in that is broken is named in a warning."""
    return attempt(
        kind, {name: functools.partial(module, kind, package, name, kind) for name in module_names(kind, package)}
    )


def warn(text: str) -> None:
    """Print a warning on stderr, once."""
    from backbench.progress import say  # rich: slow to import

    if text not in _warned:
        _warned.add(text)
        say(f"warning: {text}")


def _built_in(package: ModuleType) -> frozenset[str]:
    return _modules_in(tuple(package.__path__))


@functools.cache
def _modules_in(path: tuple[str, ...]) -> frozenset[str]:
    return frozenset(found.name for found in pkgutil.iter_modules(path))


def _outside(kind: str, package: ModuleType) -> dict[str, Callable[[], ModuleType]]:
    """Return a function for each plug-in of a kind that imports it; a built-in name keeps its built-in module."""
    files = [path for folder in included() for path in sorted((folder / MODULES[kind]).glob("*.py"))]
    places: dict[str, Callable[[], ModuleType]] = {}
    for path in files:
        if path.stem in places or path.stem in _built_in(package):
            warn(f"{path}: not used, since the name '{path.stem}' is taken; give it another one")
        elif not path.name.startswith("_"):
            places[path.stem] = functools.partial(_imported, kind, path)
    for point in _points(kind):
        if point.name not in places and point.name not in _built_in(package):
            places[point.name] = functools.partial(_loaded, point)
    return places


def _imported(kind: str, path: Path) -> ModuleType:
    """Import the module in a file, once. Raises ConfigError with the error that it raised."""
    name = f"backbench_{kind}_{path.stem}"
    known = sys.modules.get(name)
    if known is not None and known.__file__ == str(path):
        return known
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded
    try:
        spec.loader.exec_module(loaded)
    except Exception as error:
        del sys.modules[name]
        raise ConfigError(f"{path}: cannot be imported ({_reason(error)})") from error
    return loaded


def _loaded(point: EntryPoint) -> Any:
    try:
        return point.load()
    except Exception as error:
        raise ConfigError(f"entry point {point.name} = {point.value}: cannot be loaded ({_reason(error)})") from error


def _place(point: EntryPoint) -> list[Path]:
    """Return the folder of an entry point's YAML files: a package's folder, or the path that it names."""
    try:
        value = _loaded(point)
    except ConfigError as error:
        warn(f"{error}; left out")
        return []
    file = getattr(value, "__file__", None)
    return [Path(file).parent if file else Path(str(value))]


def _points(kind: str) -> list[EntryPoint]:
    return _points_of(kind, tuple(sys.path))


@functools.cache
def _points_of(kind: str, path: tuple[str, ...]) -> list[EntryPoint]:
    """Read the metadata of all installed packages, once per search path."""
    del path
    return list(entry_points(group=f"backbench.{kind}"))


def _reason(error: Exception) -> str:
    line = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
    return printable(f"{type(error).__name__}: {' '.join(str(error).split())}{line}", 300)
