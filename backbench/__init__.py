"""Measure what a vision backbone transfers to.

`load`, `measure` and `compare` are the Python interface (`benchmarks/api.py`); they are imported when first used, so
`import backbench` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.api import compare, load, measure

__all__ = ["__version__", "compare", "load", "measure"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib import metadata

        try:
            return metadata.version("backbench")
        except metadata.PackageNotFoundError:
            return "unknown"
    if name in ("load", "measure", "compare"):
        from benchmarks import api

        return getattr(api, name)
    raise AttributeError(f"module 'backbench' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
