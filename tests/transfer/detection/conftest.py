"""Rendered scenes as detection splits, and a training small enough for a test."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from detectors import WEIGHTS, scenes, short, trained_like

from model_zoo.backbone import Backbone
from transfer.detection import engines
from transfer.detection.annotations.split import DetectionSplit
from transfer.detection.spec import DetectionSpec


@pytest.fixture(params=sorted(WEIGHTS))
def name(request) -> str:
    """An engine that is installed."""
    if reason := engines.get(request.param).missing():
        pytest.skip(reason)
    engines.get(request.param).prepare()
    return request.param


@pytest.fixture(scope="session", name="scenes")
def scenes_fixture() -> Callable[..., DetectionSplit]:
    """`scenes(folder, count)`."""
    return scenes


@pytest.fixture(scope="session", name="short")
def short_fixture() -> Callable[..., DetectionSpec]:
    """`short(head, **fields)`."""
    return short


@pytest.fixture(scope="session", name="trained_like")
def trained_like_fixture() -> Callable[..., Backbone]:
    """`trained_like(architecture)`."""
    return trained_like
