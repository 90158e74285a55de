"""Detection on a GPU: both engines lose as on the CPU, gradients and norm statistics included."""

from __future__ import annotations

import pytest
import torch
from detectors import step

from transfer.detection import engines


@pytest.mark.parametrize("name", ["detectron2", "mmdet"])
def test_losses_are_the_cpus(device, tmp_path, name):
    """Two scenes, every anchor and proposal counted, nothing drawn: losses to 1e-3, gradients and statistics to 2%."""
    for other in engines.names():  # both read the images through MMDetection's pipeline
        if reason := engines.get(other).missing():
            pytest.skip(reason)
    found = {n: v.cpu() for n, v in step(name, tmp_path / "device", [0, 1], device).items()}
    expected = step(name, tmp_path / "cpu", [0, 1], torch.device("cpu"))
    assert set(found) == set(expected) and any(key.startswith("loss") for key in found)
    for key, value in expected.items():
        assert value.abs().sum() > 0, key
        if key.startswith("loss"):
            torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}")
        else:
            difference = float((found[key] - value).norm() / value.norm())
            assert difference < 0.02, (key, difference)
