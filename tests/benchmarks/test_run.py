"""From a checkpoint to records and a report: new results, kept results, failures and their messages."""

import dataclasses
import functools
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import warm
from PIL import Image

from backbench.config import digest
from backbench.data import catalogue
from backbench.data import demo as scenes
from backbench.errors import BackbenchError, CheckpointError, ConfigError
from benchmarks import measuring, plan, run_all, run_one, starting, subjects
from benchmarks.launchers import local
from benchmarks.options import CellOptions
from benchmarks.records import store
from model_zoo.architecture import Architecture, InputSpec
from model_zoo.backbone import save
from model_zoo.load import load
from model_zoo.resnet import build
from transfer.tasks import knn, linear_probe

ROOT = Path(__file__).resolve().parents[2]
KNN = ["data.expect=any", "k=[1,3]", "headline_k=3"]
LINEAR = ["data.expect=any", "epochs=2", "batch=8", "rates=[0.1,1.0]"]


@functools.cache
def _state(width, seed):
    return build(Architecture(name="resnet18", width=width), seed=seed).state_dict()


def write_checkpoint(path, seed=0, width=0.25, size=32):
    save(path, _state(width, seed), Architecture(name="resnet18", width=width), InputSpec(size=size))
    return path


@pytest.fixture
def ckpt(tmp_path):
    return write_checkpoint(tmp_path / "photos.pth")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "results"


@pytest.fixture
def one(image_folder, out, ckpt):
    """`run_one` in this process."""

    def run(*overrides, cell="imagenet_knn", ckpt=ckpt, data=image_folder, seeds=1, more=()):
        places = ["--data", f"imagenet={data}"] if data else []
        argv = ["--ckpt", str(ckpt), "--cell", cell, "--out", str(out), "--seeds", str(seeds), "--workers", "0"]
        return run_one.main([*argv, *places, *more, *overrides])

    return run


def change(monkeypatch, module, **fields):
    """Replace fields of a module's task."""
    monkeypatch.setattr(module, "TASK", dataclasses.replace(module.TASK, **fields))


@pytest.fixture
def ran(monkeypatch):
    """Record each measurement of a task."""
    calls = []
    for module in (knn, linear_probe):

        def counting(backbone, config, ctx, real=module.run, name=module.__name__):
            calls.append((name, backbone.name, ctx.seed))
            return real(backbone, config, ctx)

        change(monkeypatch, module, run=counting)
    return calls


def records(out):
    return list(store.read_all(out))


def files(out):
    return sorted(out.glob("*/*/seed*.json"))


# ---------------------------------------------------------------- run_one


def test_a_record_says_what_was_measured(one, out, ckpt, image_folder):
    assert one(*KNN) == 0
    (record,) = records(out)
    assert (record.status, record.seed, record.cell, record.profile) == ("ok", 0, "imagenet_knn", "full")
    assert record.primary == "top1_k3" and record.primary in record.metrics
    assert record.backbone.weights_sha256 == load(ckpt).weights_sha256
    assert record.data.counts == {"train": 24, "test": 12, "classes": 3}
    assert not record.data.is_published and not record.data.is_demo
    assert record.task.config["k"] == [1, 3]
    assert record.provenance.wall_s >= 0 and record.provenance.packages["torch"]
    assert record.metrics["top1_k3"].value == 100.0, "a class has its own brightness"
    (path,) = files(out)
    assert path.parts[-3] == f"photos-{record.backbone.weights_sha256[:8]}"
    assert path.parts[-2] == f"imagenet_knn-{record.task.config_sha256[:8]}"


def test_the_second_time_the_record_is_kept(one, out, ran):
    assert one(*KNN) == 0
    (path,) = files(out)
    before = path.read_bytes(), path.stat().st_mtime_ns
    assert one(*KNN) == 0
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert len(ran) == 1


@pytest.mark.parametrize(("demo", "profile", "mark"), [(True, "full", " DEMO"), (False, "smoke", " REHEARSAL")])
def test_numbers_that_are_no_results_are_marked_as_they_are_made(one, capsys, monkeypatch, demo, profile, mark):
    monkeypatch.setattr(scenes, "is_demo", lambda _place: demo)
    assert one(*KNN, more=["--profile", profile]) == 0
    assert re.search(rf"top1_k3 [\d.]+%{mark}  \(", capsys.readouterr().err)


