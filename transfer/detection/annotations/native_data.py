"""Write a run's images in COCO's format for both engines' native configurations: `train.json` and `test.json`."""

from __future__ import annotations

import json
from typing import Any

from backbench.files.atomic import atomic_write_text
from transfer.detection.annotations.split import DetectionSplit
from transfer.detection.job import Job


def write(train: DetectionSplit, job: Job) -> None:
    """Write `train.json`, and `test.json` if the job has a test split, to the job's folder. Equal files stay.

    A federated test split is left out, so that no tool computes COCO's metric on it.
    """
    for name, split in (("train.json", train), ("test.json", job.test)):
        if split is not None and not (name == "test.json" and split.frequencies):
            file, text = job.folder / name, json.dumps(in_coco_format(split, difficult=name == "train.json"))
            if not (file.is_file() and file.read_bytes() == text.encode()):
                atomic_write_text(file, text)


def in_coco_format(split: DetectionSplit, *, difficult: bool) -> dict[str, Any]:
    """Return the split in COCO's format, images numbered from 1 in the split's order.

    Args:
        difficult: treat difficult objects like all others, as in training; else mark them as crowds, which no metric counts.
    """
    images: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    for i, picture in enumerate(split.pictures):
        images.append(
            {"id": i + 1, "file_name": split.source.paths[i], "width": picture.width, "height": picture.height}
        )
        for o in picture.instances:
            x0, y0, x1, y1 = o.box
            box = [x0, y0, x1 - x0, y1 - y0]
            record = {"id": len(objects) + 1, "image_id": i + 1, "category_id": o.label + 1, "bbox": box,
                      "area": box[2] * box[3], "iscrowd": int(o.crowd or (o.difficult and not difficult))}  # fmt: skip
            objects.append(record | ({"segmentation": o.mask} if o.mask is not None else {}))
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(split.classes)]
    return {"images": images, "annotations": objects, "categories": categories}
