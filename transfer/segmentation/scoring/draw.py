"""Draw test images beside their true and their predicted classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from backbench.errors import ConfigError
from backbench.files.atomic import atomic_write
from backbench.printable import printable
from transfer.segmentation.annotations.split import IGNORE, SegmentationSplit

_WIDTH, _GAP, _FONT, _TITLE = 1200, 8, 12, 20  # pixels
_OPACITY = 0.65  # of the classes over the image
_IGNORED = (224, 224, 192)
_MOST = 40  # classes in the legend


def grid(split: SegmentationSplit, predicted: Sequence[np.ndarray], rows: Sequence[int], file: Path) -> None:
    """Write a PNG, 1200 pixels wide: each image, its true and its predicted classes, and below a legend of the classes.

    Args:
        predicted: (H, W) classes of each of the rows, of any size: they are stretched over the image.
        rows: of the split.

    Raises:
        ConfigError: no rows, one outside the split, or another number of predictions.
        DataError: an image or a mask cannot be read.
    """
    if not len(rows) or len(rows) != len(predicted) or not all(0 <= row < len(split) for row in rows):
        raise ConfigError(
            f"cannot draw images {list(rows)} of {split.dataset} {split.split} with {len(predicted)} predictions: it has 0 "
            f"to {len(split) - 1}"
        )
    side = (_WIDTH - 4 * _GAP) // 3
    lines: list[list[Image.Image]] = []
    seen: set[int] = set()
    for row, found in zip(rows, predicted, strict=True):
        image, truth = split.source.pil(row), split.label(row)
        seen |= {*np.unique(truth).tolist(), *np.unique(found).tolist()}
        titles = (Path(split.source.name(row)).stem, "true classes", "predicted classes")
        panels = (image, _overlaid(image, truth), _overlaid(image, found))
        lines.append([_titled(panel, title, side) for panel, title in zip(panels, titles, strict=True)])
    legend = _legend(sorted(seen), split.classes)
    heights = [line[0].height for line in lines]
    page = Image.new("RGB", (_WIDTH, sum(heights) + _GAP * (len(lines) + 2) + legend.height), "white")
    top = _GAP
    for line, height in zip(lines, heights, strict=True):
        for column, panel in enumerate(line):
            page.paste(panel, (_GAP + column * (side + _GAP), top))
        top += height + _GAP
    page.paste(legend, (0, top))
    atomic_write(file, lambda out: page.save(out, format="PNG"))


def colour_of(label: int) -> tuple[int, int, int]:
    """Return VOC's colour of a label (VOCcode/VOClabelcolormap.m): its bits, from the lowest, spread over red, green, blue."""
    if label == IGNORE:
        return _IGNORED
    red, green, blue = (sum((label >> (3 * bit + part) & 1) << (7 - bit) for bit in range(3)) for part in range(3))
    return red, green, blue


def _overlaid(image: Image.Image, labels: np.ndarray) -> Image.Image:
    """Return the image under the colours of its classes."""
    palette = np.array([colour_of(label) for label in range(256)], np.uint8)
    colours = Image.fromarray(palette[labels]).resize(image.size, Image.Resampling.NEAREST)
    return Image.blend(image, colours, _OPACITY)


def _titled(panel: Image.Image, title: str, side: int) -> Image.Image:
    drawn = panel.resize((side, max(1, round(panel.height * side / panel.width))), Image.Resampling.BILINEAR)
    page = Image.new("RGB", (side, drawn.height + _TITLE), "white")
    page.paste(drawn, (0, _TITLE))
    font = ImageFont.load_default(_FONT)
    ImageDraw.Draw(page).text((2, 2), printable(title, 60), fill=(51, 51, 51), font=font)
    return page


def _legend(labels: Sequence[int], classes: Sequence[str]) -> Image.Image:
    """Return a strip with the colour and the name of each label, in columns; of many labels the first."""
    font, columns, height = ImageFont.load_default(_FONT), 6, _FONT + 8
    names = [(label, "ignored" if label == IGNORE else printable(classes[label], 24)) for label in labels[:_MOST]]
    strip = Image.new("RGB", (_WIDTH, height * -(-len(names) // columns)), "white")
    pen, width = ImageDraw.Draw(strip), (_WIDTH - 2 * _GAP) // columns
    for place, (label, name) in enumerate(names):
        x, y = _GAP + place % columns * width, place // columns * height
        pen.rectangle((x, y + 2, x + _FONT, y + 2 + _FONT), fill=colour_of(label), outline=(120, 120, 120))
        pen.text((x + _FONT + 6, y + 2), name, fill=(51, 51, 51), font=font)
    return strip
