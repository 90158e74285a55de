"""PASCAL VOC's average precision for both engines and any classes (Everingham et al. 2010; the devkit's VOCevaldet.m).

The rules are those of detectron2 evaluation/pascal_voc_evaluation.py (v0.6): pixels count from 1 and a box includes its
last pixel; a detection matches the object with the largest overlap, even if another detection has matched it already; a
second match is a false positive; a match with a difficult object does not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from backbench.errors import DataError
from backbench.printable import printable, some
from backbench.progress import say
from transfer.detection.annotations.split import Detections, DetectionSplit

IOUS = tuple(percent / 100 for percent in range(50, 100, 5))
_FROM_ONE = np.array([1, 1, 0, 0], np.float32)  # from pixels counted from 0 to VOC's
_PAIRS = 1_000_000  # overlaps computed at a time: limits the memory


@dataclass(frozen=True)
class Flat:
    """Boxes of many images in one table, in the order of the images."""

    images: np.ndarray  # (N,) int64, rows of the split
    labels: np.ndarray  # (N,) int64
    boxes: np.ndarray  # (N, 4) float64, VOC's pixels: counted from 1, the last one included
    scores: np.ndarray  # (N,) float64; 0 for objects
    difficult: np.ndarray  # (N,) bool; False for detections

    def of_class(self, label: int) -> Flat:
        """Return the rows of one class."""
        rows = self.labels == label
        return Flat(self.images[rows], self.labels[rows], self.boxes[rows], self.scores[rows], self.difficult[rows])


def evaluate(
    split: DetectionSplit,
    detections: Sequence[Detections],
    *,
    ious: Sequence[float] = IOUS,
    eleven_point: bool = True,
    rounded: bool = True,
) -> dict[str, Any]:
    """Return `AP` (mean over classes and IoUs), `AP50`, `AP75` in percent, and `per_class`: AP50 by class name.

    A class without objects has AP 0, as in Detectron2, and is named in the log.

    Args:
        detections: one for each image of the split, in its order.
        eleven_point: VOC 2007's metric; otherwise the area under the curve, as since 2010.
        rounded: round scores to 3 decimals and boxes to 1, as in the result files of Detectron2's evaluator. Equal scores
            are then in the order of NumPy's default sort, as there; otherwise in the order of the images.

    Raises:
        DataError: not one entry per image, an unknown label, or a box or score that is not a number.
    """
    found, truth = flatten(split, detections, rounded=rounded), _objects(split)
    table = np.zeros((len(ious), len(split.classes)))
    for label in range(len(split.classes)):
        objects = truth.of_class(label)
        table[:, label] = _class_aps(found.of_class(label), objects, ious, eleven_point=eleven_point, rounded=rounded)
    if absent := without_objects(split):
        say(f"{split.dataset} {split.split}: classes without an object that counts have AP 0: {some(absent)}")
    means = {iou: float(np.mean(row * 100)) for iou, row in zip(ious, table, strict=True)}
    metrics: dict[str, Any] = {"AP": float(np.mean(list(means.values())))}
    metrics |= {name: means[iou] for name, iou in (("AP50", 0.5), ("AP75", 0.75)) if iou in means}
    if 0.5 in means:
        row = table[list(ious).index(0.5)] * 100
        metrics["per_class"] = dict(zip(split.classes, row.tolist(), strict=True))
    return metrics


def flatten(split: DetectionSplit, detections: Sequence[Detections], *, rounded: bool) -> Flat:
    """Return all detections in VOC's pixels. Raises DataError like `evaluate`."""
    check(split, detections)
    images = np.repeat(np.arange(len(split)), [len(d.scores) for d in detections])
    boxes = np.concatenate([np.zeros((0, 4), np.float32), *(np.reshape(d.boxes, (-1, 4)) for d in detections)])
    scores = np.concatenate([np.zeros(0, np.float32), *(d.scores for d in detections)])
    labels = np.concatenate([np.zeros(0, np.int64), *(d.labels for d in detections)])
    if rounded:
        # Ten or a thousand times a float32 is exact in float64, so this equals printing and reading back.
        boxes = boxes.astype(np.float32) + _FROM_ONE
        boxes = np.rint(boxes.astype(np.float64) * 10) / 10
        scores = np.rint(scores.astype(np.float32).astype(np.float64) * 1000) / 1000
    else:
        boxes = boxes.astype(np.float64) + _FROM_ONE
    return Flat(images, labels, boxes, scores.astype(np.float64), np.zeros(len(labels), bool))


def without_objects(split: DetectionSplit) -> list[str]:
    """Return the classes without an object that counts."""
    counting = {o.label for picture in split.pictures for o in picture.instances if not (o.difficult or o.crowd)}
    return [printable(name) for label, name in enumerate(split.classes) if label not in counting]


def check(split: DetectionSplit, detections: Sequence[Detections]) -> None:
    """Raise DataError if there is not one entry per image, or a box, score or label is invalid."""
    if len(detections) != len(split):
        raise DataError(f"{split.dataset} {split.split}: detections for {len(detections)} images, not for {len(split)}")
    for index, one in enumerate(detections):
        boxes, scores, labels = np.asarray(one.boxes), np.asarray(one.scores), np.asarray(one.labels)
        if not boxes.size == 4 * scores.size == 4 * labels.size:
            raise DataError(
                f"{split.file(index)}: {boxes.size / 4:g} boxes, {scores.size} scores, {labels.size} labels"
            )
        if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
            raise DataError(
                f"{split.file(index)}: a detection's box or score is not a number; did the training diverge?"
            )
        if labels.size and not 0 <= labels.min() <= labels.max() < len(split.classes):
            raise DataError(f"{split.file(index)}: a detection's label is not one of the {len(split.classes)} classes")


