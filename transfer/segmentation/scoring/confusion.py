"""Mean intersection over union and accuracies, from counts of (true, predicted) classes over all pixels."""

from __future__ import annotations

import numpy as np

from backbench.errors import DataError
from transfer.segmentation.annotations.split import IGNORE


class Confusion:
    """Counts of pixels by true and predicted class; ignored pixels do not count.

    `scores` are the numbers of MMSegmentation's IoUMetric (mmseg/evaluation/metrics/iou_metric.py), not rounded.
    """

    def __init__(self, classes: int) -> None:
        self.counts = np.zeros((classes, classes), np.int64)  # row: true class, column: predicted class

    def add(self, predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
        """Count an image and return its own counts (C, C) int64.

        Args:
            predicted: (H, W) classes.
            truth: (H, W) labels, IGNORE where none counts.

        Raises:
            ValueError: the shapes differ, or a class outside the range occurs where the truth counts.
        """
        own = counts_of(predicted, truth, len(self.counts))
        self.counts += own
        return own

    def merge(self, other: Confusion) -> None:
        """Add the counts of other images. Raises ValueError: of another number of classes."""
        if other.counts.shape != self.counts.shape:
            raise ValueError(f"{len(other.counts)} classes cannot be added to {len(self.counts)}")
        self.counts += other.counts

    def scores(self) -> dict[str, float]:
        """Return mIoU, mAcc and aAcc in percent.

        A class that is neither in the truth nor predicted does not count in mIoU, one that is not in the truth does not
        count in mAcc.

        Raises:
            DataError: no pixel counts.
        """
        if not self.counts.any():
            raise DataError("no pixel of the test images has a class, so nothing can be measured; are the masks empty?")
        right = np.diag(self.counts)
        with np.errstate(invalid="ignore"):
            accuracy = right / self.counts.sum(1)
        return {
            "mIoU": float(np.nanmean(self.iou())),
            "mAcc": 100 * float(np.nanmean(accuracy)),
            "aAcc": 100 * float(right.sum() / self.counts.sum()),
        }

    def iou(self) -> np.ndarray:
        """Return (C,) intersection over union in percent; NaN for a class neither in the truth nor predicted."""
        return iou_of(self.counts)


def counts_of(predicted: np.ndarray, truth: np.ndarray, classes: int) -> np.ndarray:
    """Return the counts (C, C) int64 of one image: row is the true class. Raises ValueError as `Confusion.add`."""
    if predicted.shape != truth.shape:
        raise ValueError(f"predicted {predicted.shape} and true {truth.shape} classes have different shapes")
    counted = truth != IGNORE
    rows, columns = truth[counted].astype(np.int64), predicted[counted].astype(np.int64)
    for name, values in (("true", rows), ("predicted", columns)):
        if values.size and not 0 <= values.min() <= values.max() < classes:
            raise ValueError(f"a {name} class is outside 0 to {classes - 1}: {values.min()} to {values.max()}")
    return np.bincount(rows * classes + columns, minlength=classes**2).reshape(classes, classes)


def iou_of(counts: np.ndarray) -> np.ndarray:
    """Return intersection over union (..., C) in percent of counts (..., C, C); NaN where a class does not occur."""
    right = np.diagonal(counts, axis1=-2, axis2=-1)
    union = counts.sum(-1) + counts.sum(-2) - right
    with np.errstate(invalid="ignore"):
        return 100 * right / union


def areas_of(counts_NCC: np.ndarray) -> dict[str, np.ndarray]:
    """Return the pixels of every image and class, (N, C) int64 each: `intersection`, `union`, `truth`.

    A record stores them per test item: sums over any draw of the images give its mIoU.
    """
    right = np.diagonal(counts_NCC, axis1=-2, axis2=-1)
    truth, predicted = counts_NCC.sum(-1), counts_NCC.sum(-2)
    return {"intersection": right.copy(), "union": truth + predicted - right, "truth": truth}
