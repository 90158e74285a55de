"""Rendered scenes: a class is a shape filled with a texture.

What varies within a class is what Table 9's augmentations cover: scale (threefold), place, proportions, brightness,
contrast, sharpness. All pictures have the same muted tint: colour cannot identify a picture, and instance discrimination
has to look at shape and texture.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

SEED = 20110
SIDE = 96  # pixels of a classification scene
SCENE = (160, 128)  # width and height of a detection scene
CLASSES = ("arch", "brick", "cross", "disc", "gear", "kite", "leaf", "ring", "star", "tile")


@dataclass(frozen=True)
class Placed:
    """One object of a scene."""

    label: int
    polygon: np.ndarray  # (P, 2) float, pixels
    box: tuple[float, float, float, float]  # x0, y0, x1, y1, clipped to the scene
    difficult: bool


def texture(label: int, u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the class's texture at coordinates (u, v) in periods, about -1 to 1. No texture mirrors another one."""
    u, v = u + rng.uniform(), v + rng.uniform()
    du, dv = (u % 1) - 0.5, (v % 1) - 0.5
    wave_u, wave_v = np.sin(2 * np.pi * u), np.sin(2 * np.pi * v)
    patterns: tuple[Callable[[], np.ndarray], ...] = (
        lambda: np.tanh(4 * wave_v),  # horizontal bars
        lambda: np.where((np.abs(dv) > 0.42) | (np.abs((u + 0.5 * (np.floor(v) % 2)) % 1 - 0.5) > 0.45), 1.0, -0.7),
        lambda: np.where((np.abs(du) < 0.12) | (np.abs(dv) < 0.12), 1.0, -0.5),  # plaid lines
        lambda: np.tanh(8 * (0.3 - np.hypot(du, dv))),  # dots
        lambda: np.tanh(4 * wave_u),  # vertical bars
        lambda: np.sign(wave_u * wave_v),  # checks
        lambda: np.tanh(4 * np.sin(2 * np.pi * (v + np.abs(2 * (u % 1) - 1)))),  # chevrons
        lambda: np.tanh(12 * (0.09 - np.abs(np.hypot(du, dv) - 0.32))),  # rings
        lambda: np.where(np.abs(du) + np.abs(dv) < 0.3, 1.0, -0.6),  # lozenges
        lambda: np.tanh(3 * (np.sin(2 * np.pi * (u + 0.4 * wave_v)) + np.sin(2 * np.pi * (v + 0.4 * wave_u)))),  # waves
    )
    return patterns[label]()


def outline(label: int, rng: np.random.Generator) -> np.ndarray:
    """Return the class's shape as a polygon (P, 2) within the unit square around the origin."""
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    radius: dict[str, Callable[[], np.ndarray]] = {
        "disc": lambda: np.ones_like(t),
        "ring": lambda: 1 - 0.15 * np.cos(2 * t),
        "star": lambda: 0.72 + 0.28 * np.cos(5 * t),
        "gear": lambda: 0.85 + 0.15 * np.sign(np.cos(8 * t)),
        "leaf": lambda: 0.55 + 0.45 * np.abs(np.cos(t)) ** 1.5,
        "arch": lambda: np.where(np.sin(t) > 0, 1.0, 0.8 / np.maximum(np.abs(np.sin(t)), np.abs(np.cos(t)))),
        "brick": lambda: np.minimum(
            1 / np.maximum(np.abs(np.cos(t)), 1e-3), 0.55 / np.maximum(np.abs(np.sin(t)), 1e-3)
        ),
        "tile": lambda: 0.85 / np.maximum(np.abs(np.cos(t)), np.abs(np.sin(t))),
        "kite": lambda: 1 / (np.abs(np.cos(t)) + np.abs(np.sin(t))),
        "cross": lambda: np.where(np.abs(np.sin(2 * t)) < 0.75, 1.0, 0.5),
    }
    r = radius[CLASSES[label]]()
    turn = rng.uniform(-0.15, 0.15)
    return np.stack([r * np.cos(t + turn), r * np.sin(t + turn)], axis=1)


