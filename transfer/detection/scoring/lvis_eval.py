"""LVIS's average precision of boxes and masks on federated annotations (Gupta et al. 2019; lvis-dataset/lvis-api lvis/eval.py).

It differs from COCO's in four rules. At most 300 detections of an image count, over all classes. A detection of a class that
the image neither has nor was searched for counts neither as right nor as wrong. In an image whose objects of a class are not
all annotated, an unmatched detection of this class is ignored. The mean is over the classes that occur, with means of the
rare, common and frequent ones (APr, APc, APf). pycocotools matches detections and objects; lvis-api does it by the same rules.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from backbench.data.layouts.lvis import FREQUENCIES
from backbench.errors import DataError
from transfer.detection.annotations.split import Detections, DetectionSplit, Picture
from transfer.detection.scoring import coco_eval
from transfer.detection.scoring.voc_eval import check

MOST = 300  # detections per image
_SIZES = ("", "s", "m", "l")  # pycocotools' ranges of areas, in its order
_AT = {"50": 0, "75": 5}  # of the overlaps .50:.05:.95


def evaluate(split: DetectionSplit, detections: Sequence[Detections], *, masks: bool = False) -> dict[str, float]:
    """Return `box_AP`, `box_AP50`, `box_AP75`, `box_APs`, `m`, `l`, `r`, `c`, `f` in percent; with masks also `mask_AP`, ...

    A size or frequency without objects is left out.

    Raises:
        DataError: the annotations are not federated, no object, `voc_eval.check` refuses the detections, or masks are missing.
    """
    if not split.frequencies or any(picture.absent is None for picture in split.pictures):
        raise DataError(f"{split.dataset} {split.split}: its annotations do not say which classes were looked for")
    check(split, detections)
    if masks:
        coco_eval.check_masks(split, detections)
    counted = [_counted(picture, one) for picture, one in zip(split.pictures, detections, strict=True)]
    metrics = _average_precision(split, counted, "bbox", masks=masks)
    if masks:
        metrics |= _average_precision(split, counted, "segm", masks=True)
    return metrics


def _counted(picture: Picture, found: Detections) -> Detections:
    """Return the detections that count: of the 300 with the best scores, those of classes that the annotators looked for."""
    looked_for = {item.label for item in picture.instances} | set(picture.absent or ())
    scores, labels = np.asarray(found.scores), np.asarray(found.labels)
    best = np.argsort(-scores, kind="stable")[:MOST]
    rows = np.sort([row for row in best.tolist() if int(labels[row]) in looked_for]).astype(np.int64)
    masks = None if found.masks is None else [found.masks[row] for row in rows]
    return Detections(np.reshape(found.boxes, (-1, 4))[rows], scores[rows], labels[rows], masks)


def _average_precision(
    split: DetectionSplit, detections: Sequence[Detections], kind: str, *, masks: bool
) -> dict[str, float]:
    precisions = _precisions(split, detections, kind, masks=masks)
    if not precisions:
        raise DataError(f"{split.annotations}: contains no object {'with a mask ' if masks else ''}to find")
    groups = {"": [found[0] for found in precisions.values()]}
    groups |= {name: [found[0][at : at + 1] for found in precisions.values()] for name, at in _AT.items()}
    groups |= {size: [found[i] for found in precisions.values() if i in found] for i, size in enumerate(_SIZES) if size}
    groups |= {
        f: [found[0] for label, found in precisions.items() if split.frequencies[label] == f] for f in FREQUENCIES
    }
    prefix = "box" if kind == "bbox" else "mask"
    return {f"{prefix}_AP{name}": 100 * float(np.mean(values)) for name, values in groups.items() if values}


def _precisions(
    split: DetectionSplit, detections: Sequence[Detections], kind: str, *, masks: bool
) -> dict[int, dict[int, np.ndarray]]:
    """Return for each class with objects, and each range of areas with some of them, the precision (10 overlaps, 101 recalls).

    Only images that have the class, or a detection of it that counts, are matched: few of LVIS's 24 million pairs.
    """
    from pycocotools.cocoeval import COCOeval

    results = coco_eval.box_results(detections) if kind == "bbox" else coco_eval.mask_results(detections)
    truth, found = list(coco_eval.truth_of(split, masks=masks)), list(results)
    with contextlib.redirect_stdout(io.StringIO()):
        run = COCOeval(coco_eval.indexed(split, truth), coco_eval.indexed(split, found), kind)
    run.params.maxDets = [MOST]
    run._prepare()
    images: dict[int, set[int]] = {}
    for item in (*truth, *found):
        images.setdefault(item["category_id"], set()).add(item["image_id"])
    precisions: dict[int, dict[int, np.ndarray]] = {}
    for label in sorted({item["category_id"] for item in truth}):
        rows = sorted(images[label])
        run.ious = {(row, label): run.computeIoU(row, label) for row in rows}
        for size, limits in enumerate(run.params.areaRng):
            matched = [_matched(run, split.pictures[row], row, label, limits) for row in rows]
            precision = _precision(matched, run.params.recThrs)
            if precision is not None:
                precisions.setdefault(label, {})[size] = precision
    return precisions


def _matched(run: Any, picture: Picture, row: int, label: int, limits: list[float]) -> dict[str, Any]:
    """Return pycocotools' matches in an image; unmatched detections of a partly annotated class are ignored."""
    matches: dict[str, Any] = run.evaluateImg(row, label, limits, MOST)
    if label in picture.partly:
        matches["dtIgnore"] = np.logical_or(matches["dtIgnore"], matches["dtMatches"] == 0)
    return matches


def _precision(matched: Sequence[dict[str, Any]], recalls: np.ndarray) -> np.ndarray | None:
    """Return the interpolated precision (10 overlaps, 101 recalls) of a class, or None if no object counts."""
    objects = sum(int(np.count_nonzero(np.asarray(one["gtIgnore"]) == 0)) for one in matched)
    if not objects:
        return None
    order = np.argsort(-np.concatenate([one["dtScores"] for one in matched]), kind="stable")
    right = np.concatenate([one["dtMatches"] for one in matched], axis=1)[:, order] > 0
    ignored = np.concatenate([one["dtIgnore"] for one in matched], axis=1)[:, order].astype(bool)
    hits, misses = (np.cumsum(rows & ~ignored, axis=1, dtype=np.float64) for rows in (right, ~right))
    precision = hits / (hits + misses + np.spacing(1))
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    found = np.zeros((len(precision), len(recalls)))
    for one, recall, values in zip(found, hits / objects, precision, strict=True):
        places = np.searchsorted(recall, recalls, side="left")
        one[places < len(values)] = values[places[places < len(values)]]
    return found
