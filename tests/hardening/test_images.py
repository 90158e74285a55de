"""Images of every pixel type and container, and hostile ones: both decoders give the right picture, or one sentence."""

from __future__ import annotations

import resource
import struct
import time
import zlib

import numpy as np
import pytest
from pictures import SCENE, encoded, png, png_16, tiff
from PIL import Image

from backbench.data.decode import CorruptImage, decode_rgb, open_rgb

GREY = np.repeat(SCENE[:, :, None], 3, axis=2)
COLOUR = np.stack([SCENE, SCENE[::-1], 255 - SCENE], axis=2)
WIDE = SCENE.astype(np.uint16) * 257
TWELVE = SCENE.astype(np.uint16) * 16


def both(data):
    """Decode with both decoders; results are bitwise equal except for JPEG."""
    evaluated, pretrained = np.asarray(open_rgb(data, "a.img")), decode_rgb(data, "a.img")
    tolerance = 4 if data[:2] == b"\xff\xd8" else 0
    assert np.abs(evaluated.astype(int) - pretrained.astype(int)).max() <= tolerance
    return evaluated


def with_alpha(pixels):
    return np.dstack([pixels, np.full(pixels.shape[:2], 255, pixels.dtype)])


def palette(mode="P"):
    image = Image.fromarray(SCENE).convert("P")
    image.putdata(SCENE.reshape(-1).tolist())
    image.putpalette([value for grey in range(256) for value in (grey, 255 - grey, 7)])
    return image.convert(mode) if mode != "P" else image