def test_data_moved_elsewhere_are_the_same_data(one, ran, image_folder, tmp_path):
    one(*KNN)
    image_folder.rename(tmp_path / "moved")
    one(*KNN, data=tmp_path / "moved")
    assert len(ran) == 1


def test_numbers_of_two_data_sets_lie_beside_each_other(one, out, ran, image_folder, tmp_path):
    """A, B, A again: both numbers and their items stay, and the third run measures nothing."""
    other = tmp_path / "other"
    shutil.copytree(image_folder, other)
    next((other / "val").glob("*/*")).unlink()
    for data in (image_folder, other):
        assert one(*LINEAR, cell="imagenet_linear", data=data) == 0
    kept = {path: path.read_bytes() for path in out.glob("*/*/seed*.*")}
    assert len(files(out)) == 2 and len(kept) == 4
    assert {r.data.counts["test"] for r in records(out)} == {11, 12}
    for data in (image_folder, other):
        assert one(*LINEAR, cell="imagenet_linear", data=data) == 0
    assert len(ran) == 2
    assert {path: path.read_bytes() for path in out.glob("*/*/seed*.*")} == kept


def test_other_weights_make_a_new_number(one, out, ran, tmp_path):
    one(*KNN)
    one(*KNN, ckpt=write_checkpoint(tmp_path / "photos.pth", seed=1))
    assert len(ran) == len(files(out)) == 2


def test_another_configuration_makes_a_new_number(one, out, ran):
    one(*KNN)
    one(*KNN, "temperature=0.2")
    one(*KNN, "size=24")
    assert len(ran) == len(files(out)) == 3


def test_a_field_that_changes_no_number_makes_no_new_one(one, out, ran):
    assert one(*KNN) == 0
    (path,) = files(out)
    before = path.read_bytes()
    assert one(*KNN, "chunk=7") == 0
    assert files(out) == [path] and path.read_bytes() == before and len(ran) == 1


def test_a_record_made_when_such_a_field_was_part_of_its_name_is_kept(one, out, ran):
    assert one(*KNN, "chunk=7") == 0
    (path,) = files(out)
    values = json.loads(path.read_text())
    values["task"]["config_sha256"] = digest(values["task"]["config"])
    path.write_text(json.dumps(values))
    old = path.parent.rename(path.parent.with_name(f"imagenet_knn-{values['task']['config_sha256'][:8]}")) / path.name
    assert one(*KNN) == 0
    assert files(out) == [old] and len(ran) == 1
    (record,) = records(out)
    assert record.task.config_sha256 != values["task"]["config_sha256"]


def test_another_profile_makes_a_new_number(one, ran):
    one(*KNN, "data.limit=256")
    one(*KNN, more=["--profile", "smoke"])
    assert len(ran) == 2


@pytest.mark.parametrize("change", ["image", "label", "new image"])
def test_other_data_make_a_new_number(one, out, ran, image_folder, change):
    one(*KNN)
    first = image_folder / "train" / "class0" / "0.jpg"
    if change == "image":
        Image.new("RGB", (40, 40)).save(first)
    elif change == "label":
        first.rename(image_folder / "train" / "class1" / "moved.jpg")
    else:
        shutil.copy(first, image_folder / "val" / "class0" / "more.jpg")
    one(*KNN)
    assert len(ran) == 2
    assert len({record.data.manifest_sha256 for record in records(out)}) == 2


def test_another_version_of_the_task_makes_a_new_number(one, ran, monkeypatch):
    one(*KNN)
    change(monkeypatch, knn, version=knn.TASK.version + 1)
    one(*KNN)
    assert len(ran) == 2


def test_more_seeds_add_only_the_new_ones(one, out, ran):
    one(*LINEAR, cell="imagenet_linear", seeds=1)
    one(*LINEAR, cell="imagenet_linear", seeds=3)
    assert [seed for _, _, seed in ran] == [0, 1, 2]
    assert [r.seed for r in records(out)] == [0, 1, 2]
    assert all(r.task.tuned["lr"] in (0.1, 1.0) for r in records(out))


def test_a_deterministic_task_runs_once(one, out):
    one(*KNN, seeds=3)
    assert [r.seed for r in records(out)] == [0]


