"""The worked examples of docs/extending.md, written out as a plug-in folder and used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import worked_examples
from backbones import initial
from PIL import Image

from backbench import plugins
from backbench.data import catalogue
from backbench.data.catalogue import DataPlaces
from benchmarks import plan
from model_zoo import entries, formats
from model_zoo.architecture import Architecture
from model_zoo.load import load
from pretrain import config as pretrain_config
from pretrain import methods
from transfer.protocol import RunContext


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv(plugins.VARIABLE, str(worked_examples.write(tmp_path)))
    return tmp_path


@pytest.fixture
def flowers(folder) -> Path:
    for split in ("train", "test"):
        for label, colour in enumerate([(200, 30, 30), (30, 30, 200)]):
            for i in range(3):
                file = folder / "flowers" / split / f"class{label}" / f"{i}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full((40, 40, 3), colour, np.uint8) + np.uint8(i)).save(file)
    return folder / "flowers"


def test_there_is_an_example_of_each_kind(folder):
    shown = {name.split("/")[0] for name, _ in worked_examples.examples()}
    assert shown | {"suites"} == {*plugins.FILES.values(), *plugins.MODULES.values()}


def test_the_data_set_makes_cells(folder):
    assert catalogue.info("flowers102").counts["test"] == 6149
    assert plan.load_cell("flowers102_knn1").config.k == (1,)
    assert plan.load_cell("flowers102_linear_short").config.epochs == 20


def test_the_task_measures(flowers, tmp_path):
    cell = plan.load_cell("flowers102_nearest_mean", ["data.expect=any"])
    torch.save(initial(Architecture(name="resnet18", width=0.25)), tmp_path / "a.pth")
    splits = cell.task.splits(cell.config, DataPlaces(None, {"flowers102": flowers}))
    ctx = RunContext(splits=splits, seed=0, device=torch.device("cpu"), cache=tmp_path / "cache")
    assert cell.task.run(load(tmp_path / "a.pth"), cell.config, ctx)["top1"].value == 100.0


def test_the_layout_is_recognised_and_read(flowers, monkeypatch):
    monkeypatch.setattr(catalogue, "OWN", {})
    for split in ("train", "test"):
        files = sorted((flowers / split).rglob("*.png"))
        lines = [f"{file.relative_to(flowers)},{file.parent.name}" for file in files]
        (flowers / f"{split}.csv").write_text("\n".join(lines) + "\n")
    named = catalogue.parse_places([f"listed=csv_list:{flowers}"])
    split = catalogue.load("listed", "test", DataPlaces(None, named))
    assert (len(split), split.classes, split.labels.tolist()) == (6, ("class0", "class1"), [0, 0, 0, 1, 1, 1])


def test_the_checkpoint_layout_is_read(folder):
    arch = Architecture(name="resnet18", width=0.25)
    state = initial(arch)
    torch.save(formats.modules()["mylab"].example(state, arch), folder / "b.pth")
    loaded = load(folder / "b.pth")
    assert loaded.format == "mylab" and torch.equal(loaded.state["conv1.weight"], state["conv1.weight"])


def test_the_method_can_be_named_and_teaches(folder):
    assert pretrain_config.load("demo", ["method.name=mean_view"]).method.name == "mean_view"
    p, z = torch.randn(2, 6, 4, requires_grad=True), torch.randn(2, 6, 4)
    loss, parts = methods.get("mean_view").losses(p, z, None)
    loss.backward()
    assert p.grad.abs().sum() > 0 and set(parts) == {"distance"}


def test_the_baseline_is_shown(folder):
    assert entries.get("mylab_r50_100ep").published[0].value == 68.0
