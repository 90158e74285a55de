"""A result needs its headline: it is checked before a record is written and before a stored one is kept."""

import math

import numpy as np
import pytest
import torch

from backbench.errors import BackbenchError
from benchmarks import measuring
from transfer.protocol import Metric

GOOD = Metric(50.0)


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ({}, "it gave nothing"),
        ({"top5": GOOD, "AP": GOOD}, "it gave AP, top5"),
        ({"top1": Metric(math.nan)}, "top1 is nan"),
        ({"top1": Metric(math.inf)}, "top1 is inf"),
        ({"top1": Metric(-100.0)}, "top1 is -100%, which no measurement can give"),
        ({"top1": Metric(100.5)}, "top1 is 100.5%, which no measurement can give"),
        ({"top1": Metric(True)}, "top1 is a bool, not a number"),
        ({"top1": Metric("50")}, "top1 is a str, not a number"),
        ({"top1": Metric(None)}, "top1 is a NoneType, not a number"),
        ({"top1": Metric(torch.tensor(50.0))}, "top1 is a Tensor, not a number"),
        ({"top1": Metric(5000.0, unit="")}, None),
        ({"top1": Metric(np.float32(50.0))}, None),
        ({"top1": Metric(np.int64(50))}, None),
        ({"top1": Metric(100.00000000001)}, None),
    ],
    ids=str,
)
def test_without_a_possible_headline_there_is_no_result(metrics, words):
    if words is None:
        assert list(measuring.checked(metrics, "top1", [])) == ["top1"]
        return
    with pytest.raises(BackbenchError, match="the protocol gave no 'top1', its headline") as caught:
        measuring.checked(metrics, "top1", [])
    assert words in str(caught.value)


def test_another_metric_that_cannot_be_is_left_out_and_said():
    """COCO's evaluator returns -1 for a size without objects."""
    notes = []
    kept = measuring.checked({"box_AP": GOOD, "box_APs": Metric(-100.0)}, "box_AP", notes)
    assert list(kept) == ["box_AP"] and kept["box_AP"].value == 50.0
    assert notes == ["left out: box_APs is -100%, which no measurement can give"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("alignment", -0.1), ("uniformity", 0.1), ("rankme", 0.9), ("lidar", 0.5), ("intrinsic_dimension", -1.5)],
)
def test_raw_metrics_have_bounds_too(name, value):
    with pytest.raises(BackbenchError, match=f"{name} is {value}"):
        measuring.checked({name: Metric(value, unit="", higher_is_better=False)}, name, [])
