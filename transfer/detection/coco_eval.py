"""COCO's average precision of boxes and masks, by pycocotools (Lin et al. 2014, https://cocodataset.org/#detection-eval)."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from core.datasets import coco
from core.errors import DataError
from transfer.detection.data import Detections, DetectionSplit
from transfer.detection.faults import usable
from transfer.detection.voc_eval import check

_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def evaluate(split: DetectionSplit, detections: Sequence[Detections], *, masks: bool = False) -> dict[str, float]:
    """`box_AP`, `box_AP50`, `box_AP75`, `box_APs`, `box_APm`, `box_APl` in percent; with masks `mask_AP`, ... too.

    A size that no object has is left out. The truth is the split's annotation file, not clipped, without what `read_coco`
    left out; at most 100 detections an image count.

    Raises:
        DataError: no annotation file or no object, detections that `voc_eval.check` refuses, or masks that are not there.
    """
    if split.annotations is None:
        raise DataError(f"{split.dataset} {split.split}: no annotation file in COCO's format, so no COCO metric")
    check(split, detections)
    known = coco.instances(split.annotations, strict=False)  # what is stray was said when it was read
    metrics = _average_precision(split, known, detections, "bbox", masks=masks)
    if masks:
        _check_masks(split, detections)
        metrics |= _average_precision(split, known, detections, "segm", masks=True)
    return metrics


def _average_precision(
    split: DetectionSplit, known: coco.Instances, detections: Sequence[Detections], kind: str, *, masks: bool
) -> dict[str, float]:
    from pycocotools.cocoeval import COCOeval

    number = {str(image["id"]): image["id"] for image in known.images}
    ids = [number[picture.id] for picture in split.pictures]
    categories = [category["id"] for category in known.categories]
    kept = set(ids)
    images = [image for image in known.images if image["id"] in kept]
    truth = list(_truth(known, images, masks=masks))
    if not any(not item.get("iscrowd") for item in truth):
        raise DataError(f"{split.annotations}: no object {'with a mask ' if masks else ''}in it to find")
    found = _boxes(ids, categories, detections) if kind == "bbox" else _masks(ids, categories, detections)
    with contextlib.redirect_stdout(io.StringIO()):
        run = COCOeval(_coco(images, known.categories, truth), _coco(images, known.categories, found), kind)
        run.evaluate()
        run.accumulate()
        run.summarize()
    prefix = "box" if kind == "bbox" else "mask"
    values = zip(_NAMES, run.stats[: len(_NAMES)], strict=True)
    return {f"{prefix}_{name}": 100 * float(value) for name, value in values if value >= 0}  # -1: no such object


def _truth(known: coco.Instances, images: Sequence[dict[str, Any]], *, masks: bool) -> Iterator[dict[str, Any]]:
    """Annotations with the fields that users' own files may lack; copies, since pycocotools writes into them.

    With `masks` the objects that have one, for boxes too, as `layouts.read_coco` reads them.
    """
    by_id = {image["id"]: image for image in images}
    for annotation in known.annotations:
        if annotation["image_id"] not in by_id:
            continue
        item, _ = usable(annotation, by_id[annotation["image_id"]])
        if item is not None and (not masks or item.get("segmentation")):
            stated, (_, _, width, height) = item.get("area"), item["bbox"]
            yield {**item, "area": stated if isinstance(stated, int | float) else width * height}


def _boxes(ids: Sequence[int], categories: Sequence[int], detections: Sequence[Detections]) -> Iterator[dict[str, Any]]:
    for image, one in zip(ids, detections, strict=True):
        boxes = np.reshape(one.boxes, (-1, 4)).astype(np.float64)
        sides = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).tolist()
        for box, score, label in zip(
            sides, np.asarray(one.scores).tolist(), np.asarray(one.labels).tolist(), strict=True
        ):
            yield {"image_id": image, "category_id": categories[label], "bbox": box, "score": score} | {
                "area": box[2] * box[3]
            }


def _masks(ids: Sequence[int], categories: Sequence[int], detections: Sequence[Detections]) -> Iterator[dict[str, Any]]:
    """Small, medium or large by the mask's own area, as both engines do it."""
    from pycocotools import mask as coco_mask

    for image, one in zip(ids, detections, strict=True):
        scores, labels = np.asarray(one.scores).tolist(), np.asarray(one.labels).tolist()
        for mask, score, label in zip(one.masks or [], scores, labels, strict=True):
            area = float(coco_mask.area(mask))
            yield {
                "image_id": image,
                "category_id": categories[label],
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


def _coco(images: Sequence[Any], categories: Sequence[Any], annotations: Sequence[Any] | Iterator[Any]) -> Any:
    """pycocotools' index; annotations are numbered anew, since it takes a match with number 0 for none."""
    from pycocotools.coco import COCO

    index = COCO()
    numbered = [{**item, "iscrowd": item.get("iscrowd") or 0, "id": n} for n, item in enumerate(annotations, start=1)]
    index.dataset = {"images": list(images), "categories": list(categories), "annotations": numbered}
    with contextlib.redirect_stdout(io.StringIO()):
        index.createIndex()
    return index
