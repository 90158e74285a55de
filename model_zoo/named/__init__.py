"""One module per trainer whose files hold a network that the user names by `--arch timm:NAME`.

Each has a `LAYOUT`: which network of such a file its own evaluation takes. Files of ResNets need no name: their layouts are
in `model_zoo.formats`. A file with a single network of the named architecture needs no layout either.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Layout:
    """Where a trainer's file keeps the network that transfers."""

    keys: tuple[str, ...]  # of the dictionary that holds its tensors; "" for the file itself
    prefixes: tuple[str, ...]  # of the tensors' names
    drop: tuple[str, ...] = ()  # patterns of names in that dictionary that are not the backbone's
    passed_over: tuple[str, ...] = ()  # patterns of paths of networks that the trainer's evaluation skips
    heads: Mapping[int, int] = field(default_factory=dict)  # attention heads by width: no tensor shows their number
    marks: tuple[str, ...] = ()  # patterns of names, of which one must be there: other trainers use the same keys

    @property
    def is_marked(self) -> bool:
        """Whether only marked files are of this layout."""
        return bool(self.marks)


def layouts() -> dict[str, Layout]:
    """Return the layout of every trainer, by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return {name: importlib.import_module(f"{__name__}.{name}").LAYOUT for name in names}