def render_single(label: int, rng: np.random.Generator) -> np.ndarray:
    """One object that fills most of a (SIDE, SIDE, 3) uint8 scene."""
    canvas = _ground(SIDE, SIDE, rng)
    size = rng.uniform(0.42, 0.62) * SIDE
    centre = np.array([rng.uniform(0.42, 0.58), rng.uniform(0.42, 0.58)]) * SIDE
    _paint(canvas, label, centre, size, rng)
    return _finish(canvas, rng)


def render_scene(rng: np.random.Generator) -> tuple[np.ndarray, list[Placed]]:
    """Draw one to four objects, some cut by the border or covered; return pixels and the objects, back to front."""
    width, height = SCENE
    canvas = _ground(width, height, rng)
    placed = []
    for _ in range(int(rng.integers(1, 5))):
        label = int(rng.integers(len(CLASSES)))
        size = rng.uniform(0.14, 0.34) * height
        centre = np.array([rng.uniform(0.1, 0.9) * width, rng.uniform(0.1, 0.9) * height])
        polygon = _paint(canvas, label, centre, size, rng)
        x0, y0 = np.maximum(polygon.min(axis=0), 0)
        x1, y1 = np.minimum(polygon.max(axis=0), [width, height])
        visible = (x1 - x0) * (y1 - y0) / np.prod(np.ptp(polygon, axis=0))
        difficult = bool(visible < 0.7 or size < 0.17 * height)
        clipped = np.clip(polygon, 0, [width, height])
        placed.append(Placed(label, clipped, (float(x0), float(y0), float(x1), float(y1)), difficult))
    return _finish(canvas, rng), placed


def _ground(width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """Smooth clutter in the common palette: (height, width) float, about -1 to 1."""
    canvas = np.zeros((height, width))
    for cells in (3, 7):
        noise = rng.normal(size=(cells, cells)).astype(np.float32)
        canvas += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC) * (0.5 if cells == 3 else 0.25)
    return canvas


def _paint(canvas: np.ndarray, label: int, centre: np.ndarray, size: float, rng: np.random.Generator) -> np.ndarray:
    """Draw one object onto the canvas; returns its polygon in pixels."""
    polygon = outline(label, rng) * size * rng.uniform(0.85, 1.15, size=2) + centre
    mask = np.zeros(canvas.shape, np.uint8)
    cv2.fillPoly(mask, [np.round(polygon * 16).astype(np.int32)], 255, lineType=cv2.LINE_AA, shift=4)
    y, x = np.mgrid[: canvas.shape[0], : canvas.shape[1]].astype(np.float64)
    period = size * rng.uniform(0.14, 0.5)  # more than threefold: scale is a nuisance that crops cover
    turn = rng.uniform(-0.12, 0.12)
    u = ((x - centre[0]) * np.cos(turn) - (y - centre[1]) * np.sin(turn)) / period
    v = ((x - centre[0]) * np.sin(turn) + (y - centre[1]) * np.cos(turn)) / period
    fill = texture(label, u, v, rng) * rng.uniform(0.6, 1.1) + rng.uniform(-0.4, 0.4)
    alpha = mask / 255.0
    canvas *= 1 - alpha
    canvas += alpha * fill
    return polygon


def _finish(canvas: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Light, blur, grain and the common muted tint: (H, W) float to (H, W, 3) uint8."""
    canvas = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.3, 1.2))
    grey = 128 + rng.uniform(-45, 45) + rng.uniform(30, 75) * canvas + rng.normal(0, 4, canvas.shape)
    tint = np.array([1.06, 1.0, 0.94])  # the same for every picture
    return np.clip(grey[..., None] * tint, 0, 255).astype(np.uint8)


def seeded(*key: str | int) -> np.random.Generator:
    words = [SEED] + [zlib.crc32(str(k).encode()) for k in key]
    return np.random.default_rng(words)