def test_a_random_backbone_is_new_for_each_seed(one, out, ckpt):
    one(*KNN, ckpt="random:resnet18", seeds=3, more=["--like", str(ckpt)])
    found = records(out)
    assert sorted(r.seed for r in found) == [0, 1, 2]
    assert len({r.backbone.weights_sha256 for r in found}) == 3
    assert {r.backbone.arch["width"] for r in found} == {0.25}
    assert {r.backbone.input["size"] for r in found} == {32}
    for record in found:
        like = load(ckpt)
        assert record.backbone.weights_sha256 == load("random:resnet18", seed=record.seed, like=like).weights_sha256


def test_a_name_can_be_given(one, out, ckpt):
    one(*KNN, ckpt=f"my net={ckpt}")
    assert [r.backbone.name for r in records(out)] == ["my net"]


@pytest.mark.parametrize("damage", [lambda path: path.write_text("{"), lambda path: path.write_text("[]")])
def test_a_broken_record_is_made_anew(one, out, ran, damage):
    one(*KNN)
    damage(files(out)[0])
    one(*KNN)
    assert len(ran) == 2
    assert records(out)[0].status == "ok"


def test_a_corrupt_image_is_a_failed_record(one, out, image_folder):
    bad = image_folder / "val" / "class2" / "1.jpg"
    bad.write_bytes(bad.read_bytes()[:200])
    assert one(*KNN) == 1
    (record,) = records(out)
    assert record.status == "failed"
    assert "class2/1.jpg" in record.reason
    assert record.metrics == {} and record.primary is None
    Image.fromarray(np.full((40, 48, 3), 150, np.uint8)).save(bad)
    assert one(*KNN) == 0, "a failed record is made again"
    assert [r.status for r in records(out)] == ["ok"]


def test_a_dangling_link_is_a_failed_record(one, out, image_folder):
    (image_folder / "train" / "class0" / "gone.jpg").symlink_to(image_folder / "nowhere.jpg")
    assert one(*KNN) == 1
    (record,) = records(out)
    assert record.status == "failed"
    assert "gone.jpg" in record.reason


def test_a_failing_seed_does_not_end_the_others(one, out, monkeypatch):
    real = linear_probe.run

    def second_fails(backbone, config, ctx):
        if ctx.seed == 1:
            raise FloatingPointError("loss became NaN")
        return real(backbone, config, ctx)

    change(monkeypatch, linear_probe, run=second_fails)
    assert one(*LINEAR, cell="imagenet_linear", seeds=3) == 1
    assert [(r.seed, r.status) for r in records(out)] == [(0, "ok"), (1, "failed"), (2, "ok")]
    failed = records(out)[1]
    assert failed.reason == "loss became NaN"
    assert "second_fails" in failed.error, "an unforeseen error keeps its traceback"


def test_a_number_that_is_not_finite_is_a_failed_record(one, out, monkeypatch):
    from transfer.protocol import Metric

    change(monkeypatch, knn, run=lambda *_: {"top1_k3": Metric(float("nan"))})
    assert one(*KNN) == 1
    assert [r.status for r in records(out)] == ["failed"]


@pytest.mark.parametrize("data", [None, "/nowhere/at/all"])
def test_missing_data_is_a_skipped_record(one, out, data):
    assert one(*KNN, data=data) == 0
    (record,) = records(out)
    assert record.status == "skipped"
    assert (data or "--data-root") in record.reason
    assert record.data is None and record.metrics == {}


def test_missing_data_do_not_destroy_a_number(one, out):
    one(*KNN)
    one(*KNN, data=None)
    assert [r.status for r in records(out)] == ["ok", "skipped"]  # the number, and why there is no newer one
    store.write(out, records(out)[0])
    assert [r.status for r in records(out)] == ["ok"]


def test_a_number_that_is_kept_says_no_longer_that_it_is_lacking(one, out, ran):
    """After a kill between seeds, or a run without the data, the next run finds the number."""
    one(*LINEAR, cell="imagenet_linear")
    (record,) = records(out)
    for status in ("failed", "skipped"):
        lacking = {"status": status, "reason": "no", "metrics": {}, "primary": None, "data": None}
        store.write(out, record.model_copy(update=lacking))
    assert [path.name for path in files(out)] == ["seed0.failed.json", "seed0.json", "seed0.skipped.json"]
    one(*LINEAR, cell="imagenet_linear")
    assert [path.name for path in files(out)] == ["seed0.json"] and len(ran) == 1


