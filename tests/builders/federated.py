"""Small data sets in LVIS v1's layout, and random detections in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from transfer.detection.annotations.split import Detections, DetectionSplit

CATEGORIES = {2: ("acorn", "r"), 5: ("cup", "c"), 9: ("bus", "f"), 11: ("fig", "r")}  # id -> name, frequency
WIDTH, HEIGHT = 60, 40


def rectangle(x: float, y: float, w: float, h: float) -> list[list[float]]:
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def record(images: int, rng: np.random.Generator, folder: str) -> dict[str, Any]:
    """Images with zero to four objects; of the other classes, some were looked for, and some objects are not annotated."""
    made: dict[str, Any] = {"images": [], "annotations": []}
    made["categories"] = [{"id": i, "name": n, "frequency": f} for i, (n, f) in CATEGORIES.items()]
    for number in range(1, images + 1):
        present = set()
        for _ in range(int(rng.integers(0, 5))):
            x, y = rng.integers(0, 40), rng.integers(0, 20)
            w, h = rng.integers(4, 20, 2)
            category = int(rng.choice([2, 5, 9]))  # nobody has category 11
            present.add(category)
            box = [float(v) for v in (x, y, w, h)]
            made["annotations"].append({
                "id": len(made["annotations"]) + 1, "image_id": number, "category_id": category, "bbox": box,
                "area": float(w * h), "segmentation": rectangle(*box),
            })  # fmt: skip
        others = sorted(set(CATEGORIES) - present)
        made["images"].append({
            "id": number, "width": WIDTH, "height": HEIGHT,
            "coco_url": f"http://images.cocodataset.org/{folder}/{number:012d}.jpg",
            "neg_category_ids": [c for c in others if rng.random() < 0.5],
            "not_exhaustive_category_ids": [c for c in sorted(present) if rng.random() < 0.3],
        })  # fmt: skip
    return made


def write(root: Path, *, train: int = 6, val: int = 12, seed: int = 0) -> Path:
    """Write annotations and images of both splits; the validation images lie in COCO's train2017, as some of LVIS's do."""
    rng = np.random.default_rng(seed)
    (root / "annotations").mkdir(parents=True)
    for split, count, folder in (("train", train, "val2017"), ("val", val, "train2017")):
        made = record(count, rng, folder)
        (root / f"annotations/lvis_v1_{split}.json").write_text(json.dumps(made))
        (root / folder).mkdir()
        for image in made["images"]:
            Image.new("RGB", (WIDTH, HEIGHT)).save(root / folder / image["coco_url"].rsplit("/", 1)[1])
    return root


def guesses(split: DetectionSplit, rng: np.random.Generator, *, each: int = 12) -> list[Detections]:
    """Detections near objects and anywhere, of every class, with rectangles as masks and many equal scores."""
    from pycocotools import mask as coco_mask

    found = []
    for picture in split.pictures:
        boxes, labels = [], []
        for item in picture.instances:
            for _ in range(2):
                boxes.append(np.clip(np.array(item.box) + rng.integers(-3, 4, 4), 0, [WIDTH, HEIGHT, WIDTH, HEIGHT]))
                labels.append(item.label if rng.random() < 0.8 else int(rng.integers(0, 4)))
        for _ in range(each):
            x, y = rng.integers(0, 40), rng.integers(0, 20)
            boxes.append(np.array([x, y, x + rng.integers(4, 20), y + rng.integers(4, 20)]))
            labels.append(int(rng.integers(0, 4)))
        kept = [row for row, box in enumerate(boxes) if box[2] > box[0] and box[3] > box[1]]
        rows = np.array([boxes[row] for row in kept], np.float32)
        scores = np.round(rng.random(len(kept)), 1).astype(np.float32)
        order = np.argsort(-scores, kind="stable")
        masks = []
        for x0, y0, x1, y1 in rows[order].tolist():
            packed = coco_mask.merge(coco_mask.frPyObjects(rectangle(x0, y0, x1 - x0, y1 - y0), HEIGHT, WIDTH))
            masks.append({"size": [HEIGHT, WIDTH], "counts": packed["counts"].decode("ascii")})
        found.append(Detections(rows[order], scores[order], np.array([labels[kept[row]] for row in order]), masks))
    return found
