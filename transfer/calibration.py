"""Calibration of a classifier: expected calibration error and temperature scaling (Guo et al. 2017)."""

from __future__ import annotations

import torch
from torch import Tensor

COLDEST, HOTTEST = 1e-3, 1e3  # temperatures between which the best one is sought
_ROUNDS = 200


def expected_calibration_error(confidence_N: Tensor, right_N: Tensor, bins: int = 15) -> float:
    """Return the mean gap of confidence and accuracy over bins of equal width, weighted by their images, 0 to 1.

    Guo et al. 2017, "On Calibration of Modern Neural Networks", equation 3; bin m is ((m - 1) / bins, m / bins], as in
    gpleiss/temperature_scaling `_ECELoss`.

    Args:
        confidence_N: (N,) the probability of the answer.
        right_N: (N,) bool.

    Raises:
        ValueError: no image, or a confidence outside [0, 1].
    """
    confidence = confidence_N.double()
    if not len(confidence) or not bool(((confidence >= 0) & (confidence <= 1)).all()):
        raise ValueError("confidences between 0 and 1 are needed, one at least")
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=confidence.device)
    of_bin = (torch.bucketize(confidence, edges) - 1).clamp(min=0)  # a confidence of 0 is in the first bin
    gap = torch.zeros(bins, dtype=torch.float64, device=confidence.device)
    gap.index_add_(0, of_bin, confidence - right_N.double())
    return float(gap.abs().sum() / len(confidence))


def fit_temperature(logits_NK: Tensor, labels_N: Tensor) -> float:
    """Return the temperature T of the least mean cross-entropy of softmax(logits / T) (Guo et al. 2017, section 4.2).

    The loss is convex in 1 / T: Newton's method between bounds that every step narrows. Where no T is best (all answers
    are right, or confidence is of no use), it is `COLDEST` or `HOTTEST`.

    Args:
        logits_NK: (N, K) of images that no reported number is measured on.
        labels_N: (N,) int64.

    Raises:
        ValueError: no image, or a logit that is not finite.
    """
    if not len(logits_NK) or not bool(torch.isfinite(logits_NK).all()):
        raise ValueError("finite logits are needed, of one image at least")
    z_NK = logits_NK.double()
    z_NK = z_NK - z_NK.amax(dim=1, keepdim=True)  # softmax does not change, and no exponential overflows
    of_label = z_NK.gather(1, labels_N[:, None]).squeeze(1)
    low, high, cold = 1 / HOTTEST, 1 / COLDEST, 1.0  # cold: 1 / T
    for turn in range(_ROUNDS):
        p_NK = (cold * z_NK).softmax(dim=1)
        mean = (p_NK * z_NK).sum(dim=1)
        slope = float((mean - of_label).mean())  # of the loss by 1 / T
        low, high = (low, cold) if slope > 0 else (cold, high)
        bend = float(((p_NK * z_NK.square()).sum(dim=1) - mean.square()).mean())
        step = cold - slope / bend if bend > 0 else 0.0
        halve = turn > 20 and turn % 2  # far from any optimum Newton's steps may be short
        nearer = step if low < step < high and not halve else (low * high) ** 0.5
        if abs(nearer - cold) <= 1e-12 * cold:
            break
        cold = nearer
    return 1 / cold
