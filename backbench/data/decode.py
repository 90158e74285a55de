"""Decode the bytes of an image file to RGB pixels, or raise an error that names the fault.

The value of white must be known. PNG, PNM, JPEG 2000 and TIFF define it: 255 for 8-bit channels and 65535 for 16-bit ones.
Cameras and microscopes also store 10, 12 or 14 bits in such files, and their pictures would turn black: a picture that is
not black and uses fewer than 15 of the 16 bits is refused. No format defines white for 32-bit, signed and floating point
pixels: they are read if they are 8-bit values in another type (whole numbers from 0 to 255, or fractions of 255 from 0 to
1) and refused otherwise. They are never stretched to their own range, which would make dark pictures bright.

Files with several frames or pages (GIF, APNG, TIFF, MPO) give their first one. EXIF orientation and colour profiles are
ignored and alpha is dropped, as in torchvision's loader.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from backbench import files
from backbench.errors import DataError

Reduction = Callable[[int, int], int]  # (height, width) of an image -> 1, 2, 4 or 8
EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".ppm", ".pgm", ".pbm", ".pnm", ".bmp", ".dib", ".tif", ".tiff"}
    | {".webp", ".gif", ".jp2", ".j2k", ".avif", ".mpo"}
)
_LARGEST = 2**30  # bytes of an image file
# A part of Pillow's formats: for an EPS file it would start Ghostscript.
_FORMATS = ("JPEG", "PNG", "MPO", "PPM", "BMP", "DIB", "TIFF", "WEBP", "GIF", "JPEG2000", "AVIF")
_DIM = 2**14  # a 16-bit picture with all values below this uses 14 bits or fewer
_AGAIN = "fetch it again, or remove it"
_CONVERT = "convert it to 8 bits a channel, to the same white in all images of the data set"


class CorruptImage(DataError):
    """An image file that cannot be decoded completely, or whose value range is unknown; the text names the file."""


def read_bytes(path: Path, listed: Sequence[int] | None = None) -> bytes:
    """Return the file's bytes.

    Args:
        listed: the file's status when it was listed, if known.

    Raises:
        CorruptImage: the file is missing, empty, too large or not a regular file.
        Changed: the file changed after it was listed.
    """
    try:
        data = files.read_bytes(Path(path), limit=_LARGEST, listed=listed)
    except files.Unreadable as error:
        raise CorruptImage(str(error)) from None
    if not data:
        raise CorruptImage(f"{path}: the file is empty; {_AGAIN}")
    return data


def header_size(path: Path) -> tuple[int, int]:
    """Return width and height from the file's header; nothing is decoded. Raises CorruptImage."""
    try:
        with files.opened(path) as file, Image.open(file, formats=_formats()) as image:
            return image.size
    except files.Unreadable as error:
        raise CorruptImage(str(error)) from None
    except Exception as error:  # a stranger's bytes make decoders raise anything
        raise CorruptImage(f"{path}: not an image ({_reason(error)})") from None


def open_rgb(data: bytes, name: str) -> Image.Image:
    """Decode the whole image with Pillow into mode RGB, the input of every evaluation transform.

    Raises:
        CorruptImage: the file is truncated, is not an image, or the value of white is unknown.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=_formats())
        image.load()
        bits = _bits(image, data)
        if image.mode.startswith("I") or image.mode == "F" or _sample_format(image) not in (1, 4):
            image = Image.fromarray(_eight_bits(image, bits, name))
        elif bits > 8:
            _refuse_dim(image, data, name)
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")
        return image.convert("RGB")
    except CorruptImage:
        raise
    except UnidentifiedImageError:
        if data[:4] in (b"II*\0", b"MM\0*"):
            raise CorruptImage(
                f"{name}: not a whole image (a TIFF of a kind that is not read here); {_CONVERT}"
            ) from None
        raise CorruptImage(f"{name}: not a whole image (of no known format); {_AGAIN}") from None
    except Image.DecompressionBombError:
        raise CorruptImage(f"{name}: more pixels than an image may have; make it smaller, or remove it") from None
    except Exception as error:  # a stranger's bytes make decoders raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CorruptImage(f"{name}: not a whole image ({reason}); {_AGAIN}") from None


def decode_rgb(data: bytes, name: str, reduction: Reduction | None = None) -> np.ndarray:
    """Decode fast into (H, W, 3) uint8 RGB, the input of pretraining's views.

    OpenCV decodes grey and colour JPEGs that end with their end-of-image marker, Pillow everything else: OpenCV silently
    decodes a truncated JPEG to grey, and converts CMYK and 16-bit images differently.

    Args:
        reduction: called with the full height and width. It returns by how much both sides of a JPEG may be reduced while
            it is decoded, which saves time; the sides are then rounded up. Other formats stay whole.

    Raises:
        CorruptImage: as `open_rgb`.
    """
    if data[:2] == b"\xff\xd8" and data.endswith(b"\xff\xd9"):
        import cv2  # slow to import: `python -m backbench.data --help` needs none

        try:
            header = Image.open(io.BytesIO(data), formats=("JPEG", "MPO"))  # reads the header only
            mode, (width, height) = header.mode, header.size
        except Exception:  # `open_rgb` reports it
            mode = "unreadable"
        if mode in ("RGB", "L"):
            factor = reduction(height, width) if reduction else 1
            # OpenCV's flags of 2, 4 and 8 without the bit that asks for BGR
            reduced = {1: 0, 2: 16, 4: 32, 8: 64}[factor]
            flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION | reduced
            try:
                pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
            except cv2.error:
                pixels = None
            if pixels is not None:
                return pixels
    pixels = np.asarray(open_rgb(data, name))
    if reduction:
        reduction(*pixels.shape[:2])
    return pixels


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "of no known format"
    return " ".join(str(error).split()) or type(error).__name__


# ---------------------------------------------------------------- what white is


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _bits(image: Image.Image, data: bytes) -> int:
    """Return the bits per channel that the file states; Pillow reduces a colour picture's 16 to 8."""
    if isinstance(image, TiffImageFile):
        return max(image.tag_v2.get(258, (1,)))
    if image.format == "PNG":
        return data[24]
    if image.format == "JPEG2000" and (start := data.find(b"\xff\x4f\xff\x51")) >= 0:  # its SIZ segment
        return (data[start + 42] & 0x7F) + 1
    return 8


