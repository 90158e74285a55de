"""Image files of every kind, built byte by byte where Pillow cannot write them."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

SCENE = np.add.outer(np.arange(0, 120, 8), np.arange(0, 130, 10)).astype(np.uint8)  # (15, 13) grey, 0 to 232


def encoded(image, kind, **options):
    """The bytes of a file."""
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(pixels, *, photometric=None, order="<", next_page=0):
    """An uncompressed TIFF of pixels (H, W) or (H, W, C) of any type, as they are."""
    samples = 1 if pixels.ndim == 2 else pixels.shape[2]
    photometric = (1 if samples == 1 else 2) if photometric is None else photometric
    height, width = pixels.shape[:2]
    data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    sample_format = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    words, longs = [(258, [8 * pixels.dtype.itemsize] * samples), (339, [sample_format] * samples)], []
    words += [(259, [1]), (262, [photometric]), (277, [samples])]
    longs = {256: width, 257: height, 278: height, 279: len(data)}
    tags = sorted([tag for tag, _ in words] + [*longs, 273])
    behind = 8 + 2 + 12 * len(tags) + 4
    extra, entries = b"", b""
    for tag in tags:
        if tag in longs:
            entries += struct.pack(f"{order}HHII", tag, 4, 1, longs[tag])
        elif tag == 273:
            entries += struct.pack(f"{order}HHII", tag, 4, 1, behind + 12 * 2)
        else:
            values = dict(words)[tag]
            packed = struct.pack(f"{order}{len(values)}H", *values)
            if len(packed) > 4:
                place, extra = behind + len(extra), extra + packed
                packed = struct.pack(f"{order}I", place)
            entries += struct.pack(f"{order}HHI", tag, 3, len(values)) + packed.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(tags))
    return head + entries + struct.pack(f"{order}I", next_page) + extra.ljust(24, b"\0") + data


def png(header, *chunks):
    """A PNG of the given IHDR fields (width, height, depth, colour) and (name, data) chunks, with true checksums."""
    every = [(b"IHDR", struct.pack(">IIBBBBB", *header, 0, 0, 0)), *chunks, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in every
    )


def png_16(pixels):
    """A PNG of 16 bits a channel, (H, W) or (H, W, C) uint16: 1 grey, 2 with alpha, 3 colour, 4 with alpha."""
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    return png((pixels.shape[1], pixels.shape[0], 16, colour), (b"IDAT", zlib.compress(rows)))
