"""Test the parts that both engines' training loops share."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from backbench import distributed
from backbench.errors import BackbenchError
from transfer.detection.training import steps as training


def test_the_record_of_losses_is_cut_to_what_was_done(tmp_path):
    file = tmp_path / "losses.jsonl"
    for iteration in range(4):
        training.log(file, iteration, {"loss_cls": 1.5, "loss_mask": 0.25}, 0.1)
    first = json.loads(file.read_text().splitlines()[0])
    assert first == {"iteration": 0, "total": 1.75, "loss_cls": 1.5, "loss_mask": 0.25, "lr": 0.1}
    with file.open("a") as out:
        out.write('{"iteration": 4, "to')  # killed while writing
    training.cut(file, 3)
    assert [json.loads(line)["iteration"] for line in file.read_text().splitlines()] == [0, 1, 2]
    training.cut(tmp_path / "none.jsonl", 3)
    assert not (tmp_path / "none.jsonl").exists()


def test_the_record_holds_means_over_the_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "gather", lambda mine: [mine, {"loss_cls": 0.5, "loss_mask": 1.25}])
    training.log(tmp_path / "losses.jsonl", 3, {"loss_cls": 1.5, "loss_mask": 0.25}, 0.1)
    values = json.loads((tmp_path / "losses.jsonl").read_text())
    assert values == {"iteration": 3, "total": 1.75, "loss_cls": 1.0, "loss_mask": 0.75, "lr": 0.1}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_with_all_that_is_known(tmp_path, value):
    losses = {"loss_cls": value}
    training.refuse_not_finite(torch.tensor(3.0), losses, 7, 0.5, None)
    with pytest.raises(BackbenchError, match=r"iteration 7, rate 0\.5: .*loss_cls.*last\.pth"):
        training.refuse_not_finite(torch.tensor(value), losses, 7, 0.5, tmp_path / "last.pth")
    with pytest.raises(BackbenchError, match="no checkpoint yet"):
        training.refuse_not_finite(torch.tensor(value), losses, 7, 0.5, None)


def batches() -> list[torch.Tensor]:
    """Batches of different sizes, means and spreads."""
    return [torch.randn(n, 3, side, side) * (i + 1) + i for i, (n, side) in enumerate([(2, 5), (4, 3), (1, 8), (3, 2)])]


def network() -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(3, momentum=0.1), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, momentum=0.2))


def test_precise_statistics_are_those_of_all_values_together():
    model, given = network().train(), batches()
    training.precise_statistics(model, model, iter(given), 3)
    values = torch.cat([b.transpose(0, 1).flatten(1) for b in given[:3]], dim=1).double()  # a fourth is not taken
    torch.testing.assert_close(model[0].running_mean.double(), values.mean(1))
    torch.testing.assert_close(model[0].running_var.double(), values.var(1, correction=0))
    assert [model[0].momentum, model[2].momentum] == [0.1, 0.2]
    before = model[0].running_mean.clone()
    model(given[0])
    torch.testing.assert_close(model[0].running_mean, 0.9 * before + 0.1 * given[0].mean((0, 2, 3)))


def test_precise_statistics_are_those_of_fvcore():
    update_bn_stats = pytest.importorskip("fvcore.nn.precise_bn").update_bn_stats
    ours, theirs, given = network().train(), network().train(), batches()
    theirs.load_state_dict(ours.state_dict())
    training.precise_statistics(ours, ours, iter(given), 4)
    update_bn_stats(theirs, iter(given), 4)
    for i in (0, 2):
        torch.testing.assert_close(ours[i].running_mean, theirs[i].running_mean)
        torch.testing.assert_close(ours[i].running_var, theirs[i].running_var)


def test_frozen_and_unused_norms_keep_their_statistics():
    model = nn.ModuleDict({"used": nn.BatchNorm1d(2), "frozen": nn.BatchNorm1d(2).eval(), "unused": nn.BatchNorm1d(2)})
    training.precise_statistics(model, lambda x: model["used"](model["frozen"](x)), [torch.randn(9, 2) + 5], 1)
    assert model["used"].running_mean.min() > 3
    for name in ("frozen", "unused"):
        assert model[name].running_mean.tolist() == [0, 0]
        assert model[name].running_var.tolist() == [1, 1]
        assert model[name].momentum == 0.1


def test_momentum_comes_back_after_an_error():
    model = network().train()
    with pytest.raises(ZeroDivisionError):
        training.precise_statistics(model, lambda _: 1 / 0, [0], 1)
    assert [model[0].momentum, model[2].momentum] == [0.1, 0.2]
    assert not model[0]._forward_pre_hooks


def test_masks_come_back_from_their_encoding():
    mask_tools = pytest.importorskip("pycocotools.mask")
    mask = np.random.default_rng(0).random((5, 7)) > 0.5
    encoded = json.loads(json.dumps(training.rle(mask)))
    assert encoded["size"] == [5, 7]
    assert np.array_equal(mask_tools.decode({**encoded, "counts": encoded["counts"].encode()}), mask)