@pytest.mark.slow
def test_what_a_cell_says_has_its_place_and_is_kept_beside_its_record(one, out, ckpt, capsys):
    assert one("--place", "3/17", *LINEAR, cell="imagenet_linear", ckpt=str(ckpt)) == 0
    line = next(line for line in capsys.readouterr().err.splitlines() if "seed 0: " in line)
    assert line.startswith("[3/17] ")
    (log,) = out.rglob("log.txt")
    assert line in log.read_text()
    assert list(log.parent.glob("seed0.json"))


def test_what_libraries_log_and_warn_about_is_kept_beside_the_record(one, out, monkeypatch, capsys):
    def speaks(*_):
        logging.getLogger("detectron2.data").warning("no class names")
        warnings.warn("numbers overflow", RuntimeWarning, stacklevel=1)
        raise BackbenchError("stopped")

    change(monkeypatch, knn, run=speaks)
    with pytest.warns(RuntimeWarning, match="overflow"):
        assert one(*KNN) == 1
    (log,) = out.rglob("log.txt")
    warned, overflow, failed = log.read_text().splitlines()
    assert warned.endswith("WARNING detectron2.data: no class names")
    assert "RuntimeWarning" in overflow and overflow.endswith("numbers overflow")
    assert failed.endswith("FAILED photos imagenet_knn seed 0: stopped")
    assert "no class names" not in capsys.readouterr().err


@pytest.mark.parametrize("source", ["{ckpt}", "random:resnet18"])
def test_a_kill_is_recorded_for_the_seed_without_a_number(one, out, ckpt, source):
    source, small = source.format(ckpt=ckpt), [*LINEAR, "size=32", "resize=32"]
    assert one(*small, cell="imagenet_linear", ckpt=source, seeds=2) == 0
    cell = plan.load_cell("imagenet_linear", small)
    subjects = run_all.find_subjects([source], "", 3)
    args = CellOptions(ckpt=source, cell=cell.name, out=out)
    before = store.written(out)
    for code in (0, run_all.INTERRUPTED, -9):
        assert sorted((r.seed, r.status) for r in records(out)) == [(0, "ok"), (1, "ok")]
        starting.record_ended([(subjects[0], cell)], [code], {cell.name: 3}, before, args)
    assert sorted((r.seed, r.status) for r in records(out)) == [(0, "ok"), (1, "ok"), (2, "failed")]
    assert one(*small, cell="imagenet_linear", ckpt=source, seeds=3) == 0
    assert sorted((r.seed, r.status) for r in records(out)) == [(0, "ok"), (1, "ok"), (2, "ok")]


def test_what_breaks_down_unrecorded_is_recorded_and_no_failure_of_its_own_is_replaced(one, out, ckpt, monkeypatch):
    """Exit code 1 means a recorded failure, a traceback, or a failed job of several processes."""
    change(monkeypatch, linear_probe, run=lambda *_: 1 / 0)
    cell = plan.load_cell("imagenet_linear", LINEAR)
    subjects = run_all.find_subjects([str(ckpt)], "", 2)
    args = CellOptions(ckpt=str(ckpt), cell=cell.name, out=out)

    def settle(before) -> dict[int, str]:
        starting.record_ended([(subjects[0], cell)], [1], {cell.name: 2}, before, args)
        return {r.seed: r.reason for r in records(out)}

    assert one(*LINEAR, cell="imagenet_linear", ckpt=str(ckpt)) == 1
    assert settle({}) == {0: "division by zero", 1: "its process ended with code 1; see its output; "
                          "a process that ran out of memory prints nothing"}  # fmt: skip
    before = store.written(out)
    assert settle(before)[0].startswith("its process ended with code 1"), "an older failure is no news"


def test_published_data_are_demanded(one, out):
    assert one("k=[1,3]", "headline_k=3") == 1
    (record,) = records(out)
    assert record.status == "failed"
    assert "train 24" in record.reason and "1281167" in record.reason
    assert "data.expect=any" in record.reason
    assert "\n" not in record.reason


