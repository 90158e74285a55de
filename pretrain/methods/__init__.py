"""One module per method, with `losses(p, z, noise, config, *, first) -> (loss, its parts)`."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable

from torch import Tensor

Losses = Callable[..., tuple[Tensor, dict[str, Tensor]]]


def names() -> list[str]:
    """Every method there is: the modules of this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def losses(name: str) -> Losses:
    """The method's loss function."""
    return importlib.import_module(f"pretrain.methods.{name}").losses
