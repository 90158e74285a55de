"""The embedded default: rendered scenes in the real layouts, made on first use, the same on every machine.

A class is a shape filled with a texture. What varies within a class is what Table 9's augmentations cover, and no more:
scale (threefold), place, proportions, brightness, contrast, sharpness. All pictures have the same muted tint: colour
cannot identify a picture, and instance discrimination has to look at shape and texture.

The folder made is a data root: `imagenet/` and `imagenet100/` (image folders), `voc/VOCdevkit/VOC2007/` (XML, per-class
lists, difficult objects), `coco/` (polygons, gaps in the category ids), `places205/` (csv), `inat18/` (JSON),
`stl10/stl10_binary/` (raw pixels, folds).
"""

from __future__ import annotations

import json
import shutil
import tempfile
import xml.etree.ElementTree as ET
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from filelock import FileLock
from PIL import Image

from core.artifacts import make_folder, writing
from core.cache import cache_folder
from core.progress import say

VERSION = 6
MARKER = "DEMO.json"  # lies in the data root, names the version: a folder without it is not complete
SEED = 20110
SIDE = 96  # pixels of a classification scene
SCENE = (160, 128)  # width and height of a detection scene
PER_CLASS = {"train": 200, "val": 100}
CLASSES = ("arch", "brick", "cross", "disc", "gear", "kite", "leaf", "ring", "star", "tile")


@dataclass(frozen=True)
class Placed:
    """One object of a scene."""

    label: int
    polygon: np.ndarray  # (P, 2) float, pixels
    box: tuple[float, float, float, float]  # x0, y0, x1, y1, clipped to the scene
    difficult: bool


