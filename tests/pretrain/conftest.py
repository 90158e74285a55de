"""A small photograph-like image folder and the smallest recipe that trains on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pretraining import smooth_image, tiny_recipe, write_photos

from pretrain.config import PretrainConfig


@pytest.fixture(scope="session")
def photo() -> np.ndarray:
    """Return a random picture, (96, 128, 3) uint8."""
    return smooth_image(96, 128)


@pytest.fixture(scope="session")
def shared_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder with 2 x 15 images in `train`. Tests must not change it."""
    return write_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A copy of the image folder that a test may change."""
    return write_photos(tmp_path / "photos")


@pytest.fixture(scope="session")
def recipe() -> Callable[..., PretrainConfig]:
    """`recipe(root, "a.b=c", ...)`."""
    return tiny_recipe
