"""Read an image's pixels as its annotations count them. Both engines use this."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from backbench.data.decode import open_rgb, read_bytes
from backbench.data.splits import Files
from backbench.errors import DataError
from backbench.files import Status

# Engines pass only a file's path to the processes that they fork, so the path is the key here.
_listed: dict[str, Status] = {}


def hold(source: Files) -> None:
    """Make reading an image that changes from now on an error, in this process and those it forks."""
    roots = {source.root, source.root.resolve()}  # MMDet is given the latter
    for index, path in enumerate(source.paths):
        _listed.update({str(root / path): source.status(index) for root in roots})


def read_image(file: Path, width: int, height: int) -> np.ndarray:
    """Return (height, width, 3) uint8 RGB as stored. Boxes are counted before any EXIF tag rotates the image.

    Raises:
        DataError: the image cannot be decoded, has another size, or changed since it was listed.
    """
    image = open_rgb(read_bytes(file, _listed.get(str(file))), str(file))
    if image.size != (width, height):
        raise DataError(f"{file}: has {image.width}x{image.height} pixels, but {width}x{height} in its annotation")
    return np.array(image)
