"""Average precision as pure functions of scores. Equal scores enter together, so the order of images has no effect."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

AveragePrecision = Callable[[np.ndarray, np.ndarray], float]


def area_ap(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under the interpolated precision-recall curve, 0 to 1 (VISSL vissl/utils/svm_utils/evaluate.py, FAIR svm_helper.py).

    Interpolated: at each recall the best precision at that recall or more. The references process equal scores one by one
    in the undefined order of their sort; here they enter together.

    Args:
        scores: (N,) float, higher is more likely positive.
        positive: (N,) bool.

    Raises:
        ValueError: no image is positive, or a score is NaN or infinite.
    """
    hits, precision = _curve(scores, positive)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(hits, prepend=0) * best) / hits[-1])


class ResampledAreaAp:
    """`area_ap` of resamples of the images. What all resamples share, the order of the scores above all, is computed once."""

    def __init__(self, scores: np.ndarray, positive: np.ndarray, counted: np.ndarray) -> None:
        """Sort the images.

        Args:
            scores: (N,) float, higher is more likely positive.
            positive: (N,) bool.
            counted: (N,) bool; the others are left out.
        """
        from scipy.sparse import csr_matrix

        order = np.flatnonzero(counted)
        order = order[np.argsort(-scores[order])]
        ends_score = np.append(np.diff(scores[order]) != 0, True)
        group = np.cumsum(ends_score) - ends_score  # images with equal scores enter together
        hit = np.flatnonzero(np.asarray(positive, dtype=bool)[order])  # recall grows at these only
        self._last = np.flatnonzero(np.append(np.diff(group[hit]) != 0, True))  # the last positive of each score
        self._positive = order[hit]
        ends = np.flatnonzero(ends_score)[group[hit[self._last]]] + 1 if len(hit) else np.zeros(0, int)
        reached = ends[-1] if len(ends) else 0
        bounds = np.concatenate([[0], ends])
        # Row g adds up the images between two such scores.
        ones = np.ones(reached, np.int32)
        self._between = csr_matrix((ones, order[:reached], bounds), shape=(len(ends), len(scores)))

    def __call__(self, times_NR: np.ndarray) -> np.ndarray:
        """Return the APs of R resamples (R,); NaN for a resample without a positive.

        Args:
            times_NR: (N, R) int, how often each resample contains each image.
        """
        if not len(self._positive):
            return np.full(times_NR.shape[1], np.nan)
        taken = np.cumsum(self._between @ times_NR, axis=0)
        hits = np.cumsum(times_NR[self._positive], axis=0)[self._last]
        precision = hits / np.maximum(taken, 1)
        best = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
        area = np.sum(np.diff(hits, axis=0, prepend=0) * best, axis=0)
        return np.where(hits[-1] > 0, area / np.maximum(hits[-1], 1), np.nan)


def eleven_point_ap(scores: np.ndarray, positive: np.ndarray) -> float:
    """Mean of the best precision at recall >= 0, 0.1, ..., 1 (VOC 2007 development kit, VOCevalcls), 0 to 1.

    Recall is compared in whole images, so that 3 of 10 is exactly 0.3.

    Args:
        scores: (N,) float, higher is more likely positive.
        positive: (N,) bool.

    Raises:
        ValueError: no image is positive, or a score is NaN or infinite.
    """
    hits, precision = _curve(scores, positive)
    return float(np.mean([precision[10 * hits >= tenth * hits[-1]].max() for tenth in range(11)]))


def class_aps(ap: AveragePrecision, scores_NK: np.ndarray, labels_NK: np.ndarray) -> np.ndarray:
    """Return the AP of every class, (K,). Labels: 1 present, -1 absent, 0 does not count for this class.

    Raises:
        ValueError: a class has no positive.
    """
    columns = zip(scores_NK.T, labels_NK.T, strict=True)
    return np.array([ap(scores[labels != 0], labels[labels != 0] == 1) for scores, labels in columns])


def _curve(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (true positives, precision) at every distinct score, from the highest to the lowest."""
    scores, positive = np.asarray(scores), np.asarray(positive, dtype=bool)
    if not positive.any():
        raise ValueError("average precision does not exist without a positive image")
    if not np.isfinite(scores).all():
        raise ValueError("scores contain NaN or infinite values")
    order = np.argsort(-scores)
    last_of_its_score = np.append(np.diff(scores[order]) != 0, True)
    hits = np.cumsum(positive[order])[last_of_its_score]
    taken = np.arange(1, len(scores) + 1)[last_of_its_score]
    return hits, hits / taken
