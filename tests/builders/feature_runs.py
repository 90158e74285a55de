"""Fixtures for tests of features: a split, a context with an empty cache, and how often features were computed."""

import pytest
import torch

from backbench.data.catalogue import DataPlaces, load
from transfer import features
from transfer.protocol import RunContext


@pytest.fixture
def split(image_folder):
    return load("imagenet", "train", DataPlaces(None, {"imagenet": image_folder}))


@pytest.fixture
def ctx(tmp_path):
    return RunContext(splits={}, seed=0, device=torch.device("cpu"), cache=tmp_path / "features")


@pytest.fixture
def computed(monkeypatch):
    """A list with an item for each time that features were computed."""
    calls, real = [], features.compute

    def counting(*args, **kwargs):
        calls.append(kwargs)
        return real(*args, **kwargs)

    monkeypatch.setattr(features, "compute", counting)
    return calls
