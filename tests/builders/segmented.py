"""Rendered scenes as segmentation splits, and a specification small enough for a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from backbench.data.demo import render
from backbench.data.splits import Files
from transfer.segmentation.annotations.split import SegmentationSplit
from transfer.segmentation.spec import SegmentationSpec

CLASSES = ("background", *render.CLASSES)


def scenes(folder: Path, count: int, *, first: int = 0, name: str = "train") -> SegmentationSplit:
    """`count` pictures of 160 x 128 pixels with one to four shapes each, and their masks."""
    for part in ("images", "masks"):
        (folder / part / name).mkdir(parents=True, exist_ok=True)
    names = [f"{name}/{number}.png" for number in range(first, first + count)]
    for number, file in enumerate(names, start=first):
        pixels, placed = render.render_scene(np.random.default_rng(number))
        mask = Image.new("L", render.SCENE, 0)
        for shape in placed:  # back to front
            ImageDraw.Draw(mask).polygon([tuple(point) for point in shape.polygon.tolist()], fill=shape.label + 1)
        Image.fromarray(pixels).save(folder / "images" / file)
        mask.save(folder / "masks" / file)
    images, masks = (Files(folder / part, tuple(names)) for part in ("images", "masks"))
    return SegmentationSplit("scenes", name, images, masks, CLASSES)


def tiny(head: str = "fcn", **fields: Any) -> SegmentationSpec:
    """A few iterations on crops of 64 pixels, with a narrow head."""
    values = {
        "head": head, "channels": 16, "dropout": 0.0, "auxiliary": False, "iterations": 5, "batch": 4, "lr": 0.01,
        "resize": (160, 80), "crop": (64, 64), "resize_test": (160, 80),
    }  # fmt: skip
    if head == "fcn":
        values |= {"strides": (1, 2, 2, 1), "dilations": (1, 1, 1, 2), "head_dilation": 2}
    return SegmentationSpec.model_validate({**values, **fields})
