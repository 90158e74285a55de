"""Names of suites and cells, with overrides, resolve to configurations."""

from pathlib import Path

import pytest
import yaml

from backbench import plugins
from backbench.data import catalogue
from backbench.data.catalogue import DataPlaces
from backbench.errors import BackbenchError, ConfigError
from benchmarks import plan
from transfer import tasks


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: plan.load_suite("demmo"), "unknown suite 'demmo'; did you mean 'demo'"),
        (lambda: plan.load_cell("imagenet_kn"), "unknown cell 'imagenet_kn'; did you mean 'imagenet_knn'"),
        (lambda: plan.load_cell("imagenet_knn", ["metrik=cosine"]), "unknown key 'metrik'; did you mean 'metric'"),
        (lambda: plan.load_cell("imagenet_knn", ["data.nam=x"]), "unknown key 'data.nam'; did you mean 'data.name'"),
        (lambda: plan.load_cell("imagenet_knn", ["preset=npdi"]), "unknown preset 'npdi'; did you mean 'npid'"),
        (lambda: plan.load_cell("imagenet_knn", ["k"]), "not of the form key=value"),
        (lambda: plan.load_cell("imagenet_knn", ["k=many"]), "'k'"),
        (lambda: plan.load_cell("imagenet_knn", ["k=[0]"]), "greater than 0"),
        (lambda: plan.load_cell("imagenet_knn", ["metric=manhattan"]), "'metric'"),
        (lambda: plan.load_cell("imagenet_linear", ["momentum=1.5"]), "'momentum'"),
        (lambda: plan.load_cell("imagenet_linear", ["epochs=2.5"]), "'epochs'"),
        (lambda: plan.split_overrides(["imagnet_knn.k=[1]"], ["imagenet_knn"]), "did you mean 'imagenet_knn'"),
        (lambda: plan.split_overrides(["stl10_knn.k=[1]"], ["imagenet_knn"]), "not among the cells of this run"),
        (lambda: plan.split_overrides(["stl10*.k=[1]"], ["imagenet_knn"]), "not among the cells of this run"),
        (lambda: plan.split_overrides(["k=[1]"], ["imagenet_knn"]), "<cell>.<field>=<value>"),
        (lambda: catalogue.parse_places(["imagenet"]), "expected name=PATH"),
        (lambda: catalogue.parse_places(["imagenet="]), "expected name=PATH"),
        (lambda: catalogue.parse_places(["imagnet=/x"]), "unknown data set 'imagnet'; did you mean 'imagenet'"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence_with_the_nearest_name(call, expected):
    with pytest.raises(BackbenchError) as caught:
        call()
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_overrides_reach_the_config():
    cell = plan.load_cell("imagenet_linear", ["data.expect=any", "data.limit=40", "rates=[0.5, 1e-3]", "epochs=7"])
    config = cell.config
    assert (config.data.name, config.data.expect, config.data.limit) == ("imagenet", "any", 40)
    assert (config.rates, config.epochs) == ((0.5, 0.001), 7)
    assert config.batch == plan.load_cell("imagenet_linear").config.batch
    assert plan.load_cell("imagenet_knn", ["temperature=null"]).config.temperature is None


def test_a_cells_own_fields_stand_over_the_preset():
    config = plan.load_cell("stl10_knn").config
    assert (config.size, config.resize) == (64, 70)
    assert (config.preset, config.k, config.metric, config.temperature) == ("wmse", (5,), "euclidean", None)


def test_preset_override_takes_the_presets_fields():
    config = plan.load_cell("imagenet_knn", ["preset=wmse"]).config
    wmse = tasks.get("knn").Config.PRESETS["wmse"].fields
    assert config.preset == "wmse"
    assert (list(config.k), config.metric, config.temperature) == (wmse["k"], "euclidean", None)
    assert config.data.name == "imagenet"
    config = plan.load_cell("imagenet_knn", ["preset=wmse", "k=[7]", "headline_k=7"]).config
    assert (config.k, config.metric) == ((7,), "euclidean"), "an override stands over the preset"


def test_smoke_profile():
    config = plan.load_cell("imagenet_linear", profile="smoke").config
    assert (config.data.expect, config.data.name) == ("any", "imagenet")
    assert config.data.limit == 256
    assert config.epochs == 2
    assert config.preset == "sweep"


def test_overrides_stand_over_the_smoke_profile():
    config = plan.load_cell("imagenet_linear", ["epochs=5", "data.limit=40", "momentum=0.5"], profile="smoke").config
    assert config.momentum == 0.5
    assert (config.epochs, config.data.limit) == (5, 40)


def test_config_digest_is_stable():
    """One configuration written in several ways has one identity; any field changes it."""
    usual = plan.load_cell("imagenet_knn").config_sha256
    assert plan.load_cell("imagenet_knn").config_sha256 == usual
    assert plan.load_cell("imagenet_knn", ["preset=npid", "temperature=7e-2"]).config_sha256 == usual
    a = plan.load_cell("imagenet_knn", ["headline_k=10", "data.limit=3"]).config_sha256
    assert plan.load_cell("imagenet_knn", ["data.limit=3", "headline_k=10"]).config_sha256 == a
    changed = [
        plan.load_cell("imagenet_knn", [o]).config_sha256
        for o in ("k=[20]", "temperature=0.1", "size=32", "resize=40", "data.limit=3", "data.expect=any")
    ]
    assert len({usual, a, *changed}) == 8
    assert plan.load_cell("imagenet_knn", ["chunk=9"]).config_sha256 == usual, "it changes no number"


def test_split_overrides():
    found = plan.split_overrides(["a.k=[1]", "b.data.limit=3", "a.data.name=x.y=z"], ["a", "b", "c"])
    assert found == {"a": ["k=[1]", "data.name=x.y=z"], "b": ["data.limit=3"], "c": []}
    several = plan.split_overrides(["voc*.data.limit=3", "voc_a.data.limit=4"], ["voc_a", "voc_b", "coco"])
    assert several == {"voc_a": ["data.limit=3", "data.limit=4"], "voc_b": ["data.limit=3"], "coco": []}


def test_suites_refuse_what_they_do_not_know(tmp_path, monkeypatch):
    (tmp_path / "suites").mkdir()
    (tmp_path / "tasks").mkdir()
    monkeypatch.setenv(plugins.VARIABLE, str(tmp_path))
    (tmp_path / "suites" / "mine.yaml").write_text(yaml.safe_dump({"cells": ["a"], "seads": 3}))
    with pytest.raises(ConfigError, match="suite mine: unknown key 'seads'; did you mean 'seeds'"):
        plan.load_suite("mine")
    (tmp_path / "tasks" / "mine.yaml").write_text("preset: npid\n")
    with pytest.raises(ConfigError, match="cell mine: key 'task' is missing"):
        plan.load_cell("mine")
    (tmp_path / "tasks" / "mine.yaml").write_text("task: knm\n")
    with pytest.raises(ConfigError, match="unknown task 'knm'; did you mean 'knn'"):
        plan.load_cell("mine")


def resolved(suite):
    """Return the suite's cells as `run_all` resolves them."""
    overrides = plan.split_overrides(suite.overrides, suite.cells)
    return {name: plan.load_cell(name, overrides[name]).config for name in suite.cells}


def test_the_demo_trains_one_detector_and_demo_all_both_engines():
    demo, everything = (resolved(plan.load_suite(name)) for name in ("demo", "demo_all"))
    assert {config.engine for config in demo.values() if hasattr(config, "engine")} == {"detectron2"}
    assert {config.engine for config in everything.values() if hasattr(config, "engine")} == {"detectron2", "mmdet"}
    assert demo.items() <= everything.items(), "a record of the one is a record of the other"
    assert all(config.data.expect == "any" for config in everything.values())


def test_the_demo_presets_course_stands_in_the_cell():
    for name, head in (("voc0712_detection", "c4"), ("coco_instance_segmentation", "fpn")):
        cell, published = plan.load_cell(name, ["preset=demo"]), plan.load_cell(name)
        course = cell.config.course()
        assert course == cell.config.spec, "no batch is set: nothing is scaled"
        assert course.head == published.config.spec.head == head
        assert course.iterations < 1000 < published.config.spec.iterations
        assert all(drop < course.iterations for drop in course.milestones), "every drop of the rate is reached"


def test_places():
    paper, demo = plan.load_suite("paper"), plan.load_suite("demo")
    assert plan.places_of(paper, None, {}) == DataPlaces(None, {})
    root = Path("/data")
    assert plan.places_of(demo, root, {}).of("imagenet") == root / "imagenet", "what is said stands over the demo"
    named = catalogue.parse_places(["stl10=/elsewhere/stl", "imagenet=~/x=y"])
    places = plan.places_of(paper, root, named)
    assert places.of("stl10") == Path("/elsewhere/stl")
    assert places.of("imagenet") == Path.home() / "x=y"
    assert places.of("imagenet100") == root / "imagenet100"