def test_half_a_data_set_is_a_failed_record(one, out, image_folder):
    shutil.rmtree(image_folder / "val" / "class1")
    assert one(*KNN) == 1
    assert "class1" in records(out)[0].reason


def test_published_counts_are_recognised(one, out, monkeypatch):
    known = catalogue.info("imagenet")
    counts = {"train": 24, "val": 12, "classes": 3}
    monkeypatch.setitem(catalogue.OWN, "imagenet", known.model_copy(update={"counts": counts}))
    assert one("k=[1,3]", "headline_k=3") == 0
    assert records(out)[0].data.is_published


def test_a_part_of_the_published_data_is_not_published(one, out, monkeypatch):
    known = catalogue.info("imagenet")
    counts = {"train": 24, "val": 12, "classes": 3}
    monkeypatch.setitem(catalogue.OWN, "imagenet", known.model_copy(update={"counts": counts}))
    assert one("k=[1,3]", "headline_k=3", "data.limit=20") == 0
    (record,) = records(out)
    assert record.data.counts["train"] == 20
    assert not record.data.is_published


SEMI = ["data.expect=any", "epochs=1", "batch=8", "list=drawn", "share=10%"]


@pytest.mark.parametrize(("cell", "fields"), [("imagenet_linear", LINEAR), ("imagenet_semi10", SEMI)])
def test_the_numbers_can_be_computed_again_from_the_items(one, out, cell, fields):
    assert one(*fields, cell=cell, seeds=2) == 0
    for path, record in zip(files(out), records(out), strict=True):
        with np.load(store.items_path(path)) as items:
            top5, labels, per_class = items["best"], items["labels"], items["per_class_top1"]
        assert labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4, "in the order of the test split"
        assert top5.shape == (12, 3) and all(sorted(row) == [0, 1, 2] for row in top5.tolist())
        right = top5[:, 0] == labels
        assert record.metrics["top1"].value == pytest.approx(100 * right.mean())
        assert record.metrics["top5"].value == 100 * np.mean([y in row for y, row in zip(labels, top5, strict=True)])
        assert per_class == pytest.approx([100 * right[labels == c].mean() for c in range(3)])
        losses = (store.run_folder(out, record) / "losses.jsonl").read_text().splitlines()
        assert [json.loads(line)["epoch"] for line in losses][-1] == record.task.config["epochs"], (
            "the learning curve lies beside it"
        )
    assert [path.name for path in files(out)] == ["seed0.json", "seed1.json"]


def test_a_failed_run_leaves_the_numbers_items_alone(one, out, monkeypatch):
    assert one(*LINEAR, cell="imagenet_linear") == 0
    (record,) = files(out)
    before = record.read_bytes(), store.items_path(record).read_bytes()

    def fails(*_):
        raise FloatingPointError("loss became NaN")

    change(monkeypatch, linear_probe, run=fails)
    change(monkeypatch, linear_probe, version=linear_probe.TASK.version + 1)
    assert one(*LINEAR, cell="imagenet_linear") == 1
    assert [path.name for path in files(out)] == ["seed0.failed.json", "seed0.json"]
    assert (record.read_bytes(), store.items_path(record).read_bytes()) == before


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--cell", "imagenet_kn"], "did you mean 'imagenet_knn'"),
        (["--cell", "imagenet_knn", "kk=3"], "unknown key 'kk'"),
        (["--cell", "imagenet_knn", "--seeds", "0"], "at least 1"),
        (["--cell", "imagenet_knn", "--data", "imagnet=/x"], "did you mean 'imagenet'"),
        (["--cell", "imagenet_knn", "--ckpt", "nothing.pth"], "nothing.pth: no such file"),
    ],
)
def test_a_mistake_writes_nothing(ckpt, out, argv, expected):
    with pytest.raises(BackbenchError) as caught:
        run_one.main(["--ckpt", str(ckpt), "--out", str(out), *argv])
    assert expected in str(caught.value)
    assert not out.exists()


# ---------------------------------------------------------------- run_all


