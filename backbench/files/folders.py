"""Folders of the cache (everything in it can be made or fetched again) and of the configurations. No heavy imports."""

from __future__ import annotations

import functools
import os
from pathlib import Path

from backbench.errors import ConfigError


def cache_folder() -> Path:
    """`BACKBENCH_CACHE`, or `backbench` below the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "backbench"
    return Path(os.environ.get("BACKBENCH_CACHE") or default)


@functools.cache
def configs_folder() -> Path:
    """Return the folder of recipes, cells and suites: a checkout's `configs/`, or `backbench/configs` of a wheel.

    Raises:
        ConfigError: neither exists, so the installation is incomplete.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / "suites").is_dir():
            return folder
    raise ConfigError(f"{package}: the installation lacks its configurations; install backbench again")
