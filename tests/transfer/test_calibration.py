"""Calibration error against a loop over bins, temperature against scipy's minimiser."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from transfer.calibration import COLDEST, HOTTEST, expected_calibration_error, fit_temperature


def by_a_loop(confidence, right, bins):
    """Guo et al. 2017, equation 3."""
    total = 0.0
    for m in range(bins):
        low, high = m / bins, (m + 1) / bins
        members = [i for i, c in enumerate(confidence) if low < c <= high or (m == 0 and c == 0)]
        if members:
            accuracy = sum(bool(right[i]) for i in members) / len(members)
            mean = sum(float(confidence[i]) for i in members) / len(members)
            total += len(members) / len(confidence) * abs(accuracy - mean)
    return total


@pytest.mark.parametrize("bins", [1, 2, 15])
@pytest.mark.parametrize("n", [1, 7, 400])
def test_the_error_is_that_of_a_loop_over_bins(n, bins):
    generator = torch.Generator().manual_seed(n)
    confidence = torch.rand(n, generator=generator)
    right = torch.rand(n, generator=generator) < 0.6
    assert expected_calibration_error(confidence, right, bins) == pytest.approx(by_a_loop(confidence, right, bins))


def test_edges_of_bins_belong_to_the_lower_bin():
    """0.5 is in (0, 0.5] and 0 in the first bin, so the errors of the two bins do not cancel."""
    confidence = torch.tensor([0.0, 0.5, 0.75, 1.0], dtype=torch.float64)
    right = torch.tensor([False, True, False, True])
    assert expected_calibration_error(confidence, right, 2) == pytest.approx((0.5 + 0.75) / 4)
    assert expected_calibration_error(torch.ones(4), torch.ones(4, dtype=torch.bool)) == 0


@pytest.mark.parametrize("confidence", [torch.tensor([]), torch.tensor([0.5, 1.1]), torch.tensor([torch.nan])])
def test_what_is_not_a_confidence_is_refused(confidence):
    with pytest.raises(ValueError, match="between 0 and 1"):
        expected_calibration_error(confidence, torch.ones(len(confidence), dtype=torch.bool))


def noisy_logits(scale, n=300, classes=5):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (n,), generator=generator)
    logits = torch.nn.functional.one_hot(labels, classes) * 1.5 + torch.randn(n, classes, generator=generator)
    return (scale * logits).float(), labels


@pytest.mark.parametrize("scale", [0.05, 1.0, 30.0])
def test_the_temperature_is_that_of_scipy(scale):
    logits, labels = noisy_logits(scale)

    def loss(log_t):
        return float(torch.nn.functional.cross_entropy(logits.double() / np.exp(log_t), labels))

    best = minimize_scalar(loss, bounds=(-6, 6), method="bounded", options={"xatol": 1e-10})
    assert fit_temperature(logits, labels) == pytest.approx(float(np.exp(best.x)), rel=1e-5)
    shifted = logits + torch.arange(len(logits))[:, None]
    assert fit_temperature(shifted, labels) == pytest.approx(fit_temperature(logits, labels), rel=1e-3)


def test_a_temperature_without_a_best_one_is_at_its_bound():
    labels = torch.tensor([0, 1, 2])
    assert fit_temperature(torch.eye(3), labels) == pytest.approx(COLDEST, rel=1e-3), "all answers are right"
    assert fit_temperature(-torch.eye(3), labels) == pytest.approx(HOTTEST, rel=1e-3), "all answers are wrong"
    assert np.isfinite(fit_temperature(torch.zeros(3, 3), labels)), "all temperatures are alike"


@pytest.mark.parametrize("logits", [torch.zeros(0, 3), torch.tensor([[torch.inf, 0.0]])])
def test_logits_that_are_not_finite_are_refused(logits):
    with pytest.raises(ValueError, match="finite logits"):
        fit_temperature(logits, torch.zeros(len(logits), dtype=torch.long))
