"""Masks of semantic segmentation: an image file whose pixel values are numbers of classes."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

from backbench.data.decode import CorruptImage
from backbench.data.splits import Files
from backbench.errors import DataError

IGNORE = 255  # the label of pixels that count neither in a loss nor in a score
UNKNOWN = -1  # in a table of values: this value must not occur
ENDINGS = (".png", ".bmp", ".tif", ".tiff")  # formats without loss
_FORMATS = ("PNG", "BMP", "TIFF")
_INDEXED = ("1", "L", "P", "I", "I;16")  # Pillow's modes with one number per pixel
_AGAIN = "a mask holds the number of a class in each pixel: save it as a palette or grey PNG"


@dataclass(frozen=True)
class Masks:
    """The masks of a split: row i is the mask of image i."""

    source: Files
    classes: tuple[str, ...]  # row = label; background is one of them where the data set counts it
    values: tuple[int, ...] | None = None  # of 256 stored values: label, IGNORE or UNKNOWN; None: see `table_of`


def table_of(classes: int) -> tuple[int, ...]:
    """Return the table of masks that store labels: 0 to `classes` - 1 as they are, 255 ignored, all others unknown."""
    return (*range(classes), *[UNKNOWN] * (IGNORE - classes), IGNORE)


def mapped(labels: dict[int, int], ignored: range) -> tuple[int, ...]:
    """Return a table of 256 values: those in `labels`, the other values in `ignored` and 255 are ignored, the rest unknown."""
    others = {value: IGNORE for value in (*ignored, IGNORE)}
    return tuple({**others, **labels}.get(value, UNKNOWN) for value in range(256))


def label_map(data: bytes, name: str, classes: int, values: tuple[int, ...] | None = None) -> np.ndarray:
    """Return the labels (H, W) uint8 of a mask file, IGNORE where none counts.

    Args:
        data: the file's bytes.
        name: the file, for errors.
        values: as in `Masks`.

    Raises:
        CorruptImage: not a whole PNG, BMP or TIFF.
        DataError: more than one number per pixel, or a value that is none of the classes.
    """
    pixels = stored_values(data, name)
    found = np.asarray(values or table_of(classes), np.int16)[pixels]
    if (found == UNKNOWN).any():
        wrong = int(pixels[found == UNKNOWN].min())
        known = [value for value, label in enumerate(values or table_of(classes)) if label != UNKNOWN]
        raise DataError(
            f"{name}: value {wrong} is none of the {classes} classes; the values may be {_ranges(known)} (255 is ignored): "
            "correct the mask or the list of classes"
        )
    return found.astype(np.uint8)


def stored_values(data: bytes, name: str) -> np.ndarray:
    """Return the stored numbers (H, W) uint8 of a mask file: indices of a palette, or grey values.

    Raises:
        CorruptImage: not a whole PNG, BMP or TIFF.
        DataError: more than one number per pixel, or a number above 255.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        image.load()
    except UnidentifiedImageError:
        raise CorruptImage(f"{name}: not a PNG, BMP or TIFF; {_AGAIN}, which loses nothing") from None
    except Exception as error:  # a stranger's bytes make decoders raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CorruptImage(f"{name}: not a whole image ({reason}); fetch it again") from None
    if image.mode not in _INDEXED:
        raise DataError(f"{name}: a mask in colours ({image.mode}), not of class numbers; {_AGAIN}")
    pixels = np.asarray(image)
    if pixels.dtype != bool and pixels.size and (pixels.min() < 0 or pixels.max() > IGNORE):
        raise DataError(f"{name}: values from {pixels.min()} to {pixels.max()}, a mask has 0 to 255; {_AGAIN}")
    return pixels.astype(np.uint8) // _step(data, image)


def _step(data: bytes, image: Image.Image) -> int:
    """Return by how much Pillow multiplies the stored values: it stretches grey PNGs of 2 and 4 bits to 255."""
    if image.format != "PNG" or image.mode != "L":
        return 1
    return {2: 85, 4: 17}.get(data[24], 1)  # the header's bit depth


def _ranges(values: list[int]) -> str:
    """Return `0 to 20, 255` for rising numbers."""
    parts: list[list[int]] = []
    for value in values:
        if parts and value == parts[-1][-1] + 1:
            parts[-1].append(value)
        else:
            parts.append([value])
    return ", ".join(f"{part[0]} to {part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)
