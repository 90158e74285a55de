"""Tests of a GPU: skipped without one. BACKBENCH_GPU_TEST_DEVICE=cpu rehearses all of them on the CPU, at tiny sizes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

VARIABLE = "BACKBENCH_GPU_TEST_DEVICE"


def pytest_collection_modifyitems(items):
    """Mark every test of this folder: `gpu`, and `slow`, so that `-m quick` leaves them out."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The device under test."""
    name = os.environ.get(VARIABLE, "cuda")
    if name not in ("cuda", "cpu"):
        pytest.fail(f"{VARIABLE}={name}: set it to cuda or cpu")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip(f"torch sees no GPU here; {VARIABLE}=cpu rehearses this test on the CPU")
    return torch.device(name)


@pytest.fixture(scope="session")
def real(device) -> bool:
    """True on a GPU: real sizes, and bounds that hold across devices; False in a rehearsal."""
    return device.type == "cuda"


@pytest.fixture(autouse=True)
def _exact_float32() -> Iterator[None]:
    from backbench.precision import exact_float32

    with exact_float32():
        yield
