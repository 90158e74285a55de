"""An image's pixels as its annotations count them: what both engines start from."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from core.errors import DataError
from core.images import open_rgb, read_bytes


def read_image(file: Path, width: int, height: int) -> np.ndarray:
    """(height, width, 3) uint8 RGB, as stored: boxes are counted before any EXIF tag turns the image.

    Raises:
        DataError: it cannot be decoded, or is of another size.
    """
    image = open_rgb(read_bytes(file), str(file))
    if image.size != (width, height):
        raise DataError(f"{file}: is {image.width}x{image.height} pixels, its annotation says {width}x{height}")
    return np.array(image)