PALETTE = np.stack([SCENE, 255 - SCENE, np.full_like(SCENE, 7)], axis=2)
CMYK = Image.fromarray(np.dstack([255 - COLOUR, np.zeros_like(SCENE)]), "CMYK")
RIGHT = {  # kind: (bytes, picture, tolerance)
    "float TIFF of 0 to 255": (tiff(SCENE.astype(np.float32)), GREY, 0),
    "float TIFF of 0 to 255, big end first": (tiff(SCENE.astype(np.float32), order=">"), GREY, 0),
    "float TIFF of 0 to 1": (tiff((SCENE / 255).astype(np.float32)), GREY, 0),
    "float TIFF, black": (tiff(np.zeros((4, 5), np.float32)), np.zeros((4, 5, 3)), 0),
    "int32 TIFF of 0 to 255": (tiff(SCENE.astype(np.int32)), GREY, 0),
    "uint32 TIFF of 0 to 255": (tiff(SCENE.astype(np.uint32)), GREY, 0),
    "int16 TIFF of 0 to 255": (tiff(SCENE.astype(np.int16)), GREY, 0),
    "int8 TIFF of 0 to 127": (tiff((SCENE // 2).astype(np.int8)), GREY // 2, 0),
    "int32 TIFF, black": (tiff(np.zeros((4, 5), np.int32)), np.zeros((4, 5, 3)), 0),
    "uint16 TIFF": (tiff(WIDE), GREY, 0),
    "uint16 TIFF, big end first": (tiff(WIDE, order=">"), GREY, 0),
    "uint16 TIFF, white is zero": (tiff(65535 - WIDE, photometric=0), GREY, 0),
    "uint16 TIFF, black": (tiff(np.zeros((4, 5), np.uint16)), np.zeros((4, 5, 3)), 0),
    "uint8 TIFF, white is zero": (tiff(255 - SCENE, photometric=0), GREY, 0),
    "uint16 colour TIFF": (tiff(COLOUR.astype(np.uint16) * 257), COLOUR, 0),
    "uint16 PNG": (png_16(WIDE), GREY, 0),
    "uint16 PNG with alpha": (png_16(with_alpha(WIDE)), GREY, 0),
    "uint16 colour PNG": (png_16(COLOUR.astype(np.uint16) * 257), COLOUR, 0),
    "uint16 colour PNG with alpha": (png_16(with_alpha(COLOUR.astype(np.uint16) * 257)), COLOUR, 0),
    "PGM of 12 bits, which it states": (b"P5 13 15 4095\n" + (SCENE * (4095 / 255)).astype(">u2").tobytes(), GREY, 1),
    "PGM of 16 bits": (b"P5 13 15 65535\n" + WIDE.astype(">u2").tobytes(), GREY, 0),
    "dim PGM of 16 bits": (b"P5 13 15 65535\n" + (WIDE // 9).astype(">u2").tobytes(), GREY / 9, 1),
    "PPM of 12 bits": (b"P6 13 15 4095\n" + (COLOUR * (4095 / 255)).astype(">u2").tobytes(), COLOUR, 1),
    "PFM of 0 to 1": (b"Pf\n13 15\n-1.0\n" + (SCENE[::-1] / 255).astype("<f4").tobytes(), GREY, 0),
    "JPEG 2000 of 16 bits": (encoded(Image.fromarray(WIDE), "JPEG2000"), GREY, 1),
    "one-bit PNG": (encoded(Image.fromarray(SCENE > 99), "PNG"), np.where(GREY > 99, 255, 0), 0),
    "one-bit TIFF": (encoded(Image.fromarray(SCENE > 99), "TIFF"), np.where(GREY > 99, 255, 0), 0),
    "palette PNG": (encoded(palette(), "PNG"), PALETTE, 0),
    "palette PNG, one index transparent": (encoded(palette(), "PNG", transparency=8), PALETTE, 0),
    "palette PNG, a table of alphas": (encoded(palette(), "PNG", transparency=bytes(range(256))), PALETTE, 0),
    "palette TIFF": (encoded(palette(), "TIFF"), PALETTE, 0),
    "palette TIFF with alpha": (encoded(palette("PA"), "TIFF"), PALETTE, 0),
    "palette GIF": (encoded(palette(), "GIF"), PALETTE, 0),
    "grey PNG with alpha": (encoded(Image.fromarray(with_alpha(SCENE), "LA"), "PNG"), GREY, 0),
    "CMYK TIFF": (encoded(CMYK, "TIFF"), COLOUR, 1),
    "CMYK JPEG of Adobe, inverted": (encoded(CMYK, "JPEG", quality=100, subsampling=0), COLOUR, 12),
    "JPEG of RGB, not YCbCr": (
        encoded(Image.fromarray(COLOUR), "JPEG", quality=100, keep_rgb=True),
        COLOUR,
        6,
    ),
    "YCbCr TIFF": (encoded(Image.fromarray(COLOUR).convert("YCbCr"), "TIFF"), COLOUR, 4),
    "LZW TIFF": (encoded(Image.fromarray(COLOUR), "TIFF", compression="tiff_lzw"), COLOUR, 0),
    "float TIFF, deflated": (encoded(Image.fromarray(SCENE.astype(np.float32)), "TIFF", compression="tiff_deflate"),
                             GREY, 0),
    "WEBP without loss": (encoded(Image.fromarray(COLOUR), "WEBP", lossless=True), COLOUR, 0),
    "BMP": (encoded(Image.fromarray(COLOUR), "BMP"), COLOUR, 0),
    "first frame of a GIF": (
        encoded(palette(), "GIF", save_all=True, append_images=[Image.new("L", (13, 15), 9)]), PALETTE, 0,
    ),
    "first page of a TIFF": (
        encoded(Image.fromarray(COLOUR), "TIFF", save_all=True, append_images=[Image.new("L", (5, 5))]), COLOUR, 0,
    ),
    "first frame of an APNG": (
        encoded(Image.fromarray(COLOUR), "PNG", save_all=True, append_images=[Image.new("RGB", (13, 15))]), COLOUR, 0,
    ),
    "first picture of an MPO": (
        encoded(Image.fromarray(GREY), "MPO", quality=100, save_all=True, append_images=[Image.new("RGB", (13, 15))]),
        GREY, 4,
    ),
    "a PNG turned by EXIF": (encoded(Image.fromarray(COLOUR), "PNG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03"
                             b"\0\0\0\x01\0\x06\0\0\0\0\0\0"), COLOUR, 0),
    "a nearly black PNG of 8 bits": (encoded(Image.fromarray(SCENE // 100), "PNG"), GREY // 100, 0),
}  # fmt: skip


@pytest.mark.parametrize("kind", RIGHT)
def test_the_right_picture(kind):
    data, picture, tolerance = RIGHT[kind]
    assert np.abs(both(data).astype(int) - np.asarray(picture).astype(int)).max() <= tolerance


NAN = SCENE.astype(np.float32)
NAN[3, 3] = np.nan
REFUSED = {
    "12 bits in a uint16 PNG": png_16(TWELVE),
    "10 bits in a uint16 PNG": png_16(TWELVE // 4),
    "14 bits in a uint16 PNG": png_16(TWELVE * 4),
    "8 bits in a uint16 PNG": png_16(SCENE.astype(np.uint16)),
    "12 bits in a uint16 TIFF": tiff(TWELVE),
    "12 bits in a uint16 TIFF, big end first": tiff(TWELVE, order=">"),
    "12 bits in an int16 TIFF": tiff(TWELVE.astype(np.int16)),
    "12 bits in an int32 TIFF": tiff(TWELVE.astype(np.int32)),
    "12 bits in a float TIFF": tiff(TWELVE.astype(np.float32)),
    "12 bits in a colour PNG": png_16(COLOUR.astype(np.uint16) * 16),
    "8 bits in a colour PNG": png_16(COLOUR.astype(np.uint16)),
    "8 bits in a colour TIFF": tiff(COLOUR.astype(np.uint16)),
    "12 bits in a colour PNG with alpha": png_16(
        np.dstack([COLOUR.astype(np.uint16) * 16, np.full(SCENE.shape, 65535, np.uint16)])
    ),
    "12 bits in a grey PNG with alpha": png_16(np.dstack([TWELVE, np.full(SCENE.shape, 65535, np.uint16)])),
    "12 bits in a colour TIFF": tiff(COLOUR.astype(np.uint16) * 16),
    "12 bits in 16 of JPEG 2000": encoded(Image.fromarray(TWELVE), "JPEG2000"),
    "16 bits in an int32 TIFF": tiff(WIDE.astype(np.int32)),
    "16 bits in a float TIFF": tiff(WIDE.astype(np.float32)),
    "float TIFF with NaN": tiff(NAN),
    "float TIFF with infinity": tiff(np.where(NAN == 8, np.inf, SCENE).astype(np.float32)),
    "float TIFF of NaN alone": tiff(np.full((4, 4), np.nan, np.float32)),
    "float TIFF of -1 to 1": tiff((SCENE / 127.5 - 1).astype(np.float32)),
    "float TIFF of 0 to 1 with an overshoot": tiff((SCENE / 230).astype(np.float32)),
    "float TIFF of 0 to 255 with fractions": tiff((SCENE * 0.98).astype(np.float32)),
    "float TIFF of zeros and ones": tiff((SCENE > 99).astype(np.float32)),
    "int16 TIFF with negative values": tiff(SCENE.astype(np.int16) - 100),
    "int8 TIFF with negative values": tiff((SCENE.astype(int) - 128).clip(-128, 127).astype(np.int8)),
    "int32 TIFF with negative values": tiff(SCENE.astype(np.int32) - 1),
    "uint32 TIFF over its whole range": tiff(SCENE.astype(np.uint32) * 2**24),
    "half floats": tiff((SCENE / 255).astype(np.float16)),
    "doubles": tiff(SCENE / 255),
    "float colour TIFF": tiff((COLOUR / 255).astype(np.float32)),
    "float TIFF, white is zero": tiff(SCENE.astype(np.float32), photometric=0),
    "PFM of 0 to 20": b"Pf\n13 15\n-1.0\n" + (SCENE / 12).astype("<f4").tobytes(),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_values_that_cannot_be_told_to_be_light_or_dark(kind):
    for decode in (open_rgb, decode_rgb):
        with pytest.raises(CorruptImage, match=r"^scan\.tif: .*convert it to 8 bits") as refused:
            decode(REFUSED[kind], "scan.tif")
        assert "\n" not in str(refused.value)
        assert "0x" not in str(refused.value)


# ---------------------------------------------------------------- hostile files


def pixels_of_png(width, height, *, row=b"\0"):
    """Return a PNG whose header claims more pixels than it has."""
    return png((width, height, 8, 2), (b"IDAT", zlib.compress(row)))


def looping_tiff():
    data = bytearray(tiff(SCENE))
    data[8 + 2 + 12 * 10 : 8 + 2 + 12 * 10 + 4] = struct.pack("<I", 8)  # the next page is this page
    return bytes(data)


ZEROS = zlib.compress(bytes(200 * 2**20))
JPEG = encoded(Image.fromarray(COLOUR), "JPEG")
PNG = encoded(Image.fromarray(COLOUR), "PNG")
HOSTILE = {
    "a PNG of 10^9 x 10^9": pixels_of_png(10**9, 10**9),
    "a PNG of 30000 x 30000": pixels_of_png(30000, 30000),
    "a PNG of 0 x 0": pixels_of_png(0, 0),
    "a PNG of 2^32-1 columns": pixels_of_png(2**32 - 1, 1),
    "a JPEG of 65535 x 65535": JPEG[: JPEG.index(b"\xff\xc0") + 5]
    + b"\xff\xff\xff\xff"
    + JPEG[JPEG.index(b"\xff\xc0") + 9 :],
    "a GIF of 65535 x 65535": b"GIF89a\xff\xff\xff\xff\x00\x00\x00,\x00\x00\x00\x00\xff\xff\xff\xff\x00\x08\x00;",
    "a BMP of 2^31-1 rows": b"BM"
    + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 2**31 - 1, 2**31 - 1, 1, 24, 0, 0, 0, 0, 0, 0),
    "a PGM of 10^9 x 10^9": b"P5 1000000000 1000000000 255\n" + bytes(10),
    "a PPM with a huge number": b"P6 " + b"9" * 5000 + b" 1 255\n",
    "a PPM whose largest value is 0": b"P5 2 2 0\n" + bytes(4),
    "a PNG with a text of 200 MB in 200 KB": png(
        (1, 1, 8, 0), (b"zTXt", b"a\0\0" + ZEROS), (b"IDAT", zlib.compress(b"\0\0"))
    ),
    "a PNG with a profile of 200 MB in 200 KB": png(
        (1, 1, 8, 0), (b"iCCP", b"a\0\0" + ZEROS), (b"IDAT", zlib.compress(b"\0"))
    ),
    "a PNG with a wrong checksum": PNG[:29] + b"\0\0\0\0" + PNG[33:],
    "a PNG of colour type 5": png((4, 4, 8, 5), (b"IDAT", zlib.compress(bytes(20)))),
    "a PNG of 3 bits": png((4, 4, 3, 0), (b"IDAT", zlib.compress(bytes(20)))),
    "a PNG without pixels": png((4, 4, 8, 0)),
    "a TIFF without entries": b"II*\0\x08\0\0\0\0\0\0\0\0\0",
    "a TIFF that points behind its end": b"II*\0\xff\xff\xff\x7f",
    "a TIFF with 65535 entries": b"II*\0\x08\0\0\0\xff\xff" + bytes(24),
    "a TIFF of 2^31 pixels": tiff(SCENE).replace(
        struct.pack("<HHII", 256, 4, 1, 13), struct.pack("<HHII", 256, 4, 1, 2**31)
    ),
    "a JPEG of one byte after its mark": b"\xff\xd8\xff",
    "a JPEG without tables": b"\xff\xd8\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00\xff\xd9",
    "a JPEG of 12 bits": JPEG.replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c"),
    "a JPEG without loss": JPEG.replace(b"\xff\xc0\x00\x11", b"\xff\xc3\x00\x11"),
    "a PNG with one flipped byte": bytes(b ^ 0x10 if i == len(PNG) - 40 else b for i, b in enumerate(PNG)),
    "a deflated TIFF with one flipped byte": (
        lambda data: bytes(b ^ 0x10 if i == 60 else b for i, b in enumerate(data))
    )(encoded(Image.fromarray(COLOUR), "TIFF", compression="tiff_deflate")),
    "a WEBP that ends in its header": b"RIFF\xff\xff\xff\xffWEBPVP8 ",
    "an AVIF that ends in its header": b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf",
    "a JPEG 2000 that ends in its header": b"\0\0\0\x0cjP  \r\n\x87\n",
    "an EPS file, which Pillow gives to Ghostscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
    "an SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "a web page": b"<!DOCTYPE html><html><body>Not found</body></html>",
    "a pointer of git-lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n",
    "a zip": b"PK\x03\x04" + bytes(100),
    "a pickle": b"\x80\x04cos\nsystem\n\x8c\x04true\x85R.",
    "zeros": bytes(10_000),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_one_sentence_soon_and_without_much_memory(kind):
    start, memory = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for decode in (open_rgb, decode_rgb):
        with pytest.raises(CorruptImage, match=r"^photo\.jpg: ") as refused:
            decode(HOSTILE[kind], "photo.jpg")
        assert "\n" not in str(refused.value)
        assert " at 0x" not in str(refused.value)
    assert time.monotonic() - start < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 300 * 2**10  # KiB


def test_a_tiff_whose_pages_go_in_a_circle_is_its_first_page():
    assert np.array_equal(both(looping_tiff()), GREY)