def _objects(split: DetectionSplit) -> Flat:
    objects = [(i, o) for i, picture in enumerate(split.pictures) for o in picture.instances]
    return Flat(
        np.array([i for i, _ in objects], np.int64),
        np.array([o.label for _, o in objects], np.int64),
        np.array([o.box for _, o in objects], np.float64).reshape(-1, 4) + _FROM_ONE,
        np.zeros(len(objects)),
        np.array([o.difficult or o.crowd for _, o in objects], bool),
    )


def _class_aps(found: Flat, objects: Flat, ious: Sequence[float], *, eleven_point: bool, rounded: bool) -> list[float]:
    """Return the AP (0 to 1) of one class at each IoU."""
    positives = int((~objects.difficult).sum())
    if not positives:
        return [0.0] * len(ious)
    order = np.argsort(-found.scores, kind=None if rounded else "stable")
    overlaps, matched = (values[order] for values in _best(found, objects))
    aps = []
    for iou in ious:
        near = overlaps > iou
        difficult = near & objects.difficult[matched]
        hits = np.flatnonzero(near & ~difficult)
        true = np.zeros(len(order), bool)
        true[hits[np.unique(matched[hits], return_index=True)[1]]] = True  # each object's detection with the best score
        tp = np.cumsum(true, dtype=np.float64)
        fp = np.cumsum(~true & ~difficult, dtype=np.float64)
        precision = tp / np.maximum(tp + fp, np.finfo(np.float64).eps)
        aps.append((_eleven_point if eleven_point else _area)(tp / positives, precision))
    return aps


def _best(found: Flat, objects: Flat) -> tuple[np.ndarray, np.ndarray]:
    """Return each detection's largest overlap with an object of its image, (N,), and that object's row; -1 and 0 for none."""
    overlaps, matched = np.full(len(found.images), -1.0), np.zeros(len(found.images), np.int64)
    first = np.searchsorted(objects.images, found.images, side="left")
    counts = np.searchsorted(objects.images, found.images, side="right") - first
    for rows in _parts(np.flatnonzero(counts), counts):
        starts = np.concatenate([[0], np.cumsum(counts[rows])[:-1]])
        detection = np.repeat(rows, counts[rows])
        item = np.arange(len(detection)) - np.repeat(starts - first[rows], counts[rows])
        iou = _overlap(found.boxes[detection], objects.boxes[item])
        best = np.maximum.reduceat(iou, starts)
        at_best = np.flatnonzero(iou == np.repeat(best, counts[rows]))
        overlaps[rows] = best
        matched[rows] = item[
            at_best[np.unique(detection[at_best], return_index=True)[1]]
        ]  # the first of equal overlaps
    return overlaps, matched


def _parts(rows: np.ndarray, counts: np.ndarray) -> list[np.ndarray]:
    """Split rows into parts of about `_PAIRS` pairs."""
    if not len(rows):
        return []
    part = np.cumsum(counts[rows]) // _PAIRS
    return np.split(rows, np.flatnonzero(np.diff(part)) + 1)


def _overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the intersection over union, (P,), of pairs of boxes (P, 4), with the last pixel included."""
    width = np.maximum(np.minimum(a[:, 2], b[:, 2]) - np.maximum(a[:, 0], b[:, 0]) + 1.0, 0.0)
    height = np.maximum(np.minimum(a[:, 3], b[:, 3]) - np.maximum(a[:, 1], b[:, 1]) + 1.0, 0.0)
    intersection = width * height
    area_a = (a[:, 2] - a[:, 0] + 1.0) * (a[:, 3] - a[:, 1] + 1.0)
    area_b = (b[:, 2] - b[:, 0] + 1.0) * (b[:, 3] - b[:, 1] + 1.0)
    union = area_a + area_b - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=union != 0)  # 0: a box with swapped corners


def _eleven_point(recall: np.ndarray, precision: np.ndarray) -> float:
    """Return the mean over recalls 0, 0.1, ..., 1 of the best precision at that recall or more (VOC 2007)."""
    best = np.concatenate([np.maximum.accumulate(precision[::-1])[::-1], [0.0]])
    # As in the devkit, recalls are float multiples of 0.1: 3 of 10 objects do not reach 0.30000000000000004.
    points = best[np.searchsorted(recall, np.arange(0.0, 1.1, 0.1), side="left")]
    return float(sum(points / 11.0))


def _area(recall: np.ndarray, precision: np.ndarray) -> float:
    """Return the area under the precision's envelope (VOC 2010)."""
    best = np.concatenate([np.maximum.accumulate(precision[::-1])[::-1], [0.0]])
    recall = np.concatenate([[0.0], recall, [1.0]])
    steps = np.flatnonzero(recall[1:] != recall[:-1])
    return float(np.sum((recall[steps + 1] - recall[steps]) * best[steps]))