def test_dry_run_writes_nothing(ckpt, out, image_folder, capsys, monkeypatch):
    monkeypatch.setattr(starting, "launch", None)
    argv = ["--ckpt", str(ckpt), "--data", f"imagenet={image_folder}", "--out", str(out), "--baselines", "random"]
    assert run_all.main([*argv, "--dry-run"]) == 0
    assert not out.exists()
    said = capsys.readouterr().err.splitlines()
    here = [cell for cell in plan.load_suite("paper").cells if plan.load_cell(cell).config.data.name == "imagenet"]
    assert {"imagenet_knn", "imagenet_linear"} <= set(here)
    refused = [line for line in said if line.startswith(("fails ", "run ")) and "imagenet_" in line]
    assert len(refused) == 2 * len(here)
    assert all("published" in line or "list (`backbench data lists`" in line for line in refused)
    skipped = [line for line in said if line.startswith("skip")]
    assert skipped and all("no place given" in line for line in skipped)
    assert any("random:resnet18" in line for line in said) and any("photos" in line for line in said)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], "nothing to measure"),
        (["--baselines", "random", "--dry-run"], "--baselines random follows a --ckpt"),
        (["--ckpt", "{ckpt}", "--tasks", "imagenet_kn"], "did you mean 'imagenet_knn'"),
        (["--ckpt", "{ckpt}", "--suite", "papr"], "did you mean 'paper'"),
        (["--ckpt", "{ckpt}", "--baselines", "supervised"], "unknown baseline 'supervised'; known: random"),
        (["--ckpt", "{ckpt}", "--baselines", "random:resnet51"], "did you mean 'resnet50'"),
        (["--baselines", "random"], "name the architecture"),
        (["--ckpt", "{ckpt}", "--seeds", "0"], "at least 1"),
        (["--ckpt", "{ckpt}", "--tasks", "imagenet_knn", "stl10_knn.k=[1]"], "not among the cells of this run"),
        (["--ckpt", "{ckpt}", "--tasks", "imagenet_knn", "imagenet_knn.kk=[1]"], "unknown key 'kk'"),
        (["--ckpt", "{ckpt}", "--ckpt", "nothing.pth"], "nothing.pth: no such file"),
    ],
)
def test_a_mistake_stops_before_anything_runs(ckpt, out, argv, expected, monkeypatch, image_folder):
    monkeypatch.setattr(starting, "launch", lambda *_: pytest.fail("something ran"))
    given = [part.format(ckpt=ckpt) for part in argv]
    with pytest.raises((ConfigError, CheckpointError, BackbenchError)) as caught:
        run_all.main([*given, "--out", str(out), "--data", f"imagenet={image_folder}"])
    assert expected in str(caught.value)
    assert not out.exists()


def test_a_bad_checkpoint_stops_before_anything_runs(ckpt, tmp_path, out, monkeypatch, image_folder):
    monkeypatch.setattr(starting, "launch", lambda *_: pytest.fail("something ran"))
    bad = tmp_path / "bad.pth"
    bad.write_bytes(ckpt.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"bad\.pth"):
        run_all.main(["--ckpt", str(ckpt), "--ckpt", str(bad), "--out", str(out), "--data", f"imagenet={image_folder}"])
    assert not out.exists()


def test_a_random_baseline_per_architecture(ckpt, tmp_path):
    """Baselines of different networks are different rows: a mean over architectures says nothing."""
    same = write_checkpoint(tmp_path / "same.pth", seed=1)
    assert len(run_all.find_subjects([str(ckpt), str(same)], "random", 1)) == 3
    wide = write_checkpoint(tmp_path / "wide.pth", width=0.5)
    subjects = run_all.find_subjects([str(ckpt), str(wide)], "random", 2)
    assert len(subjects) == 4
    baselines = subjects[2:]
    assert {subject.backbones[0].arch.width for subject in baselines} == {0.25, 0.5}
    assert len({backbone.weights_sha256 for subject in baselines for backbone in subject.backbones}) == 4
    assert len({subject.name for subject in baselines}) == 2, "one name is one row"


def test_a_random_baseline_like_a_name_with_equals_signs(tmp_path):
    paths = [write_checkpoint(tmp_path / name, width=w) for name, w in (("epoch=99-step=5.pth", 0.25), ("b.pth", 0.5))]
    *_, first, second = run_all.find_subjects([str(path) for path in paths], "random", 1)
    assert (first.name, second.name) == ("random:resnet18 like epoch=99-step=5", "random:resnet18 like b")
    cell = plan.load_cell("imagenet_knn", KNN)
    ((_, again),) = subjects.backbones(first.ckpt, first.like, 1, cell)
    assert (again.name, again.weights_sha256) == (first.name, first.backbones[0].weights_sha256)


