"""One module per method; each holds one value, `METHOD = Method(...)`."""

from __future__ import annotations

import importlib
import pkgutil

from backbench.errors import ConfigError, nearest
from pretrain.method import Method


def names() -> list[str]:
    """Every method: the modules of this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def get(name: str) -> Method:
    """The method of a name.

    Raises:
        ConfigError: unknown name, or a module without a `METHOD` of that name.
    """
    if name not in names():
        raise ConfigError(f"unknown method '{name}'{nearest(name, names())}")
    module = importlib.import_module(f"pretrain.methods.{name}")
    method = getattr(module, "METHOD", None)
    if not isinstance(method, Method) or method.name != name:
        raise ConfigError(f"method '{name}': {module.__file__} must hold METHOD = Method(name='{name}', ...)")
    return method
