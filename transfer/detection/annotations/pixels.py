"""An image's pixels as its annotations count them: what both engines start from."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from backbench.data.decode import open_rgb, read_bytes
from backbench.data.splits import Files
from backbench.errors import DataError
from backbench.files import Status

# Engines hand on nothing but a file's path, to processes that they fork: what is known of it must be found by that.
_listed: dict[str, Status] = {}


def hold(source: Files) -> None:
    """From now on it is an error, in this process and those it forks, when an image that changed since is read."""
    roots = {source.root, source.root.resolve()}  # MMDet is given the latter
    for index, path in enumerate(source.paths):
        _listed.update({str(root / path): source.status(index) for root in roots})


def read_image(file: Path, width: int, height: int) -> np.ndarray:
    """(height, width, 3) uint8 RGB, as stored: boxes are counted before any EXIF tag turns the image.

    Raises:
        DataError: it cannot be decoded, is of another size, or changed since it was listed.
    """
    image = open_rgb(read_bytes(file, _listed.get(str(file))), str(file))
    if image.size != (width, height):
        raise DataError(f"{file}: is {image.width}x{image.height} pixels, its annotation says {width}x{height}")
    return np.array(image)
