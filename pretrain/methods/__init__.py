"""One module per method; each defines `METHOD = Method(...)`."""

from __future__ import annotations

import sys

from backbench import plugins
from backbench.errors import ConfigError
from pretrain.method import Method


def names() -> list[str]:
    """Return the names of all methods: modules of this folder, of included folders and of installed packages."""
    return plugins.module_names("methods", sys.modules[__name__])


def get(name: str) -> Method:
    """Return the method with this name.

    Raises:
        ConfigError: an unknown name, a plug-in that cannot be imported, or a module without a `METHOD` of that name.
    """
    module = plugins.module("methods", sys.modules[__name__], name, "method")
    method = getattr(module, "METHOD", None)
    if not isinstance(method, Method) or method.name != name:
        raise ConfigError(f"method '{name}': {module.__file__} must define METHOD = Method(name='{name}', ...)")
    return method