def root() -> Path:
    """The demo's data root, made now if it is not there yet; safe to call from several processes at once.

    Raises:
        BackbenchError: the cache folder cannot be written.
    """
    final = cache_folder() / f"demo-v{VERSION}"
    if (final / MARKER).exists():
        return final
    make_folder(cache_folder())
    with writing(final), FileLock(str(final) + ".lock"):
        if (final / MARKER).exists():
            return final
        say(f"making the demo data set in {final} (once, a few seconds)")
        temporary = Path(tempfile.mkdtemp(dir=cache_folder(), prefix="demo-"))
        try:
            make(temporary)
            shutil.rmtree(final, ignore_errors=True)
            temporary.rename(final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return final


def make(folder: Path) -> None:
    """Write every layout below `folder`."""
    _make_image_folder(folder / "imagenet", CLASSES, PER_CLASS)
    _make_image_folder(folder / "imagenet100", CLASSES[:4], {"train": 20, "val": 10})
    _make_stl10(folder / "stl10" / "stl10_binary")
    _make_voc(folder / "voc" / "VOCdevkit" / "VOC2007")
    _make_coco(folder / "coco")
    _make_places205(folder / "places205")
    _make_inat18(folder / "inat18")
    (folder / MARKER).write_text(json.dumps({"version": VERSION, "what": "rendered demo scenes, not photographs"}))


def is_demo(folder: Path) -> bool:
    """Whether a data set's folder lies in a demo data root."""
    return any((parent / MARKER).exists() for parent in (Path(folder), *list(Path(folder).parents)[:3]))


# ---------------------------------------------------------------- pixels


def texture(label: int, u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The class's texture at coordinates (u, v), in periods; values about -1 to 1. None is the mirror of another."""
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
    """The class's shape as a polygon (P, 2) within the unit square about the origin."""
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
    """One to four objects, some over the edge or behind another: pixels and what is where, back to front."""
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


def _rng(*key: str | int) -> np.random.Generator:
    words = [SEED] + [zlib.crc32(str(k).encode()) for k in key]
    return np.random.default_rng(words)


def _save(path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(path, quality=90)


# ---------------------------------------------------------------- layouts


def _make_image_folder(folder: Path, classes: Sequence[str], per_class: Mapping[str, int]) -> None:
    for split, count in per_class.items():
        for label, name in enumerate(classes):
            target = make_folder(folder / split / name)
            for i in range(count):
                _save(target / f"{name}_{i:04d}.jpg", render_single(label, _rng(folder.name, split, label, i)))


def _make_stl10(folder: Path) -> None:
    make_folder(folder)
    (folder / "class_names.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    per_class = {"train": 20, "test": 10, "unlabeled": 10}
    for split, count in per_class.items():
        keys = [(label, i) for i in range(count) for label in range(len(CLASSES))]  # classes take turns
        pixels = np.stack([render_single(label, _rng("stl10", split, label, i)) for label, i in keys])
        pixels.transpose(0, 3, 2, 1).tofile(folder / f"{split}_X.bin")  # planes of colours, each column by column
        if split != "unlabeled":
            np.array([label + 1 for label, _ in keys], np.uint8).tofile(folder / f"{split}_y.bin")
    rows = 20 * len(CLASSES)
    folds = [
        _rng("stl10", "fold", k).permutation(rows)[: rows // 5] for k in range(10)
    ]  # a fifth each, as the real ones
    (folder / "fold_indices.txt").write_text("".join(f"{' '.join(map(str, sorted(fold)))}\n" for fold in folds))


def _make_voc(folder: Path) -> None:
    lists, pictures, notes = (make_folder(folder / n) for n in ("ImageSets/Main", "JPEGImages", "Annotations"))
    for split, first, count in (("trainval", 1, 100), ("test", 101, 100)):
        states: dict[str, dict[int, int]] = {}
        for number in range(first, first + count):
            name = f"{number:06d}"
            pixels, placed = render_scene(_rng("voc", number))
            _save(pictures / f"{name}.jpg", pixels)
            ET.ElementTree(_voc_xml(name, placed)).write(notes / f"{name}.xml")
            states[name] = {
                label: 1 if any(not p.difficult for p in placed if p.label == label) else 0
                for label in {p.label for p in placed}
            }
        (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in states))
        for label, cls in enumerate(CLASSES):  # 1 present, 0 only as a difficult object, -1 absent
            rows = [f"{name} {state.get(label, -1):2d}\n" for name, state in states.items()]
            (lists / f"{cls}_{split}.txt").write_text("".join(rows))


def _voc_xml(name: str, placed: list[Placed]) -> ET.Element:
    root_node = ET.Element("annotation")
    ET.SubElement(root_node, "folder").text = "VOC2007"
    ET.SubElement(root_node, "filename").text = f"{name}.jpg"
    size = ET.SubElement(root_node, "size")
    for key, value in zip(("width", "height", "depth"), (*SCENE, 3), strict=True):
        ET.SubElement(size, key).text = str(value)
    for item in placed:
        node = ET.SubElement(root_node, "object")
        ET.SubElement(node, "name").text = CLASSES[item.label]
        ET.SubElement(node, "truncated").text = "0"
        ET.SubElement(node, "difficult").text = str(int(item.difficult))
        box = ET.SubElement(node, "bndbox")
        x0, y0, x1, y1 = item.box  # VOC counts pixels from 1 and includes the last one
        for key, value in zip(("xmin", "ymin", "xmax", "ymax"), (x0 + 1, y0 + 1, x1, y1), strict=True):
            ET.SubElement(box, key).text = str(max(1, round(value)))
    return root_node


def _make_coco(folder: Path) -> None:
    categories = [{"id": 3 * i + 1, "name": name, "supercategory": "shape"} for i, name in enumerate(CLASSES)]
    for split, count in (("train2017", 100), ("val2017", 60)):
        pictures = make_folder(folder / split)
        images, annotations = [], []
        for i in range(count):
            number = i + (1 if split == "train2017" else 100_001)
            pixels, placed = render_scene(_rng("coco", split, i))
            _save(pictures / f"{number:012d}.jpg", pixels)
            images.append({"id": number, "file_name": f"{number:012d}.jpg", "width": SCENE[0], "height": SCENE[1]})
            for item in placed:
                x0, y0, x1, y1 = item.box
                area = float(cv2.contourArea(item.polygon.astype(np.float32)))
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": categories[item.label]["id"],
                        "segmentation": [[round(float(c), 2) for c in item.polygon.reshape(-1)]],
                        "bbox": [round(c, 2) for c in (x0, y0, x1 - x0, y1 - y0)],
                        "area": round(area, 2),
                        "iscrowd": 0,
                    }
                )
        target = make_folder(folder / "annotations") / f"instances_{split}.json"
        target.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))


def _make_places205(folder: Path) -> None:
    for split, count in (("train", 20), ("val", 10)):
        rows = []
        for label, name in enumerate(CLASSES):
            make_folder(folder / "images" / name[0] / name)
            for i in range(count):
                path = f"{name[0]}/{name}/{split}_{i:04d}.jpg"
                _save(folder / "images" / path, render_single(label, _rng("places205", split, label, i)))
                rows.append(f"{path} {label}\n")
        (folder / f"{split}_places205.csv").write_text("".join(rows))


def _make_inat18(folder: Path) -> None:
    for split, count in (("train", 20), ("val", 10)):
        images, annotations = [], []
        for label in range(len(CLASSES)):
            make_folder(folder / "train_val2018" / "Shapes" / str(label))
            for i in range(count):
                number = 1000 * len(images) + (1 if split == "train" else 7)  # the ids have gaps, as the real ones do
                name = f"train_val2018/Shapes/{label}/{split}_{i:04d}.jpg"
                _save(folder / name, render_single(label, _rng("inat18", split, label, i)))
                images.append({"id": number, "file_name": name, "width": SIDE, "height": SIDE})
                annotations.append({"id": number, "image_id": number, "category_id": label})
        categories = [{"id": i, "name": name, "supercategory": "Shapes"} for i, name in enumerate(CLASSES)]
        record = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"{split}2018.json").write_text(json.dumps(record))
