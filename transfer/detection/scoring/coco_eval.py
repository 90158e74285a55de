"""COCO's average precision of boxes and masks with pycocotools (Lin et al. 2014, https://cocodataset.org/#detection-eval)."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from backbench.errors import DataError
from transfer.detection.annotations.coco_objects import whole_box
from transfer.detection.annotations.split import Detections, DetectionSplit
from transfer.detection.scoring.voc_eval import check

_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def evaluate(split: DetectionSplit, detections: Sequence[Detections], *, masks: bool = False) -> dict[str, float]:
    """Return `box_AP`, `box_AP50`, `box_AP75`, `box_APs`, `box_APm`, `box_APl` in percent; with masks also `mask_AP`, ...

    A size without objects is left out. The truth is the split's annotation file with unclipped boxes. At most 100 detections
    per image count.

    Raises:
        DataError: no annotation file or no object, `voc_eval.check` refuses the detections, or masks are missing.
    """
    if split.annotations is None:
        raise DataError(f"{split.dataset} {split.split}: no annotation file in COCO's format, so no COCO metric")
    if split.frequencies:
        raise DataError(
            f"{split.dataset} {split.split}: its annotations are federated, and COCO's metric would count objects that nobody "
            "annotated as wrong detections; `lvis_eval` has the metric for them"
        )
    check(split, detections)
    metrics = _average_precision(split, detections, "bbox", masks=masks)
    if masks:
        check_masks(split, detections)
        metrics |= _average_precision(split, detections, "segm", masks=True)
    return metrics


def _average_precision(
    split: DetectionSplit, detections: Sequence[Detections], kind: str, *, masks: bool
) -> dict[str, float]:
    """Compute the metrics of one kind. Images and categories are numbered by row, in the order of their ids in the file."""
    from pycocotools.cocoeval import COCOeval

    truth = list(truth_of(split, masks=masks))
    if not any(not item["iscrowd"] for item in truth):
        raise DataError(f"{split.annotations}: contains no object {'with a mask ' if masks else ''}to find")
    found = box_results(detections) if kind == "bbox" else mask_results(detections)
    with contextlib.redirect_stdout(io.StringIO()):
        run = COCOeval(indexed(split, truth), indexed(split, found), kind)
        run.evaluate()
        run.accumulate()
        run.summarize()
    prefix = "box" if kind == "bbox" else "mask"
    values = zip(_NAMES, run.stats[: len(_NAMES)], strict=True)
    return {f"{prefix}_{name}": 100 * float(value) for name, value in values if value >= 0}  # -1: no such object


def truth_of(split: DetectionSplit, *, masks: bool) -> Iterator[dict[str, Any]]:
    """Yield the objects as COCO annotations; with `masks` only objects with a mask, for boxes too."""
    for row, picture in enumerate(split.pictures):
        for item in picture.instances:
            if masks and item.mask is None:
                continue
            box = whole_box(item)
            yield {
                "image_id": row,
                "category_id": item.label,
                "bbox": list(box),
                "iscrowd": int(item.crowd),
                "area": box[2] * box[3] if item.area is None else item.area,
                **({"segmentation": item.mask} if item.mask is not None else {}),
            }


def box_results(detections: Sequence[Detections]) -> Iterator[dict[str, Any]]:
    """Yield the boxes as COCO results."""
    for image, one in enumerate(detections):
        boxes = np.reshape(one.boxes, (-1, 4)).astype(np.float64)
        sides = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).tolist()
        for box, score, label in zip(
            sides, np.asarray(one.scores).tolist(), np.asarray(one.labels).tolist(), strict=True
        ):
            yield {"image_id": image, "category_id": label, "bbox": box, "score": score, "area": box[2] * box[3]}


def mask_results(detections: Sequence[Detections]) -> Iterator[dict[str, Any]]:
    """Yield the masks as COCO results. The mask's area decides about small, medium or large, as in both engines."""
    from pycocotools import mask as coco_mask

    for image, one in enumerate(detections):
        scores, labels = np.asarray(one.scores).tolist(), np.asarray(one.labels).tolist()
        for mask, score, label in zip(one.masks or [], scores, labels, strict=True):
            area = float(coco_mask.area(mask))
            yield {
                "image_id": image,
                "category_id": label,
                "segmentation": mask,
                "score": score,
                "area": area,
            }


def check_masks(split: DetectionSplit, detections: Sequence[Detections]) -> None:
    """Raise DataError if a detection has no mask, or one of another size than its image."""
    for index, (picture, one) in enumerate(zip(split.pictures, detections, strict=True)):
        masks = one.masks or []
        if len(masks) != len(one.scores):
            raise DataError(f"{split.file(index)}: {len(masks)} masks for {len(one.scores)} detections")
        if any(list(mask["size"]) != [picture.height, picture.width] for mask in masks):
            raise DataError(f"{split.file(index)}: a detection's mask does not have the size of the image")


def indexed(split: DetectionSplit, annotations: Sequence[Any] | Iterator[Any]) -> Any:
    """Return pycocotools' index. Annotations are numbered from 1, because it takes a match with number 0 for no match."""
    from pycocotools.coco import COCO

    index = COCO()
    index.dataset = {
        "images": [{"id": row, "width": p.width, "height": p.height} for row, p in enumerate(split.pictures)],
        "categories": [{"id": row, "name": name} for row, name in enumerate(split.classes)],
        "annotations": [{"iscrowd": 0, **item, "id": n} for n, item in enumerate(annotations, start=1)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        index.createIndex()
    return index
