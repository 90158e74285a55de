"""The task of diagnostics: the functions' numbers on cached features and on views; no label is used."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from backbones import tiny

from backbench.config import build
from backbench.data import catalogue
from backbench.data.catalogue import DataPlaces
from backbench.diagnostics import DIAGNOSTICS, measure
from backbench.errors import DataError
from backbench.spectra import Undefined, lidar
from benchmarks import plan
from benchmarks.records.reading import impossible
from benchmarks.records.schema import MetricRecord
from model_zoo.architecture import Architecture
from model_zoo.backbone import Backbone
from transfer import features, view_features
from transfer.augment import SeededViews
from transfer.protocol import RunContext
from transfer.tasks import diagnostics

ANY = {"data": {"name": "imagenet", "expect": "any"}, "lidar_views": 3}


@pytest.fixture(scope="module")
def backbone():
    arch = Architecture(name="resnet18", width=0.25)
    return tiny(arch)


@pytest.fixture
def run(backbone, image_folder, tmp_path):
    """Measure the 12 test images; `change` may replace the splits."""

    def go(fields=(), *, seed=0, change=lambda splits: splits, backbone=backbone):
        config = build(diagnostics.Config, {**ANY, **dict(fields)})
        splits = change(diagnostics.TASK.splits(config, DataPlaces(None, {"imagenet": image_folder})))
        ctx = RunContext(splits=splits, seed=seed, device=torch.device("cpu"), cache=tmp_path / "cache")
        return diagnostics.run(backbone, config, ctx), ctx

    return go


def values(metrics):
    return {name: metric.value for name, metric in metrics.items()}


def test_numbers_are_those_of_the_cached_features(run, backbone):
    found, ctx = run()
    x = features.extract(backbone, ctx.splits["test"], ctx)
    expected, reasons = measure(x[torch.randperm(12, generator=torch.Generator().manual_seed(0))])
    assert {name: value for name, value in values(found).items() if name != "lidar"} == expected
    assert set(reasons) == {"alpha_req"} and set(found) == {*DIAGNOSTICS, "lidar"} - {"alpha_req"}
    assert ctx.notes == [
        "no alpha_req: 11 eigenvalues are above rounding, and alpha is fitted to 100: give more images"
    ]
    for name, metric in found.items():
        direction = name == "lidar" or DIAGNOSTICS[name].higher_is_better
        assert (metric.higher_is_better, metric.unit) == (direction, "%" if name == "cluster_learnability" else "")
        record = MetricRecord(value=metric.value, unit=metric.unit, higher_is_better=metric.higher_is_better)
        assert impossible(name, record) is None


def test_lidar_is_that_of_seeded_views_of_every_image(run, backbone):
    found, ctx = run(seed=4)
    drawn = torch.randperm(12, generator=torch.Generator().manual_seed(4)).numpy()
    views = SeededViews(ctx.splits["test"].part(drawn), view_features.views_of("byol_pair", 32), seed=4)
    mean, std = (torch.tensor(v) for v in (backbone.input.mean, backbone.input.std))
    module, x = backbone.build().eval(), []
    for view in range(3):
        pixels = torch.stack([torch.from_numpy(views[view, i][0]) for i in range(12)])
        with torch.no_grad():
            x.append(module(((pixels / 255 - mean) / std).permute(0, 3, 1, 2)))
    assert found["lidar"].value == pytest.approx(lidar(torch.stack(x, dim=1)), rel=1e-3)
    assert values(run(seed=4)[0]) == values(found)
    assert values(run(seed=5)[0])["lidar"] != found["lidar"].value
    assert values(run({"views": "crop"}, seed=4)[0])["lidar"] != found["lidar"].value
    assert values(run({"delta": 1.0}, seed=4)[0])["lidar"] != found["lidar"].value


def test_no_label_is_used(run):
    found = values(run()[0])

    def several(splits):
        labels = torch.ones(12, 3, dtype=torch.int8).numpy()
        return splits | {"test": dataclasses.replace(splits["test"], labels=labels)}

    assert values(run(change=several)[0]) == found
    none = lambda splits: {role: dataclasses.replace(split, labels=None) for role, split in splits.items()}  # noqa: E731
    assert values(run(change=none)[0]) == found


def test_a_sample_of_the_images_may_be_measured(run):
    found, ctx = run({"images": 6, "lidar_images": 4})
    other, _ = run({"images": 6, "lidar_images": 4}, seed=1)
    assert found["rankme"].value <= 6 and found["lidar"].value <= 3 + 1e-3
    assert values(found)["rankme"] != values(other)["rankme"], "the seed draws them"
    assert "images are too few" not in str(ctx.notes)


def test_lidar_can_be_left_out(run, monkeypatch):
    monkeypatch.setattr(diagnostics, "view_features", None)
    found, _ = run({"lidar_views": None})
    assert "lidar" not in found and "rankme" in found
    assert plan.load_cell("imagenet_diagnostics", ["preset=cheap"]).config.lidar_views is None


class _Collapsed(Backbone):
    """A network with the same output for every image."""

    def build(self):
        module = super().build()
        module.register_forward_hook(lambda part, args, out: torch.ones_like(out))
        return module


def test_collapsed_features_keep_what_is_defined_and_say_the_rest(run, backbone):
    fields = {field.name: getattr(backbone, field.name) for field in dataclasses.fields(backbone)}
    found, ctx = run(backbone=_Collapsed(**fields))
    assert values(found) == {
        "rankme": pytest.approx(1, abs=1e-3),
        "effective_rank": 1,
        "uniformity": pytest.approx(0, abs=1e-5),
        "lidar": pytest.approx(1, abs=1e-3),
    }
    assert ctx.notes[0] == "collapsed: the features of imagenet val are the same for all 12 images"
    assert [note.partition(":")[0] for note in ctx.notes[1:]] == [
        "no alpha_req",
        "no intrinsic_dimension",
        "no cluster_learnability",
    ]


def test_a_lidar_that_is_undefined_is_noted(run, monkeypatch):
    def undefined(*_):
        raise Undefined("delta is lost")

    monkeypatch.setattr(diagnostics, "lidar", undefined)
    found, ctx = run()
    assert "lidar" not in found and ctx.notes[-1] == "no lidar: delta is lost"


def test_one_image_has_no_diagnostics(run):
    with pytest.raises(DataError, match="at least two images"):
        run({"data": {**ANY["data"], "limit": 1}})


def test_every_data_set_has_its_cell():
    for data, known in catalogue.known().items():
        if known.train is None:  # a test set alone makes no cells
            continue
        assert plan.load_cell(f"{data}_diagnostics").config.data.name == data
    config = plan.load_cell("voc_diagnostics").config
    assert (config.preset, config.images, config.lidar_images, config.lidar_views, config.delta) == (
        "papers",
        25_600,
        1000,
        50,
        1e-4,
    )
