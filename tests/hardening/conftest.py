"""Hostile inputs, kills and damages: all of them with BACKBENCH_HARDENING=all, otherwise a seeded sample of each test."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

_SAMPLE = 4  # parameters of one test function in an ordinary run
_HERE = Path(__file__).parent


def pytest_collection_modifyitems(config, items):
    """Mark what lies here as slow; without the long run, keep a few parameters of each function, the same for one seed."""
    by_function: dict[str, list[pytest.Item]] = {}
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.slow)
            by_function.setdefault(item.nodeid.partition("[")[0], []).append(item)
    if os.environ.get("BACKBENCH_HARDENING") == "all":
        return
    seed = os.environ.get("BACKBENCH_HARDENING_SEED", "0")
    kept = set()
    for function, its in by_function.items():
        kept |= {id(i) for i in random.Random(f"{seed} {function}").sample(its, min(_SAMPLE, len(its)))}
    left_out = [i for its in by_function.values() for i in its if id(i) not in kept]
    config.hook.pytest_deselected(items=left_out)
    gone = {id(i) for i in left_out}
    items[:] = [i for i in items if id(i) not in gone]