def _sample_format(image: Image.Image) -> int:
    """Return TIFF's sample format (1 unsigned, 2 signed, 3 floating point, 4 undefined); 1 for every other format."""
    return max(image.tag_v2.get(339, (1,))) if isinstance(image, TiffImageFile) else 1


def _eight_bits(image: Image.Image, bits: int, name: str) -> np.ndarray:
    """Convert a grey picture of a wider, signed or float type to (H, W) uint8. Raises CorruptImage: unknown white."""
    pixels = np.asarray(image)
    pixels = (pixels.view(np.int8) if image.mode == "L" else pixels).astype(
        np.float64
    )  # signed: Pillow does not report it
    stated = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    if (
        isinstance(image, TiffImageFile) and image.tag_v2.get(262) == 0
    ):  # white is zero: Pillow inverts only 8-bit pixels
        if not stated:
            raise CorruptImage(f"{name}: {image.mode} pixels whose white is zero; {_CONVERT}")
        pixels = 65535 - pixels
    if stated:
        if (
            0 < pixels.max() < _DIM and image.format != "PPM"
        ):  # this format states its largest value and is scaled by it
            raise _dim(name, f"no value above {pixels.max():g}")
        return (pixels / 257).round().astype(np.uint8)
    low, high = pixels.min(), pixels.max()  # NaN if a pixel is NaN
    if low >= 0 and high <= 255 and (pixels == np.rint(pixels)).all() and (high == 0 or high > 1 or image.mode == "I"):
        return pixels.astype(np.uint8)
    whole = np.rint(pixels * 255) if low >= 0 and high <= 1 else None
    if whole is not None and high > 0 and np.abs(pixels * 255 - whole).max() < 1e-3 and ((whole % 255) != 0).any():
        return whole.astype(np.uint8)
    kind = "floating point" if image.mode == "F" else f"{bits}-bit whole numbers, signed or without a stated white,"
    raise CorruptImage(
        f"{name}: its pixels are {kind} from {low:g} to {high:g} and not 8-bit values in another type, so what is black "
        f"and what is white cannot be told; {_CONVERT}"
    )


def _refuse_dim(image: Image.Image, data: bytes, name: str) -> None:
    """Raise CorruptImage when a colour picture of more than 8 bits a channel is not black and uses fewer than 15 of 16.

    Pillow keeps a channel's upper 8 bits. Where these are zero, the lower bits decide whether the picture is black.
    """
    colours = [band for band in image.getbands() if band not in ("A", "X")]
    brightest = max(int(np.asarray(image.getchannel(band)).max()) for band in colours)
    if brightest >= _DIM >> 8:
        return
    import cv2

    whole = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if brightest == 0 else None
    if brightest or whole is None or whole.reshape(*whole.shape[:2], -1)[..., : len(colours)].any():
        raise _dim(name, f"no value above {brightest * 256 + 255}")


def _dim(name: str, found: str) -> CorruptImage:
    return CorruptImage(
        f"{name}: a 16-bit image with {found} of 65535: are these 10, 12 or 14 bits in 16? They would be almost black; "
        f"{_CONVERT}"
    )
