"""Segmentation cells: their names and presets, users' own masks through the command, and what a missing engine says."""

from __future__ import annotations

import importlib.util
import inspect
from pathlib import Path

import numpy as np
import pytest
from segmented import CLASSES, scenes

from backbench.data import catalogue
from backbench.data.catalogue import DataPlaces
from backbench.errors import ConfigError
from benchmarks import plan, run_one
from benchmarks.records.store import items_path, read_all
from transfer.segmentation import engines
from transfer.segmentation import run as segmentation


@pytest.fixture
def street(tmp_path) -> Path:
    """Users' images and masks with named classes."""
    root = tmp_path / "street"
    scenes(root, 8)
    scenes(root, 5, first=100, name="val")
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    return root


@pytest.mark.parametrize(
    ("name", "preset", "head"),
    [
        ("voc12_segmentation", "moco_voc12", "fcn"),
        ("cityscapes_segmentation", "moco_cityscapes", "fcn"),
        ("ade20k_segmentation", "mmseg_ade20k", "upernet"),
    ],
)
def test_published_masks_have_their_protocol(name, preset, head):
    cell = plan.load_cell(name)
    assert (cell.name, cell.task_name, cell.config.preset, cell.config.spec.head) == (
        name, "semantic_segmentation", preset, head
    )  # fmt: skip
    info = catalogue.info(cell.config.data.name)
    assert (cell.config.train, cell.config.test) == (info.train, info.test)
    assert cell.config.data.expect == "published"


def test_masks_of_objects_keep_their_protocol():
    assert plan.load_cell("coco_instance_segmentation").task_name == "coco_instance_segmentation"
    assert plan.load_cell("coco_segmentation").name == "coco_instance_segmentation"


def test_own_masks_make_a_cell(street):
    catalogue.parse_places([f"street={street}"])
    cell = plan.load_cell("street_segmentation")
    assert cell.task_name == "semantic_segmentation" and cell.config.data.expect == "any"
    assert (cell.config.train, cell.config.test) == ("train", "val")


def test_a_missing_engine_says_how_to_install_it(street, monkeypatch):
    catalogue.parse_places([f"street={street}"])
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda asked: None if asked == "mmseg" else there(asked))
    cell = plan.load_cell("street_segmentation")
    said = cell.task.missing(cell.config, DataPlaces(None, {"street": street}))
    assert "mmseg" in said and said.endswith("not installed: python -m transfer.detection install")


@pytest.mark.parametrize("name", engines.names())
def test_module_offers_an_engine(name):
    engine = engines.get(name)
    assert engine.__doc__
    for function, member in vars(engines.Engine).items():
        if inspect.isfunction(member) and not function.startswith("_"):
            offered = getattr(engine, function)
            assert offered.__doc__
            wanted = [p for p in inspect.signature(member).parameters if p != "self"]
            assert list(inspect.signature(offered).parameters) == wanted, function


def test_an_unknown_engine_names_the_nearest():
    with pytest.raises(ConfigError, match="unknown engine 'mmsegg'; did you mean 'mmseg'"):
        engines.get("mmsegg")


def test_what_the_record_says_about_a_batch():
    config = plan.load_cell("voc12_segmentation", ["accumulate=4"]).config
    assert segmentation._notes(config, config.course()) == [
        "accumulate=4: each step adds the gradients of 4 parts of 4 images; BatchNorm's statistics are over 4 images, not 16"
    ]
    config = plan.load_cell("voc12_segmentation", ["batch=4"]).config
    (note,) = segmentation._notes(config, config.course())
    assert "batch 4 instead of 16: rate 0.00075, 120000 iterations" in note and "not comparable" in note


@pytest.mark.slow
@pytest.mark.sample(0)
def test_own_masks_are_learnt_scored_and_drawn(street, tmp_path):
    if reason := engines.get("mmseg").missing():
        pytest.skip(reason)
    out = tmp_path / "out"
    words = ["--ckpt", "random:resnet18", "--cell", "street_segmentation", "--data", f"street={street}", "--out", str(out),
             "--profile", "smoke", "--workers", "0", "accumulate=2", "spec.batch=4"]  # fmt: skip
    assert run_one.main(words) == 0
    (record,) = read_all(out)
    assert record.status == "ok" and set(record.metrics) == {"mIoU", "mAcc", "aAcc"} and record.primary == "mIoU"
    assert record.task.engine.startswith("mmseg 1.") and any("accumulate=2" in note for note in record.task.notes)
    (file,) = out.rglob("seed0.json")
    with np.load(items_path(file)) as items:
        shared, union, truth = (items[name] for name in ("intersection", "union", "truth"))
        assert shared.shape == union.shape == truth.shape == (5, len(CLASSES))
        assert np.nanmean(100 * shared.sum(0) / np.where(union.sum(0), union.sum(0), np.nan)) == pytest.approx(
            record.metrics["mIoU"].value
        )
        assert items["per_class_IoU"].shape == (len(CLASSES),)
    assert record.data.counts["test"] == 5 and record.data.counts["classes"] == len(CLASSES)
    assert list(out.rglob("pictures.png")) and list(out.rglob("mmseg_config.py"))
