"""Draw test images with their true objects beside the detections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from backbench.errors import ConfigError
from backbench.files.atomic import atomic_write
from transfer.detection.annotations.split import Detections, DetectionSplit

_WIDTH, _GAP, _FONT, _TITLE = 1200, 8, 12, 20  # pixels
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
    """Write a PNG, 1200 pixels wide: each image with its objects (green), and beside it with detections above a score.

    Difficult objects and crowds are marked; masks are translucent. Two images a row, or one when it is the only one.

    Raises:
        ConfigError: no indices, or one outside the split.
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


@dataclass(frozen=True)
class _Shown:
    """A box in the original image's pixels, with its mask, text and colour."""

    box: Any
    mask: Any
    text: str
    colour: tuple[int, int, int]


def _pair(split: DetectionSplit, found: Detections, index: int, side: int, threshold: float) -> list[Image.Image]:
    """Return the image with its objects and the image with its detections, both `side` wide."""
    picture, image = split.pictures[index], split.source.pil(index)
    objects = []
    for item in picture.instances:
        kind = " (difficult)" if item.difficult else " (crowd)" if item.crowd else ""
        objects.append(_Shown(item.box, item.mask, f"{split.classes[item.label]}{kind}", _GREEN))
    scores = np.asarray(found.scores)
    shown = []
    for row in np.flatnonzero(scores >= threshold):
        label, mask = int(found.labels[row]), found.masks[row] if found.masks is not None else None
        text = f"{split.classes[label]} {scores[row]:.2f}"
        shown.append(_Shown(found.boxes[row], mask, text, _COLOURS[label % len(_COLOURS)]))
    titles = f"{picture.id}, objects: {len(objects)}", f"found with score >= {threshold:g}: {len(shown)}"
    return [_panel(image, items, title, side) for items, title in zip((objects, shown), titles, strict=True)]


def _panel(image: Image.Image, items: Sequence[_Shown], title: str, side: int) -> Image.Image:
    """Return the image, `side` wide, with a title, masks, boxes over the masks and names over the boxes."""
    scale = side / image.width
    drawn = image.resize((side, max(1, round(image.height * scale))), Image.Resampling.BILINEAR)
    for item in items:
        if item.mask is not None:
            drawn.paste(Image.new("RGB", drawn.size, item.colour), mask=_alpha(item.mask, drawn.size, scale))
    pen, boxes = ImageDraw.Draw(drawn), [[float(value) * scale for value in item.box] for item in items]
    for item, (x0, y0, x1, y1) in zip(items, boxes, strict=True):
        pen.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=item.colour, width=2)
    taken: list[tuple[float, float, float, float]] = []
    font = ImageFont.load_default(_FONT)
    for item, box in zip(items, boxes, strict=True):
        place = _place(box, pen.textlength(item.text, font=font) + 4, drawn.size, taken)
        taken.append(place)
        pen.rectangle(place, fill=item.colour)
        pen.text((place[0] + 2, place[1]), item.text, fill="white" if sum(item.colour) < 420 else "black", font=font)
    page = Image.new("RGB", (side, drawn.height + _TITLE), "white")
    page.paste(drawn, (0, _TITLE))
    ImageDraw.Draw(page).text((2, 2), title, fill=(51, 51, 51), font=font)
    return page


def _place(
    box: Sequence[float], width: float, size: tuple[int, int], taken: Sequence[tuple[float, float, float, float]]
) -> tuple[float, float, float, float]:
    """Return the place of a box's name: above it, else the first place at its edges that hides no other name."""
    height = _FONT + 3
    x0, y0, x1, y1 = box
    places = []
    for x, y in ((x0, y0 - height), (x0, y0), (x0, y1), (x0, y1 - height), (x1 - width, y0), (x1 - width, y1)):
        x, y = max(0, min(x, size[0] - width - 1)), max(0, min(y, size[1] - height - 1))
        places.append((x, y, x + width, y + height))
    free = [p for p in places if not any(p[0] < t[2] and t[0] < p[2] and p[1] < t[3] and t[1] < p[3] for t in taken)]
    return (free or places)[0]


def _alpha(mask: Any, size: tuple[int, int], scale: float) -> Image.Image:
    """Return the (W, H) opacity of a COCO mask: polygons in the original's pixels, or RLE."""
    if isinstance(mask, list):
        alpha = Image.new("L", size)
        for polygon in mask:
            ImageDraw.Draw(alpha).polygon([value * scale for value in polygon], fill=110)
        return alpha
    from pycocotools import mask as coco_mask

    packed = coco_mask.frPyObjects(mask, *mask["size"]) if isinstance(mask["counts"], list) else mask
    return Image.fromarray(coco_mask.decode(packed) * np.uint8(110)).resize(size, Image.Resampling.BILINEAR)
