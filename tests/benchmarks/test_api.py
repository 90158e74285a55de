"""`import backbench`: load, measure, compare."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

import backbench
from backbench.errors import BackbenchError, CheckpointError, ConfigError

ROOT = Path(__file__).resolve().parents[2]
FEW = {"k": [1, 3], "headline_k": 3, "size": 32, "expect": "any", "workers": 0}


class Pooled(nn.Module):
    """A small network that a user wrote."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 7, stride=4)

    def forward(self, x):
        return self.stem(x).mean(dim=(2, 3))


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, backbench; print(sorted({'torch', 'numpy', 'pydantic', 'benchmarks'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_package_lists_its_interface():
    assert {"load", "measure", "compare", "__version__"} <= set(dir(backbench))
    with pytest.raises(AttributeError, match="no attribute 'measur'"):
        backbench.measur  # noqa: B018


def test_a_torchvision_resnet_becomes_a_resnet_and_is_left_as_it_is():
    module = torchvision.models.resnet18().train()
    backbone = backbench.load(module, name="mine")
    assert backbone.is_resnet and backbone.name == "mine" and backbone.named
    assert module.training
    x = torch.randn(1, 3, 64, 64)
    features = backbone.build().eval()(x)
    assert torch.allclose(module.eval().fc(features), module(x), atol=1e-4)


def test_a_resnet_that_computes_something_else_is_no_resnet():
    module = torchvision.models.resnet18()
    module.relu = nn.LeakyReLU(0.5)
    module.fc = nn.Identity()
    assert not backbench.load(module).is_resnet


def test_another_module_is_measured_by_its_features():
    backbone = backbench.load(Pooled(), input={"size": 64})
    assert (backbone.name, backbone.feature_dim, backbone.input.size) == ("Pooled", 8, 64)
    with pytest.raises(CheckpointError, match=r"Conv2d: returns .* features \(N, C\) are needed: pool the maps"):
        backbench.load(nn.Conv2d(3, 4, 3))
    with pytest.raises(CheckpointError, match="did you mean 'size'"):
        backbench.load(Pooled(), input={"siz": 64})


def test_measure_gives_the_record_and_keeps_it_where_asked(image_folder, tmp_path):
    network = Pooled()
    record = backbench.measure(network, "imagenet_knn", data=image_folder, out=tmp_path / "out", **FEW)
    assert record.primary == "top1_k3" and 0 <= record.metrics["top1_k3"].value <= 100
    (kept,) = (tmp_path / "out").rglob("seed0.json")
    changed = kept.stat().st_mtime_ns
    again = backbench.measure(network, "imagenet_knn", data={"imagenet": image_folder}, out=tmp_path / "out", **FEW)
    assert again == record
    assert kept.stat().st_mtime_ns == changed


def test_measure_refuses_with_the_reason(image_folder, tmp_path):
    with pytest.raises(BackbenchError, match="published"):
        backbench.measure(Pooled(), "imagenet_knn", data=image_folder, **{**FEW, "expect": "published"})
    with pytest.raises(ConfigError, match="did you mean 'imagenet_knn'"):
        backbench.measure(Pooled(), "imagenet_kn", data=image_folder)
    with pytest.raises(ConfigError, match="did you mean 'headline_k'"):
        backbench.measure(Pooled(), "imagenet_knn", data=image_folder, headline=5)
    with pytest.raises(BackbenchError, match="no folder"):
        backbench.measure(Pooled(), "imagenet_knn", data=tmp_path / "nowhere", **FEW)


def test_compare_sets_records_beside_each_other(image_folder):
    records = [
        backbench.measure(backbench.load("random:resnet18", name=name), "imagenet_knn", data=image_folder, **FEW)
        for name in ("a", "b")
    ]
    found = backbench.compare(*records, to="b", literature=False)
    assert {row["backbone"] for row in found.rows} == {"a (resnet18)", "b (resnet18)"}
    assert "| difference |" in str(found)
    with pytest.raises(BackbenchError, match="no result has a number"):
        backbench.compare()


@pytest.mark.slow
def test_the_example_runs(capsys):
    runpy.run_path(str(ROOT / "docs" / "examples" / "measure.py"))
    shown = capsys.readouterr().out
    assert "**imagenet_knn top1_k5 DEMO**" in shown
    assert "second (resnet18)" in shown