def test_a_random_backbone_can_have_a_name():
    (subject,) = run_all.find_subjects(["nothing learned=random:resnet18"], "", 1)
    assert subject.name == "nothing learned"


@pytest.mark.slow
def test_end_to_end(ckpt, out, image_folder, warm_cells, capfd):
    argv = ["--ckpt", f"mine={ckpt}", "--baselines", "random", "--jobs", "2"]
    argv += ["--out", str(out), "--data", f"imagenet={image_folder}", "--tasks", "imagenet_knn,imagenet_linear"]
    argv += ["--seeds", "2", *(f"imagenet_knn.{o}" for o in KNN), *(f"imagenet_linear.{o}" for o in LINEAR)]
    assert run_all.main(argv) == 0
    found = records(out)
    assert all(r.status == "ok" and r.suite == "paper" for r in found)
    counted = {(r.backbone.name, r.cell, r.seed) for r in found}
    assert counted == {("mine", "imagenet_knn", 0)} | {
        (name, cell, seed)
        for name, cell in (
            ("mine", "imagenet_linear"), ("random:resnet18", "imagenet_knn"), ("random:resnet18", "imagenet_linear")
        )
        for seed in (0, 1)
    }  # fmt: skip
    assert {r.backbone.arch["width"] for r in found} == {0.25}
    markdown = (out / "report.md").read_text()
    assert "| mine (resnet18, width 0.25) |" in markdown and "| random:resnet18 (resnet18, width 0.25) |" in markdown
    assert "ImageNet layout, 24/12 images" in markdown
    assert "mine" in (out / "report.csv").read_text()
    assert "<html" in (out / "report.html").read_text()
    assert "| mine (resnet18, width 0.25) |" in capfd.readouterr().out


@pytest.mark.slow
def test_a_cell_with_more_seeds_than_its_suite_is_reported_whole(out, image_folder, monkeypatch):
    """A random baseline has a network for each seed: the report also has those of the third seed."""
    suite = plan.Suite(cells=("imagenet_knn",), seeds=1, seeds_of={"imagenet_knn": 3})
    monkeypatch.setattr(plan, "load_suite", lambda _: suite)
    monkeypatch.setattr(local, "run", lambda commands, **_: [run_one.main(command[2:]) for command in commands])
    argv = ["--ckpt", "random:resnet18", "--out", str(out), "--data", f"imagenet={image_folder}"]
    assert run_all.main([*argv, *(f"imagenet_knn.{o}" for o in [*KNN, "size=32"])]) == 0
    assert sorted(r.seed for r in records(out)) == [0, 1, 2]
    assert "(3 seeds)" in (out / "report.md").read_text()


@pytest.mark.slow
def test_the_report_shows_what_the_command_asked_for(out, image_folder, monkeypatch):
    """Records of other seeds and versions in the folder do not enter the report's means."""
    monkeypatch.setattr(local, "run", lambda commands, **_: [run_one.main(command[2:]) for command in commands])
    argv = [
        "--ckpt",
        "random:resnet18",
        "--out",
        str(out),
        "--data",
        f"imagenet={image_folder}",
        "--tasks",
        "imagenet_knn",
    ]
    argv += [f"imagenet_knn.{o}" for o in [*KNN, "size=32"]]
    assert run_all.main([*argv, "--seeds", "3"]) == 0
    assert "(3 seeds)" in (out / "report.md").read_text()
    assert run_all.main([*argv, "--seeds", "2"]) == 0
    assert "(2 seeds)" in (out / "report.md").read_text()
    change(monkeypatch, knn, version=knn.TASK.version + 1)
    assert run_all.main([*argv, "--seeds", "1"]) == 0
    assert "seeds)" not in (out / "report.md").read_text() and "protocol=" not in (out / "report.md").read_text()


def test_all_skipped_is_exit_code_1(ckpt, out, tmp_path, capfd):
    argv = ["--ckpt", str(ckpt), "--out", str(out), "--data-root", str(tmp_path / "none"), "--tasks", "stl10_knn"]
    assert run_all.main(argv) == 1
    assert [r.status for r in records(out)] == ["skipped"]
    assert "every cell was skipped" in capfd.readouterr().err
    assert "skipped" in (out / "report.md").read_text()


