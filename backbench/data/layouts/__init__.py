"""One module per layout of a data set's folder: `read(root, split, *, dataset) -> ImageSplit`.

`LABELS` says what its images are labelled with: `class` (one each), `classes` (any number), `boxes`, `masks` (of objects),
`semantic` (a class for each pixel: the module then has `masks(root, split) -> Masks`); protocols need one of these.
`recognise(root) -> (train, test)`, where a module has it, gives the names of the splits to learn from and to test on, or None
when the folder is of another layout. `GIVES_WAY_TO` names layouts that are taken instead where a folder fits both.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

from backbench import plugins
from backbench.errors import DataError


def names() -> list[str]:
    """The names of all layouts."""
    return plugins.module_names("layouts", sys.modules[__name__])


def get(name: str) -> ModuleType:
    """Return a layout's module. Raises ConfigError when it is unknown (the nearest name is given) or its plug-in is broken."""
    return plugins.module("layouts", sys.modules[__name__], name, "layout")


def labels(name: str) -> frozenset[str]:
    """Return the kinds of labels of a layout: one class per image, unless its module states others."""
    return frozenset(getattr(get(name), "LABELS", {"class"}))


def recognise(root: Path, layout: str | None = None) -> tuple[str, str, str] | None:
    """Return layout, training split and test split of a folder; only the given layout is tried when there is one.

    Raises:
        DataError: the folder fits several layouts.
    """
    modules = {layout: get(layout)} if layout else plugins.modules("layouts", sys.modules[__name__]).found
    fitting: list[tuple[str, str, str]] = []
    for name, module in modules.items():
        splits = module.recognise(root) if hasattr(module, "recognise") else None
        if splits is not None:
            fitting.append((name, *splits))
    others = {name for name, *_ in fitting}
    fitting = [each for each in fitting if not getattr(modules[each[0]], "GIVES_WAY_TO", frozenset()) & others]
    if len(fitting) > 1:
        several = " and ".join(name for name, *_ in fitting)
        raise DataError(f"{root}: fits several layouts, {several}; say which, e.g. --data NAME={fitting[0][0]}:{root}")
    return fitting[0] if fitting else None
