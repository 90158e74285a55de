"""Test images with what is in them beside what was found, for a look at a detector."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from core.artifacts import atomic_write
from core.errors import ConfigError
from transfer.detection.data import Detections, DetectionSplit

_WIDTH, _GAP, _FONT, _TITLE = 1200, 8, 14, 22  # pixels
_GREEN = (40, 200, 80)
_COLOURS = (
    (228, 60, 60),
    (60, 120, 235),
    (245, 150, 30),
    (170, 80, 200),
    (20, 180, 190),
    (235, 90, 170),
    (150, 110, 60),
)


def grid(
    split: DetectionSplit,
    detections: Sequence[Detections],
    indices: Sequence[int],
    path: Path,
    *,
    threshold: float = 0.5,
) -> None:
    """Write a PNG, 1200 pixels wide: for each image its objects (green) and, beside, detections of a score at least.

    Difficult objects and crowds are marked; masks are translucent. Two images a row, or one when it is the only one.

    Raises:
        ConfigError: no indices, or one that is no row of the split.
        DataError: an image cannot be read.
    """
    if not len(indices) or not all(0 <= index < len(split) for index in indices):
        raise ConfigError(
            f"cannot draw images {list(indices)} of {split.dataset} {split.split}: it has 0 to {len(split) - 1}"
        )
    columns = 2 if len(indices) == 1 else 4
    side = (_WIDTH - _GAP * (columns + 1)) // columns
    panels: list[Image.Image] = []
    for index in indices:
        panels += _pair(split, detections[index], index, side, threshold)
    rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    heights = [max(panel.height for panel in row) for row in rows]
    page = Image.new("RGB", (_WIDTH, sum(heights) + _GAP * (len(rows) + 1)), "white")
    top = _GAP
    for row, height in zip(rows, heights, strict=True):
        for column, panel in enumerate(row):
            page.paste(panel, (_GAP + column * (side + _GAP), top))
        top += height + _GAP
    atomic_write(path, lambda file: page.save(file, format="PNG"))


def _pair(split: DetectionSplit, found: Detections, index: int, side: int, threshold: float) -> list[Image.Image]:
    """The image with its objects, and with what was found, both `side` wide."""
    picture, image = split.pictures[index], split.source.pil(index)
    scale = side / image.width
    image = image.resize((side, max(1, round(image.height * scale))), Image.Resampling.BILINEAR)
    left = image.copy()
    for item in picture.instances:
        kind = " (difficult)" if item.difficult else " (crowd)" if item.crowd else ""
        _draw(left, item.box, item.mask, f"{split.classes[item.label]}{kind}", _GREEN, scale)
    right = image.copy()
    scores = np.asarray(found.scores)
    shown = np.flatnonzero(scores >= threshold)
    for row in shown[np.argsort(scores[shown], kind="stable")]:  # the best one on top
        label = int(found.labels[row])
        mask = found.masks[row] if found.masks is not None else None
        text = f"{split.classes[label]} {scores[row]:.2f}"
        _draw(right, found.boxes[row], mask, text, _COLOURS[label % len(_COLOURS)], scale)
    titles = f"{picture.id}: {len(picture.instances)} objects", f"{len(shown)} found, score >= {threshold:g}"
    return [_titled(panel, title) for panel, title in zip((left, right), titles, strict=True)]


def _draw(image: Image.Image, box: Any, mask: Any, text: str, colour: tuple[int, int, int], scale: float) -> None:
    """One box with its class, and its mask when there is one; in place."""
    if mask is not None:
        image.paste(Image.new("RGB", image.size, colour), mask=_alpha(mask, image.size, scale))
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(_FONT)
    x0, y0, x1, y1 = (float(value) * scale for value in box)
    pen.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=colour, width=2)
    width, height = pen.textlength(text, font=font) + 4, _FONT + 3
    x = min(max(x0, 0), max(0, image.width - width))
    y = y0 - height if y0 >= height else min(max(y0, 0), max(0, image.height - height))
    pen.rectangle((x, y, x + width, y + height), fill=colour)
    dark = sum(colour) < 3 * 140
    pen.text((x + 2, y), text, fill="white" if dark else "black", font=font)


def _alpha(mask: Any, size: tuple[int, int], scale: float) -> Image.Image:
    """(W, H) opacity of a COCO mask: polygons in the original's pixels, or RLE."""
    if isinstance(mask, list):
        alpha = Image.new("L", size)
        for polygon in mask:
            ImageDraw.Draw(alpha).polygon([value * scale for value in polygon], fill=110)
        return alpha
    from pycocotools import mask as coco_mask

    packed = coco_mask.frPyObjects(mask, *mask["size"]) if isinstance(mask["counts"], list) else mask
    return Image.fromarray(coco_mask.decode(packed) * np.uint8(110)).resize(size, Image.Resampling.BILINEAR)


def _titled(panel: Image.Image, title: str) -> Image.Image:
    page = Image.new("RGB", (panel.width, panel.height + _TITLE), "white")
    page.paste(panel, (0, _TITLE))
    ImageDraw.Draw(page).text((2, 2), title, fill=(51, 51, 51), font=ImageFont.load_default(_FONT))
    return page
