"""COCO's average precision of boxes and masks, by pycocotools (Lin et al. 2014, https://cocodataset.org/#detection-eval)."""

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
    """`box_AP`, `box_AP50`, `box_AP75`, `box_APs`, `box_APm`, `box_APl` in percent; with masks `mask_AP`, ... too.

    A size that no object has is left out. The truth is what was read of the split's annotation file, boxes not clipped;
    at most 100 detections an image count.

    Raises:
        DataError: no annotation file or no object, detections that `voc_eval.check` refuses, or masks that are not there.
    """
    if split.annotations is None:
        raise DataError(f"{split.dataset} {split.split}: no annotation file in COCO's format, so no COCO metric")
    check(split, detections)
    metrics = _average_precision(split, detections, "bbox", masks=masks)
    if masks:
        _check_masks(split, detections)
        metrics |= _average_precision(split, detections, "segm", masks=True)
    return metrics


def _average_precision(
    split: DetectionSplit, detections: Sequence[Detections], kind: str, *, masks: bool
) -> dict[str, float]:
    """Images and categories are numbered by their rows, which are in the order of their ids in the file."""
    from pycocotools.cocoeval import COCOeval

    truth = list(_truth(split, masks=masks))
    if not any(not item["iscrowd"] for item in truth):
        raise DataError(f"{split.annotations}: no object {'with a mask ' if masks else ''}in it to find")
    found = _boxes(detections) if kind == "bbox" else _masks(detections)
    with contextlib.redirect_stdout(io.StringIO()):
        run = COCOeval(_coco(split, truth), _coco(split, found), kind)
        run.evaluate()
        run.accumulate()
        run.summarize()
    prefix = "box" if kind == "bbox" else "mask"
    values = zip(_NAMES, run.stats[: len(_NAMES)], strict=True)
    return {f"{prefix}_{name}": 100 * float(value) for name, value in values if value >= 0}  # -1: no such object


def _truth(split: DetectionSplit, *, masks: bool) -> Iterator[dict[str, Any]]:
    """The objects as COCO's annotations; with `masks` those that have one, for boxes too."""
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


def _boxes(detections: Sequence[Detections]) -> Iterator[dict[str, Any]]:
    for image, one in enumerate(detections):
        boxes = np.reshape(one.boxes, (-1, 4)).astype(np.float64)
        sides = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).tolist()
        for box, score, label in zip(
            sides, np.asarray(one.scores).tolist(), np.asarray(one.labels).tolist(), strict=True
        ):
            yield {"image_id": image, "category_id": label, "bbox": box, "score": score, "area": box[2] * box[3]}


def _masks(detections: Sequence[Detections]) -> Iterator[dict[str, Any]]:
    """Small, medium or large by the mask's own area, as both engines do it."""
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


def _check_masks(split: DetectionSplit, detections: Sequence[Detections]) -> None:
    for index, (picture, one) in enumerate(zip(split.pictures, detections, strict=True)):
        masks = one.masks or []
        if len(masks) != len(one.scores):
            raise DataError(f"{split.file(index)}: {len(masks)} masks of {len(one.scores)} detections")
        if any(list(mask["size"]) != [picture.height, picture.width] for mask in masks):
            raise DataError(f"{split.file(index)}: a detection's mask is not of the image's size")


def _coco(split: DetectionSplit, annotations: Sequence[Any] | Iterator[Any]) -> Any:
    """pycocotools' index; annotations are numbered from 1, since it takes a match with number 0 for none."""
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
