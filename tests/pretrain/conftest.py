"""A small photograph-like image folder and the smallest recipe that trains on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from core.config import build
from pretrain.config import PretrainConfig

IMAGES = 30  # 20-NN wants four fifths of them to be 20 at least


def smooth_image(height: int, width: int, seed: int = 0, cells: int = 6) -> np.ndarray:
    """(H, W, 3) uint8: colour noise of few cells, enlarged; as smooth as a photograph, with all levels in it."""
    noise = np.random.default_rng(seed).uniform(-40, 295, (cells, cells, 3)).astype(np.float32)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 255).astype(np.uint8)


def write_photos(root: Path) -> Path:
    for i in range(IMAGES):
        path = root / "train" / f"class{i % 2}" / f"{i // 2:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(smooth_image(40 + i % 3, 48 - i % 5, seed=i)).save(path, quality=90)
    return root


@pytest.fixture(scope="session")
def photo() -> np.ndarray:
    """(96, 128, 3) uint8."""
    return smooth_image(96, 128)


@pytest.fixture(scope="session")
def shared_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder of 2 x 15 images in `train`; not to be changed."""
    return write_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """The same, for a test that breaks some of it."""
    return write_photos(tmp_path / "photos")


def tiny_recipe(root: Path, *overrides: str) -> PretrainConfig:
    """ResNet-18 at 32 pixels, 2 views, 5 steps an epoch, everything logged."""
    values = {
        "method": {"views": 2},
        "model": {"backbone": "resnet18", "hidden": 16, "outputs": 8},
        "data": {"name": "imagefolder", "root": str(root), "size": 32, "workers": 0},
        "optim": {"base_lr": 20.0, "batch": 6, "epochs": 1.0, "warmup_epochs": 0.0},
        "run": {
            "threads": 1,
            "log_every": 1,
            "checkpoint_every": 2,
            "knn_every": 0.0,
            "channels_last": False,
        },
    }
    return build(PretrainConfig, values, overrides)


@pytest.fixture(scope="session")
def recipe() -> Callable[..., PretrainConfig]:
    """`recipe(root, "a.b=c", ...)`."""
    return tiny_recipe
