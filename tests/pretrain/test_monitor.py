"""Online measurements: one pass over the images gives the 20-NN accuracy and every diagnostic of the same features."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from backbench.data.transforms import evaluation_view
from backbench.diagnostics import DIAGNOSTICS, measure
from backbench.embeddings import knn_accuracy
from pretrain.data import open_split
from pretrain.log import Log
from pretrain.monitor import measure_online
from pretrain.plan import Plan

CPU = torch.device("cpu")


class Colours(nn.Module):
    """A backbone without weights: the mean colours of a grid of cells. It counts its passes."""

    def __init__(self, cells=4, scale=1.0):
        super().__init__()
        self.pool, self.scale, self.passes = nn.AdaptiveAvgPool2d(cells), scale, 0

    def forward(self, x):
        self.passes += 1
        return self.scale * self.pool(x).flatten(1)


@pytest.fixture
def measured(shared_photos, recipe):
    """`measured(backbone, labels=..., "a.b=c")` on the 30 photographs."""

    def go(backbone, *fields, **changes):
        config = recipe(shared_photos, *fields)
        return measure_online(backbone, dataclasses.replace(open_split(config.data), **changes), config, CPU)

    return go


def features_by_hand(split, config):
    mean, std = (torch.tensor(v) for v in (config.data.mean, config.data.std))
    views = torch.stack([torch.from_numpy(evaluation_view(split.source.pil(i), 32)) for i in range(len(split))])
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))
    return Colours()(((views / 255 - mean) / std).permute(0, 3, 1, 2))[order], torch.from_numpy(split.labels)[order]


def test_one_pass_gives_the_accuracy_and_the_diagnostics(measured, shared_photos, recipe):
    backbone = Colours()
    found = measured(backbone)
    assert backbone.passes == 1
    config = recipe(shared_photos)
    x, labels = features_by_hand(open_split(config.data), config)
    expected = measure(x)[0]
    assert set(expected) == {*DIAGNOSTICS} - {"alpha_req"}, "30 images have no 100 eigenvalues"
    accuracy = knn_accuracy(x[24:], labels[24:], x[:24], labels[:24], ks=[20], classes=2)[20]
    assert found == pytest.approx(
        {"online_knn20": accuracy, **{f"online_{k}": v for k, v in expected.items()}}, rel=1e-3
    )


def test_labels_change_no_diagnostic(measured):
    found, unlabelled = measured(Colours()), measured(Colours(), labels=None)
    assert found.keys() - unlabelled.keys() == {"online_knn20"}
    assert all(found[name] == unlabelled[name] for name in unlabelled)


def test_a_few_images_are_measured_without_a_knn(measured):
    assert "online_knn20" not in measured(Colours(), "run.knn_images=24")
    assert "online_rankme" in measured(Colours(), "run.knn_images=24")
    assert measured(Colours(), "run.knn_images=1") == {}


@pytest.mark.parametrize("scale", [0.0, float("nan"), float("inf")])
def test_degenerate_features_end_no_run(measured, scale):
    found = measured(Colours(scale=scale))
    assert found.keys() - {"online_knn20"} == (
        {"online_rankme", "online_effective_rank", "online_uniformity"} if scale == 0 else set()
    )


def test_the_line_says_what_there_is(shared_photos, recipe, tmp_path, capsys):
    log = Log(tmp_path, recipe(shared_photos), Plan(total=10, warmup=0, per_epoch=5), start=0)
    log.online(1, {"online_knn20": 45.67, "online_rankme": 12.345, "online_cluster_learnability": 71.2})
    log.online(3, {"online_rankme": 3.0})
    log.online(5, {})
    log.close()
    said = capsys.readouterr().err
    assert "step 2/10  online 20-NN 45.7% (within the training split)  rankme 12.3  cluster_learnability 71.2%" in said
    assert "step 4/10  rankme 3\n" in said
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
