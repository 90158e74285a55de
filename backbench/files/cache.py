"""The cache folder, for files that can be made or fetched again. Imports nothing heavy."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """`BACKBENCH_CACHE`, or `backbench` below the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "backbench"
    return Path(os.environ.get("BACKBENCH_CACHE") or default)
