"""Every protocol and every cell: a task module offers the required members and returns what it promises."""

import importlib
import math

import backbones
import numpy as np
import pytest
import torch

from backbench.config import build
from backbench.data import catalogue, demo
from backbench.data.catalogue import DataPlaces
from backbench.errors import ConfigError
from backbench.files.folders import configs_folder
from benchmarks import plan
from model_zoo.architecture import Architecture
from transfer import tasks
from transfer.protocol import Metric, RunContext, Task, TaskConfig

pytestmark = pytest.mark.slow  # runs every cell and preset

# Fields that must differ for a tiny data set, which has no official list.
SMALL = {"k": "[1,3]", "ways": "[2]", "shots": "[1]", "headline_shots": "1", "queries": "2", "episodes": "3", "steps": "2",
         "decays": "[0.0,0.001]",
         "headline_k": "3", "epochs": "1", "batch": "8", "list": "drawn", "size": "32", "resize": "32",
         "costs": "[0.1,1]", "samples": "2", "jobs": "1", "iterations": "2", "warmup": "0", "crop": "64",
         "window_stride": "48"}  # fmt: skip


# Recipes for the embedded scenes: they measure nothing and are in no suite.
DEMO = ("detection_demo_long", "detection_demo_long_mmdet")

# Each cell file, and one pair per protocol: the others differ only in the name of the data.
FILES = [path.stem for path in sorted((configs_folder() / "tasks").glob("*.yaml"))]
MEASURED = sorted(
    {
        *FILES,
        "voc12_linear_segmentation",
        *(name for name in plan.cell_names() if name.startswith(("imagenet_", "coco_"))),
    }
)


def tiny(width):
    return backbones.tiny(Architecture(name="resnet18", width=width))


@pytest.fixture(scope="module")
def backbone():
    return tiny(0.25)


@pytest.fixture
def stl10_folder(tmp_path):
    folder = tmp_path / "stl10" / "stl10_binary"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("test", 6)):
        rng.integers(0, 256, (count, 3, 96, 96), np.uint8).tofile(folder / f"{split}_X.bin")
        (np.arange(count) % 10 + 1).astype(np.uint8).tofile(folder / f"{split}_y.bin")
    return folder.parent


@pytest.fixture
def places(image_folder, stl10_folder):
    """Return a tiny folder for layouts that are quick to write, the rendered demo for the others."""

    def of(name):
        layout = catalogue.info(name).layout
        if layout == "imagefolder":
            return DataPlaces(None, {name: image_folder})
        if layout == "stl10":
            return DataPlaces(None, {name: stl10_folder})
        return DataPlaces(demo.root())

    return of


def is_detection(name):
    return hasattr(plan.load_cell(name).config, "engine")


def every_preset():
    return [(name, preset) for name in tasks.names() for preset in tasks.get(name).Config.PRESETS]


def test_registry_lists_the_modules():
    assert {"knn", "linear_probe", "semi_supervised", "uniformity"} <= set(tasks.names())


@pytest.mark.parametrize("name", tasks.names())
def test_module_exports_its_task(name, tmp_path):
    module, task = importlib.import_module(f"transfer.tasks.{name}"), tasks.get(name)
    assert module.__doc__
    assert isinstance(task, Task) and task is module.TASK and task.name == name
    assert isinstance(task.version, int) and task.version >= 1
    assert issubclass(task.Config, TaskConfig)
    assert task.Config.PRESETS
    config = task.Config()
    assert config.preset in task.Config.PRESETS
    assert isinstance(task.primary(config), str)
    assert isinstance(task.deterministic, bool)
    for function in ("smoke", "missing", "splits", "run"):
        assert callable(getattr(task, function))
    reason = task.missing(config, DataPlaces())
    assert config.data.name in reason, "missing data give a reason, not an exception"
    assert task.missing(config, DataPlaces(tmp_path / "nowhere")) is not None


def holds(values, fields):
    """Return whether `values` has every field, including nested ones."""
    if not isinstance(fields, dict):
        return values == fields
    return all(key in values and holds(values[key], field) for key, field in fields.items())


@pytest.mark.parametrize(("name", "preset"), every_preset())
def test_every_preset_builds(name, preset):
    task = tasks.get(name)
    fields = tasks.preset_fields(task, preset)
    assert set(fields) <= set(task.Config.model_fields), "a conditional key is resolved"
    config = build(task.Config, {**fields, "preset": preset})
    dumped = config.model_dump(mode="json")
    assert holds(dumped, fields)
    assert build(task.Config, dumped) == config


@pytest.mark.parametrize(("name", "preset"), every_preset())
def test_smoke_fields_build_and_limit_the_images(name, preset):
    task = tasks.get(name)
    config = build(task.Config, {**tasks.preset_fields(task, preset), "preset": preset})
    rehearsal = task.smoke(config)
    assert 0 < rehearsal["data"]["limit"] <= 1024
    smaller = build(task.Config, {**config.model_dump(mode="json"), **rehearsal})
    assert smaller != config
    assert isinstance(task.primary(smaller), str)


