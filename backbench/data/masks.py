"""Masks of semantic segmentation: an image file whose pixel values are numbers of classes."""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, UnidentifiedImageError

from backbench.data.decode import CorruptImage, header_size
from backbench.data.splits import Files
from backbench.errors import DataError
from backbench.files import read_lines
from backbench.printable import some

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


# ---------------------------------------------------------------- what the layouts share


def names_in(folder: Path) -> list[str]:
    """Return the sorted names in a folder without hidden ones. Raises DataError when it cannot be read."""
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))  # noqa: PTH208 (names only)
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror}); is the data set whole?") from None


def by_stem(folder: Path, endings: Collection[str] = ENDINGS) -> dict[str, str]:
    """Return the files in a folder that have one of the endings (lower case), by name without it.

    Raises:
        DataError: the folder cannot be read, or two files differ in their ending only.
    """
    found: dict[str, str] = {}
    for name in names_in(folder):
        ending = PurePosixPath(name).suffix
        if ending.lower() in endings and (other := found.setdefault(name.removesuffix(ending), name)) != name:
            raise DataError(f"{folder}: holds {other} and {name}, which differ in their ending only; remove one")
    return found


def class_names(folder: Path) -> tuple[str, ...] | None:
    """Return the lines of `classes.txt`, row = label, or None without such a file.

    Raises:
        DataError: no name, one there twice, or more than 255.
    """
    file = folder / "classes.txt"
    if not file.is_file():
        return None
    names = tuple(line for line in read_lines(file) if line)
    if not 0 < len(names) <= IGNORE:
        raise DataError(f"{file}: {len(names)} names; a mask has 1 to {IGNORE} classes, one name a line")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise DataError(f"{file}: names that are there twice: {some(twice)}; each line is another class")
    return names


def faults(images: Files, masks: Masks, rows: Iterable[int]) -> Iterator[str]:
    """Yield a sentence for each of the rows whose mask is not one of its image: unreadable, of another size or value."""
    for row in rows:
        try:
            label_of(images, masks.source, row, len(masks.classes), masks.values)
        except DataError as error:
            yield str(error)


def label_of(images: Files, masks: Files, row: int, classes: int, values: tuple[int, ...] | None = None) -> np.ndarray:
    """Return the labels (H, W) uint8 of an image's pixels, IGNORE where none counts.

    Raises:
        CorruptImage: the image or the mask cannot be read.
        DataError: as `label_map`, or the mask has another size than the image.
        Changed: the mask changed after it was listed.
    """
    mask, image = masks.root / masks.paths[row], images.root / images.paths[row]
    labels = label_map(masks.stored(row), str(mask), classes, values)
    width, height = header_size(image)
    if labels.shape != (height, width):
        raise DataError(
            f"{mask}: has {labels.shape[1]}x{labels.shape[0]} pixels, but its image {image.name} {width}x{height}; give a "
            "mask of the image's size"
        )
    return labels