@pytest.mark.slow
def test_a_failed_cell_is_exit_code_1_and_the_rest_is_measured(ckpt, out, image_folder, warm_cells):
    argv = ["--ckpt", str(ckpt), "--out", str(out), "--data", f"imagenet={image_folder}", "--seeds", "1"]
    argv += ["--tasks", "imagenet_knn,imagenet_linear", *(f"imagenet_knn.{o}" for o in KNN)]
    assert run_all.main(argv) == 1  # the linear probe's data are not the published ones
    assert {r.cell: r.status for r in records(out)} == {"imagenet_knn": "ok", "imagenet_linear": "failed"}
    assert "imagenet_linear: failed: 'imagenet' has train 24" in (out / "report.md").read_text()


@pytest.mark.slow
def test_as_a_plain_script_a_mistake_is_one_line(tmp_path):
    for script in ("run_one.py", "run_all.py"):
        argv = [str(ROOT / "benchmarks" / script), "--ckpt", "nothing.pth"]
        argv += ["--cell", "imagenet_knn"] if script == "run_one.py" else []
        done = warm.run(argv, cwd=tmp_path)
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1] == "checkpoint error: nothing.pth: no such file or folder"
        assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_checkpoint_argument(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert subjects.split_name("a.pth") == (None, "a.pth")
    assert subjects.split_name("mine=a=b.pth") == ("mine", "a=b.pth")
    torch.save({}, "lr=0.1.pth")
    assert subjects.split_name("lr=0.1.pth") == (None, "lr=0.1.pth")
    assert subjects.split_name("r=random:resnet18") == ("r", "random:resnet18")
    assert subjects.split_name("best=lr=0.1.pth") == ("best", "lr=0.1.pth")
    assert subjects.split_name("lr=0.1=a=b:c") == ("lr=0.1=a", "b:c")
    assert subjects.split_name("lr=0.1=hf-hub:a/b") == ("lr=0.1", "hf-hub:a/b")
    torch.save({}, "a.pth")
    assert subjects.split_name("lr=0.1=a.pth") == ("lr=0.1", "a.pth")
    assert subjects.split_name("r=timm:x?a=b:c") == ("r", "timm:x?a=b:c")


def test_records_are_plain_json(one, out):
    one(*KNN)
    values = json.loads(files(out)[0].read_text())
    assert values["schema"] == 1
    assert set(values) == {"schema", "status", "reason", "profile", "suite", "seed", "backbone", "cell", "task", "data",
                           "metrics", "primary", "provenance", "artefacts", "error"}  # fmt: skip


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_finished_and_the_next_run_goes_on(ckpt, out, image_folder, warm_cells, capfd):
    """The first run and its cells run as scripts in separate interpreters."""
    argv = ["--ckpt", str(ckpt), "--out", str(out), "--tasks", "imagenet_knn,imagenet_linear", "--seeds", "1"]
    argv += ["--data", f"imagenet={image_folder}"]
    argv += [f"imagenet_knn.{field}" for field in KNN] + [f"imagenet_linear.{field}" for field in LINEAR]
    command = [sys.executable, str(ROOT / "benchmarks" / "run_all.py"), *argv, "imagenet_linear.epochs=1000000"]
    long_one = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        while not any("imagenet_knn" in str(path) for path in files(out)):  # the test's timeout is the safety net
            assert long_one.poll() is None
            time.sleep(0.2)
        (finished,) = files(out)
        before = finished.read_bytes()
        long_one.send_signal(signal.SIGINT)
        _, said = long_one.communicate(timeout=120)
    finally:
        long_one.kill()
    assert long_one.returncode == 130
    assert "finished results are in" in said and "Traceback" not in said
    assert run_all.main(argv) == 0
    assert "an identical result exists" in capfd.readouterr().err
    assert finished.read_bytes() == before
    assert {record.cell for record in records(out)} == {"imagenet_knn", "imagenet_linear"}


@pytest.mark.parametrize(("cores", "ranks", "workers"), [(2, None, 1), (1, None, 1), (64, "8", 4), (8, "8", 1)])
def test_ranks_share_a_machines_cores(cores, ranks, workers, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(cores)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if ranks:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
    assert measuring.default_workers() == workers
