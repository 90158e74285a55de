"""The evaluation transforms: torchvision on Pillow images.

torchvision takes seconds to import, so only the functions that transform an image import it.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from PIL import Image

Interpolation = Literal["bilinear", "bicubic"]


def evaluation_view(
    image: Image.Image, size: int, *, resize: int | None = None, interpolation: Interpolation = "bilinear"
) -> np.ndarray:
    """Resize the shorter side to `resize` (256/224 of the size unless given), crop the centre: (size, size, 3) uint8."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as TF

    image = TF.resize(image, [resize or resize_side(size)], InterpolationMode(interpolation))
    return np.array(TF.center_crop(image, [size, size]))


def squashed_view(
    image: Image.Image, size: int, *, resize: int | None = None, interpolation: Interpolation = "bilinear"
) -> np.ndarray:
    """As `evaluation_view`, but then resize both sides to `size` instead of cropping: proportions change.

    VISSL's transform for VOC07: Resize(256), then Resize([224, 224]).
    """
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as TF

    image = TF.resize(image, [resize or resize_side(size)], InterpolationMode(interpolation))
    return np.array(TF.resize(image, [size, size], InterpolationMode(interpolation)))


def stretched_view(
    image: Image.Image, size: int, *, resize: int | None = None, interpolation: Interpolation = "bilinear"
) -> np.ndarray:
    """Resize both sides to `resize`, then crop the centre: proportions change (ssl-transfer's few_shot_dataset.py)."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as TF

    side = resize or resize_side(size)
    return np.array(TF.center_crop(TF.resize(image, [side, side], InterpolationMode(interpolation)), [size, size]))


def resize_side(size: int) -> int:
    """Return 256 for 224, and other sizes in proportion."""
    return round(size * 256 / 224)
