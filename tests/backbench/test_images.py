"""Decoding: every mode to RGB, and every broken file to a sentence."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from pictures import png_16, tiff
from PIL import Image

from backbench.data.decode import CorruptImage, decode_rgb, open_rgb, read_bytes


def pil_pixels(data, name):
    image = open_rgb(data, name)
    assert image.mode == "RGB"
    return np.asarray(image)


decoders = pytest.mark.parametrize("decode", [pil_pixels, decode_rgb], ids=["open_rgb", "decode_rgb"])


def encode(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def smooth():
    """(60, 80, 3) uint8 without fine detail, so that JPEG changes little."""
    coarse = np.random.default_rng(0).integers(20, 235, (4, 5, 3)).astype(np.uint8)
    return cv2.resize(coarse, (80, 60), interpolation=cv2.INTER_LINEAR)


@pytest.fixture
def jpeg(smooth):
    return encode(Image.fromarray(smooth), "JPEG", quality=95)


@decoders
def test_png_is_exact_in_rgb_order(decode, smooth):
    assert np.array_equal(decode(encode(Image.fromarray(smooth), "PNG"), "x"), smooth)


@decoders
def test_jpeg_keeps_the_order_of_channels(decode):
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[...] = (250, 120, 10)
    read = decode(encode(Image.fromarray(pixels), "JPEG", quality=100, subsampling=0), "x")
    assert read.dtype == np.uint8
    assert np.abs(read.astype(int) - pixels).max() <= 3


@decoders
def test_grey_has_three_equal_channels(decode, smooth):
    grey = smooth[..., 0]
    exact = decode(encode(Image.fromarray(grey), "PNG"), "x")
    assert np.array_equal(exact, np.repeat(grey[..., None], 3, axis=2))
    lossy = decode(encode(Image.fromarray(grey), "JPEG", quality=95), "x")
    assert lossy.shape == (60, 80, 3)
    assert np.array_equal(lossy[..., 0], lossy[..., 1])
    assert np.array_equal(lossy[..., 0], lossy[..., 2])
    assert np.abs(lossy[..., 0].astype(int) - grey).max() <= 6


@decoders
def test_one_bit(decode):
    bits = np.indices((8, 8)).sum(axis=0) % 2 == 1
    read = decode(encode(Image.fromarray(bits), "PNG"), "x")
    assert np.array_equal(read, np.repeat(np.where(bits, 255, 0)[..., None], 3, axis=2))


@decoders
@pytest.mark.parametrize("transparent", [None, 1, b"\xff\x80\x00"], ids=["opaque", "one index", "a table"])
def test_palette(decode, transparent):
    colours = np.array([(255, 0, 10), (3, 200, 5), (7, 8, 250)], np.uint8)
    index = np.arange(48, dtype=np.uint8).reshape(6, 8) % 3
    image = Image.fromarray(index, "L")
    image = image.convert("P")
    image.putdata(index.reshape(-1).tolist())
    image.putpalette(colours.reshape(-1).tolist())
    options = {} if transparent is None else {"transparency": transparent}
    data = encode(image, "PNG", **options)
    assert Image.open(io.BytesIO(data)).mode == "P"
    assert np.array_equal(decode(data, "x"), colours[index])


@decoders
def test_alpha_is_dropped(decode, smooth):
    alpha = np.arange(80, dtype=np.uint8)[None].repeat(60, axis=0)
    rgba = np.dstack([smooth, alpha])
    assert np.array_equal(decode(encode(Image.fromarray(rgba), "PNG"), "x"), smooth)
    grey = np.dstack([smooth[..., 0], alpha])
    read = decode(encode(Image.fromarray(grey, "LA"), "PNG"), "x")
    assert np.array_equal(read, np.repeat(smooth[..., :1], 3, axis=2))


@decoders
def test_cmyk_jpeg(decode):
    ink = np.zeros((16, 16, 4), np.uint8)
    ink[..., 1] = 255  # magenta
    ink[..., 3] = 51  # a fifth black
    data = encode(Image.fromarray(ink, "CMYK"), "JPEG", quality=100)
    assert Image.open(io.BytesIO(data)).mode == "CMYK"
    assert np.abs(decode(data, "x").astype(int) - np.array([204, 0, 204])).max() <= 3


@decoders
def test_16_bit_grey_is_scaled_not_clipped(decode):
    deep = np.linspace(0, 65535, 64 * 4).reshape(4, 64).astype(np.uint16)
    data = encode(Image.fromarray(deep), "PNG")
    assert cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED).dtype == np.uint16
    read = decode(data, "x")
    expected = np.round(deep / 65535 * 255)
    assert np.abs(read - expected[..., None]).max() <= 1
    assert (read == 255).mean() < 0.05, "clipped to white"


@decoders
def test_16_bit_colour_is_scaled_not_clipped(decode):
    deep = np.zeros((4, 64, 3), np.uint16)
    for channel, top in enumerate((65535, 40000, 20000)):
        deep[..., channel] = np.linspace(0, top, 64)
    data = cv2.imencode(".png", deep[..., ::-1])[1].tobytes()
    assert np.abs(decode(data, "x") - deep / 257).max() <= 1


@decoders
@pytest.mark.parametrize("kind", [np.float32, np.int32, np.int16])
def test_8_bit_values_in_another_type_are_those_values(decode, smooth, kind):
    data = tiff(smooth[..., 0].astype(kind))
    assert Image.open(io.BytesIO(data)).mode in ("F", "I")
    assert np.array_equal(decode(data, "x"), np.repeat(smooth[..., :1], 3, axis=2))


@decoders
def test_fractions_of_255_are_8_bit_values(decode, smooth):
    data = tiff((smooth[..., 0] / 255).astype(np.float32))
    assert np.array_equal(decode(data, "x"), np.repeat(smooth[..., :1], 3, axis=2))


@decoders
@pytest.mark.parametrize("bits", [8, 10, 12, 14])
@pytest.mark.parametrize("write", [tiff, png_16])
@pytest.mark.parametrize("channels", [1, 3])
def test_fewer_bits_in_16_are_refused_not_black(decode, smooth, bits, write, channels):
    pixels = smooth[..., 0] if channels == 1 else smooth
    deep = (pixels.astype(np.float64) * (2**bits - 1) / 255).astype(np.uint16)
    with pytest.raises(CorruptImage, match=r"x: a 16-bit image with no value above .* convert it to 8 bits"):
        decode(write(deep), "x")


@decoders
@pytest.mark.parametrize(
    "values",
    [
        np.linspace(0, 4095, 12).reshape(3, 4),
        np.linspace(-1, 1, 12).reshape(3, 4),
        np.linspace(0, 1.02, 12).reshape(3, 4),
        np.eye(4),  # 0 and 1: black of 255, or white of 1?
        np.full((3, 4), np.nan),
    ],
    ids=["12 bits", "negative", "above 1", "zeros and ones", "NaN"],
)
def test_floats_without_a_known_white_are_refused(decode, values):
    with pytest.raises(CorruptImage, match=r"x: its pixels are floating point from .* cannot be told"):
        decode(tiff(values.astype(np.float32)), "x")


@decoders
@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int32, np.float32])
def test_a_black_image_is_black_in_every_type(decode, kind):
    assert not decode(tiff(np.zeros((3, 4), kind)), "x").any()


@decoders
@pytest.mark.parametrize("write", [tiff, png_16])
def test_a_black_image_of_16_bit_colours_is_black(decode, write):
    assert not decode(write(np.zeros((3, 4, 3), np.uint16)), "x").any()


@decoders
def test_16_bits_whose_white_is_zero_are_not_a_negative(decode):
    deep = np.linspace(0, 65535, 12).reshape(3, 4).astype(np.uint16)
    assert np.array_equal(decode(tiff(65535 - deep, photometric=0), "x")[..., 0], (deep / 257).round())


def test_no_program_is_started_for_a_file(monkeypatch):
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("Ghostscript was asked"))
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    with pytest.raises(CorruptImage, match=r"x\.jpg: not a whole image \(of no known format\)"):
        open_rgb(eps, "x.jpg")


@decoders
def test_exif_orientation_is_ignored_by_both(decode, smooth):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(Image.fromarray(smooth), "JPEG", quality=95, exif=exif)
    assert decode(data, "x").shape == (60, 80, 3)


def test_both_decoders_agree_on_ordinary_jpegs(smooth):
    for options in ({}, {"progressive": True}, {"subsampling": 0}, {"quality": 60}, {"optimize": True}):
        data = encode(Image.fromarray(smooth), "JPEG", **options)
        difference = np.abs(decode_rgb(data, "x").astype(int) - np.asarray(open_rgb(data, "x")).astype(int))
        assert difference.max() <= 4
        assert difference.mean() < 0.5
        assert np.abs(decode_rgb(data, "x").astype(int) - smooth).mean() < 6


def test_bytes_after_the_end_marker_do_not_matter(jpeg):
    assert np.array_equal(decode_rgb(jpeg + b"\0\0trailer", "x"), np.asarray(open_rgb(jpeg, "x")))


# ---------------------------------------------------------------- broken files


@decoders
@pytest.mark.parametrize("keep", [0.02, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 1}])
def test_truncated_jpeg(decode, smooth, keep, options):
    data = encode(Image.fromarray(smooth), "JPEG", quality=95, **options)
    with pytest.raises(CorruptImage, match=r"^photo\.jpg: "):
        decode(data[: int(len(data) * keep)], "photo.jpg")


@decoders
def test_a_truncation_that_opencv_would_decode_without_a_word(decode, jpeg, monkeypatch):
    # Some releases of OpenCV fill the missing part with grey and report nothing; others return None.
    monkeypatch.setattr(cv2, "imdecode", lambda *_: np.full((60, 80, 3), 128, np.uint8))
    assert (decode_rgb(jpeg, "x") == 128).all(), "a whole JPEG does go through OpenCV"
    for cut in (1, 2, 100, len(jpeg) // 2):
        with pytest.raises(CorruptImage, match="x: "):
            decode(jpeg[:-cut], "x")


@decoders
@pytest.mark.xfail(
    strict=True, reason="libjpeg only warns when the end marker comes early; neither decoder passes it on"
)
def test_a_truncated_jpeg_that_was_given_an_end_marker(decode, jpeg):
    with pytest.raises(CorruptImage):
        decode(jpeg[: len(jpeg) // 2] + b"\xff\xd9", "x")


@decoders
def test_a_jpeg_whose_opencv_decoding_fails_goes_through_pillow(decode, jpeg, monkeypatch):
    monkeypatch.setattr(cv2, "imdecode", lambda *_: None)
    assert np.array_equal(decode(jpeg, "x"), np.asarray(Image.open(io.BytesIO(jpeg))))


@decoders
def test_truncated_png(decode, smooth):
    data = encode(Image.fromarray(smooth), "PNG")
    with pytest.raises(CorruptImage, match="x: "):
        decode(data[: len(data) // 2], "x")


@decoders
@pytest.mark.parametrize(
    "data",
    [b"", b"just a text file\n", b"<html></html>", b"\xff\xd8\xff\xd9", b"\xff\xd8", b"\x89PNG\r\n\x1a\n", bytes(500)],
)
def test_what_is_no_image(decode, data):
    with pytest.raises(CorruptImage, match=r"^notes\.jpg: "):
        decode(data, "notes.jpg")


@decoders
def test_a_decompression_bomb_is_refused(decode, smooth, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(CorruptImage, match="x: "):
        decode(encode(Image.fromarray(smooth), "PNG"), "x")


def test_read_bytes(tmp_path):
    (tmp_path / "x.jpg").write_bytes(b"abc")
    assert read_bytes(tmp_path / "x.jpg") == b"abc"
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(CorruptImage, match=r"empty\.jpg: the file is empty"):
        read_bytes(tmp_path / "empty.jpg")
    with pytest.raises(CorruptImage, match=r"gone\.jpg: no such file"):
        read_bytes(tmp_path / "gone.jpg")
    with pytest.raises(CorruptImage, match="is a folder; give a file"):
        read_bytes(tmp_path)