def test_unknown_task_and_preset_name_the_nearest():
    with pytest.raises(ConfigError, match="unknown task 'linear_prob'; did you mean 'linear_probe'"):
        tasks.get("linear_prob")
    with pytest.raises(ConfigError, match="unknown preset 'wmes'; did you mean 'wmse'"):
        tasks.preset_fields(tasks.get("knn"), "wmes")


@pytest.mark.parametrize("name", plan.cell_names())
def test_cell_loads_in_both_profiles(name):
    full, rehearsal = plan.load_cell(name), plan.load_cell(name, profile="smoke")
    expected = "any" if name in DEMO else "published"
    assert full.config.data.expect == expected, "a cell measures the published data unless told otherwise"
    assert full.config.data.limit == 0
    assert rehearsal.config.data.expect == "any"
    assert rehearsal.config.data.limit > 0
    assert full.config.data.name in catalogue.known()
    assert rehearsal.config_sha256 != full.config_sha256


@pytest.mark.parametrize("name", plan.suite_names())
def test_suite_holds_cells_that_exist(name):
    suite = plan.load_suite(name)
    assert suite.cells
    assert all(plan.is_cell(name) for name in suite.cells)
    assert len(set(suite.cells)) == len(suite.cells)
    assert not set(suite.cells) & set(DEMO)
    by_cell = plan.split_overrides(suite.overrides, suite.cells)
    for cell in suite.cells:
        plan.load_cell(cell, by_cell[cell])


def small(config):
    """Return overrides for a data set of a few images."""
    fields = type(config).model_fields
    return ["data.expect=any", "data.limit=48", *(f"{name}={value}" for name, value in SMALL.items() if name in fields)]


def check_run(task, config, where, backbone, cache):
    """The metrics include the headline, finite and within their unit; a deterministic task repeats its numbers."""
    splits = task.splits(config, where)
    assert {"train", "test"} <= set(splits)
    ctx = RunContext(splits, 0, torch.device("cpu"), cache / "features", cache / "run")
    metrics = task.run(backbone, config, ctx)
    assert task.primary(config) in metrics
    for metric in metrics.values():
        assert isinstance(metric, Metric)
        assert math.isfinite(metric.value)
        if metric.unit == "%":
            assert 0 <= metric.value <= 100
    if task.deterministic:
        assert task.run(backbone, config, RunContext(splits, 1, torch.device("cpu"), cache / "others")) == metrics


# Every engine runs in tests/transfer/detection/test_own_data.py; here every task runs, each with one engine.
DETECTION = ("voc0712_detection", "coco_instance_segmentation_mmdet", "coco_detection")


@pytest.mark.slow
@pytest.mark.parametrize("name", DETECTION)
@pytest.mark.sample(1)
def test_detection_cell_runs_and_returns_its_headline(name, places, tmp_path):
    fields = ["spec.iterations=1", "spec.precise_bn=1", "spec.batch=2", "spec.sides_train=[64]", "spec.side_test=64"]
    fields += ["spec.detections=10"]
    cell = plan.load_cell(name, fields, "smoke")
    if getattr(cell.config, "train", "") == "trainval07+12":
        cell = plan.load_cell(name, [*fields, "train=trainval"], "smoke")  # the demo has one year
    where = places(cell.config.data.name)
    reason = cell.task.missing(cell.config, where)
    if reason is not None:
        pytest.skip(f"{name}: {reason}")
    check_run(cell.task, cell.config, where, tiny(1), tmp_path)


@pytest.mark.parametrize("name", [name for name in MEASURED if not is_detection(name)])
def test_cell_runs_and_returns_its_headline(name, places, backbone, tmp_path):
    cell = plan.load_cell(name, small(plan.load_cell(name).config))
    where = places(cell.config.data.name)
    reason = cell.task.missing(cell.config, where)
    if reason is not None:
        pytest.skip(f"{name}: {reason}")
    check_run(cell.task, cell.config, where, backbone, tmp_path)


@pytest.mark.parametrize(("name", "preset"), every_preset())
def test_preset_runs_and_returns_its_headline(name, preset, image_folder, backbone, tmp_path):
    task = tasks.get(name)
    config = task.Config()
    if catalogue.info(config.data.name).layout != "imagefolder":
        pytest.skip("its data are no image folder")
    values = {**tasks.preset_fields(task, preset), "preset": preset}
    larger = ["size=64", "resize=64"] if values.get("feature") == "res5_2x2" else []  # C5 is 2 x 2
    config = build(task.Config, values, [*small(config), *larger])
    where = DataPlaces(None, {config.data.name: image_folder})
    if reason := task.missing(config, where):
        pytest.skip(f"{name}: {reason}")
    check_run(task, config, where, backbone, tmp_path)


@pytest.mark.parametrize("name", [name for name in MEASURED if name not in DEMO])
def test_cell_refuses_data_that_are_not_the_published_ones(name, places):
    both_years = getattr(plan.load_cell(name).config, "train", "") == "trainval07+12"
    cell = plan.load_cell(name, ["train=trainval"] if both_years else [])  # the demo's devkit has no VOC2012
    where = places(cell.config.data.name)
    if cell.task.missing(cell.config, where) is not None:
        pytest.skip("the engine is absent")
    with pytest.raises(catalogue.DataError, match="published"):
        cell.task.splits(cell.config, where)
