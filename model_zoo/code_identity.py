"""Identity of the code of a user's network: hashes of its files, versions of installed libraries."""

from __future__ import annotations

import functools
import importlib.metadata
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType

from torch import nn

from backbench.config import digest
from backbench.files.hashes import file_sha256


def of_network(function: object, module: nn.Module) -> tuple[str, str]:
    """Return (libraries with versions, SHA-256 of the files) of a network that `function` returned.

    The modules of the function and of every class of the network count, with base classes. The files among them that are
    not of an installed library are followed through their top-level imports; imports inside functions are not seen.
    Features do not count: even coarsely rounded, some would differ between machines.
    """
    classes = {kind for part in module.modules() for kind in type(part).__mro__}
    files, libraries = _walk({getattr(function, "__module__", None), *(kind.__module__ for kind in classes)})
    return ", ".join(sorted(libraries)), digest(sorted({file_sha256(file) for file in files}))


def _walk(names: Iterable[object]) -> tuple[set[Path], set[str]]:
    """Return the user's files and the libraries of the modules, following the imports of the files."""
    files: set[Path] = set()
    libraries: set[str] = set()
    waiting, seen = set(names), set()
    while waiting:
        name = waiting.pop()
        seen.add(name)
        module = sys.modules.get(name) if isinstance(name, str) else None
        top = str(name).partition(".")[0]
        if (
            module is None or top in sys.stdlib_module_names or name == "backbench"
        ):  # `backbench` has attributes that are loaded so far
            continue
        file = Path(getattr(module, "__file__", None) or "")
        if {"site-packages", "dist-packages"} & set(file.parts) and (known := _versions(top)):
            libraries.update(known)
            continue
        if file.is_file():
            files.add(file)
        waiting |= _held(module) - seen
    return files, libraries


def _held(module: ModuleType) -> set[object]:
    """Return the names of modules that a module's top-level values are or come from."""
    values = list(vars(module).values())
    return {value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None) for value in values}


def _versions(top: str) -> list[str]:
    """Return `torch 2.9.1` for a top-level package; builds of a version (`+cu130`) have the same code."""
    return [f"{d} {importlib.metadata.version(d).partition('+')[0]}" for d in set(_distributions().get(top, ()))]


@functools.cache
def _distributions() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()
