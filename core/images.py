"""Bytes of an image file into RGB pixels, or a sentence that says what is wrong with the file."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from core import files
from core.errors import DataError

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"})
_LARGEST = 2**30  # bytes of an image file


class CorruptImage(DataError):
    """An image file that cannot be decoded whole; the text names it."""


def read_bytes(path: Path, listed: Sequence[int] | None = None) -> bytes:
    """The file's bytes.

    Args:
        listed: its status when it was listed, where that was noted.

    Raises:
        CorruptImage: it is missing, empty, too large or not a file.
        Changed: it is another file than the one that was listed.
    """
    try:
        data = files.read_bytes(Path(path), limit=_LARGEST, listed=listed)
    except files.Unreadable as error:
        raise CorruptImage(str(error)) from None
    if not data:
        raise CorruptImage(f"{path}: the file is empty")
    return data


def open_rgb(data: bytes, name: str) -> Image.Image:
    """Decode with Pillow, whole, into mode RGB: what every evaluation transform starts from.

    Palette, grey, CMYK, alpha and 16-bit images are converted; 16-bit grey is scaled (Pillow's own conversion clips it
    to white). EXIF orientation is ignored, as torchvision's loader does.

    Raises:
        CorruptImage: truncated or not an image.
    """
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise CorruptImage(f"{name}: not a whole image ({error})") from error
    if image.mode.startswith("I") or image.mode == "F":
        pixels = np.asarray(image, dtype=np.float64)
        image = Image.fromarray((pixels / 257).round().clip(0, 255).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def decode_rgb(data: bytes, name: str) -> np.ndarray:
    """Decode into (H, W, 3) uint8 RGB, fast: what pretraining's views start from.

    A grey or colour JPEG that ends with its end-of-image marker goes through OpenCV; all else through Pillow, since
    OpenCV decodes a truncated JPEG to grey without a word, and converts CMYK and 16-bit in its own ways.

    Raises:
        CorruptImage: truncated or not an image.
    """
    if data[:2] == b"\xff\xd8" and data.endswith(b"\xff\xd9"):
        try:
            mode = Image.open(io.BytesIO(data)).mode  # reads the header only
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            mode = "unreadable"
        if mode in ("RGB", "L"):
            flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
            if pixels is not None:
                return pixels
    return np.asarray(open_rgb(data, name))
