"""Learning curves: means of the losses between their points, within bounds, and never across the end of an epoch."""

import math

import pytest
import torch
import torch.nn.functional as F

from transfer.curve import Curve
from transfer.heads import Classifier, Heads
from transfer.supervised import Order, SgdConfig, batches_of, fit


def curve_of(steps, total, losses, size=1):
    curve = Curve(steps, total)
    for step, loss in enumerate(losses):
        curve.add(torch.tensor([float(loss)]), size)
        curve.close(step)
    return curve.of(0)


def test_the_points_of_a_training_are_the_mean_losses_of_its_images():
    """Against the losses of the same training taken one step at a time, each by cross-entropy before its step."""
    x, y = torch.randn(22, 6, dtype=torch.float64), torch.arange(22) % 3
    config, order = SgdConfig(batch=8, epochs=2), Order(22, 8, 2, seed=5)
    model = Classifier(None, Heads(6, 3, (1.0, 0.1), seed=0).double())
    seen = []

    def watched(start):
        for rows, labels in batches_of(x, y, order)(start):
            seen.append([F.cross_entropy(head(rows), labels).item() for head in model.heads.linear])
            yield rows, labels

    curve = fit(model, watched, config, order, device=torch.device("cpu"))
    for head in (0, 1):
        points = curve.of(head)
        assert [point["epoch"] for point in points] == [round(step / 3, 4) for step in range(1, 7)]
        assert [point["loss"] for point in points] == pytest.approx([losses[head] for losses in seen], rel=1e-5)


def test_a_long_training_has_a_point_per_epoch_and_is_thinned():
    losses = range(1, 8001)  # 10 steps an epoch, 800 epochs: every fourth is kept
    points = curve_of(10, 8000, losses)
    assert len(points) == 200 and [points[0]["epoch"], points[-1]["epoch"]] == [4.0, 800.0]
    assert points[0]["loss"] == pytest.approx(sum(range(31, 41)) / 10), "the mean over that epoch alone"


def test_a_short_training_has_points_within_its_epochs():
    points = curve_of(250, 500, [1.0] * 250 + [2.0] * 250)
    assert len(points) == 100 and {point["loss"] for point in points[:50]} == {1.0}, "none spans two epochs"
    assert {point["loss"] for point in points[50:]} == {2.0}
    assert len(curve_of(20_000, 300, [1.0] * 300)) == 100, "less than an epoch"


def test_batches_count_by_their_images():
    curve = Curve(2, 200)
    for step, (loss, size) in enumerate([(1.0, 8), (4.0, 4)]):
        curve.add(torch.tensor([loss]), size)
        curve.close(step)
    assert curve.of(0) == [{"epoch": 1.0, "loss": 2.0}]


def test_a_head_that_diverges_has_no_points_from_then_on():
    assert [point["loss"] for point in curve_of(1, 3, [1.0, math.nan, math.inf])] == [1.0]


def test_a_step_without_a_batch_has_no_point():
    curve = Curve(2, 2)
    curve.close(0)
    curve.add(torch.tensor([3.0]), 1)
    curve.close(1)
    assert curve.of(0) == [{"epoch": 1.0, "loss": 3.0}]
