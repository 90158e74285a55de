"""The loop as users see it: several processes, kills, resumes, broken files, and the files of a run."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import warm
from pretraining import KILL_AT_STEP, assert_identical, end, run_on_two_ranks, start_child, stderr_of
from torch.utils.tensorboard import SummaryWriter

from backbench.config import dump
from backbench.data.splits import Files
from backbench.errors import BackbenchError, CheckpointError
from model_zoo.load import load as load_backbone
from pretrain import monitor
from pretrain.config import PretrainConfig
from pretrain.data import EpochSampler, open_split
from pretrain.methods import msbreg
from pretrain.monitor import measure_online
from pretrain.train import NonFiniteLoss, build_all, train

SCRIPT = Path(__file__).resolve().parents[2] / "pretrain" / "run.py"
PROOF = ("run.float64=true", "optim.trust_coefficient=0.1")  # 5 steps that move every weight

# Put before the run, as KILL_AT_STEP.
_KILL_IN_CHECKPOINT = """
import signal
replace_as_it_is, seen = os.replace, []
def replace(source, target):
    seen.append(str(target).endswith("last.ckpt"))
    if sum(seen) == {number}:
        os.kill(os.getpid(), signal.SIGKILL)
    replace_as_it_is(source, target)
os.replace = replace
"""
_WAIT_IN_A_STEP = """
import pathlib, time
import pretrain.train as t
step_as_it_is = t.train_step
def train_step(*args, **kwargs):
    pathlib.Path({marker!r}).touch()
    while not pathlib.Path({release!r}).exists():
        time.sleep(0.02)
    return step_as_it_is(*args, **kwargs)
t.train_step = train_step
"""

Start = Callable[..., BaseProcess]


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[BaseProcess] = []

    def start_and_remember(*args: Any, **kwargs: Any) -> BaseProcess:
        started.append(start_child(*args, **kwargs))
        return started[-1]

    yield start_and_remember
    end(started)


@pytest.fixture(autouse=True)
def _same_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def checkpoint(out: Path) -> dict[str, Any]:
    return torch.load(out / "last.ckpt", weights_only=True)


def metrics(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def losses(out: Path) -> list[dict[str, Any]]:
    """The lines of optimiser steps, without the online kNN's."""
    return [record for record in metrics(out) if "loss" in record]


def assert_near(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], tolerance: float, only: str = "") -> None:
    names = [name for name in a if only in name]
    assert a.keys() == b.keys() and names
    for name in names:
        torch.testing.assert_close(a[name], b[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


def assert_finite(values: Any) -> None:
    if isinstance(values, torch.Tensor):
        assert bool(torch.isfinite(values).all())
    elif isinstance(values, dict):
        for value in values.values():
            assert_finite(value)


# ---------------------------------------------------------------- two processes


@pytest.fixture(
    scope="module",
    params=[
        (),
        pytest.param(("method.views=4", "run.views_per_pass=1", "run.channels_last=true"), marks=pytest.mark.sample(0)),
    ],
    ids=["two views at once", "four views one by one"],
)
def one_and_two(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    shared_photos: Path,
    recipe: Callable[..., PretrainConfig],
) -> tuple[Path, Path]:
    """Folders of a run in one process and in two with half the batch each; rank 1 reads a corrupt image."""
    place = tmp_path_factory.mktemp("ranks")
    shutil.copytree(shared_photos, place / "photos")
    config = recipe(place / "photos", *PROOF, *request.param)
    _, last_of_the_first_batch = next(iter(EpochSampler(30, 6, 0, 0, 1)))[-1]
    sorted((place / "photos").rglob("*.jpg"))[last_of_the_first_batch].write_bytes(b"")
    train(config, place / "one")
    run_on_two_ranks(config, place / "two")
    return place / "one", place / "two"


@pytest.mark.slow
@pytest.mark.parametrize("network", ["online", "target"])
def test_two_processes_end_with_the_weights_of_one(one_and_two, network):
    one, two = (checkpoint(out) for out in one_and_two)
    assert one["step"] == two["step"] == 5
    assert_near(one[network], two[network], 1e-6)
    assert_near(one[network], two[network], 1e-6, only="running_var")


@pytest.mark.slow
def test_the_proof_is_of_weights_that_moved(one_and_two, recipe, tmp_path):
    """Otherwise two processes could agree by doing nothing."""
    from pretrain.train import build_all

    one = checkpoint(one_and_two[0])
    fresh, target, *_ = build_all(recipe(tmp_path, *PROOF), torch.device("cpu"))
    for saved, start in ((one["online"], fresh.state_dict()), (one["target"], target.state_dict())):
        for name, tensor in start.items():
            if name.endswith("weight"):
                assert float((saved[name] - tensor).abs().max()) > 1e-4, name


@pytest.mark.slow
def test_two_processes_keep_the_same_momentum(one_and_two):
    one, two = (checkpoint(out)["optimizer"]["state"] for out in one_and_two)
    assert one.keys() == two.keys()
    for index in one:
        torch.testing.assert_close(one[index]["momentum_buffer"], two[index]["momentum_buffer"], rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "names", [("loss", "centroid", "singular", "brownian"), ("std",), ("effective_rank",), ("online_linear",)]
)
def test_two_processes_report_the_numbers_of_one(one_and_two, names):
    one, two = (losses(out) for out in one_and_two)
    assert [record["step"] for record in one] == [record["step"] for record in two] == [0, 1, 2, 3, 4]
    tolerance = 1e-6 if "loss" in names else 1e-4  # the monitors are float32
    for a, b in zip(one, two, strict=True):
        found = {name: b[name] for name in names if name in a}
        assert found == pytest.approx({name: a[name] for name in names if name in a}, rel=tolerance)


@pytest.mark.slow
def test_two_processes_count_every_ranks_corrupt_images(one_and_two):
    one, two = (checkpoint(out)["corrupt"] for out in one_and_two)
    assert len(one) == 1
    assert two == one


# ---------------------------------------------------------------- killed and resumed


@pytest.fixture(scope="module")
def whole(tmp_path_factory, shared_photos, recipe) -> tuple[PretrainConfig, Path]:
    """An uninterrupted run of 7 steps that records everything."""
    config = recipe(shared_photos, "optim.epochs=1.4", "run.knn_every=0.6", "optim.warmup_epochs=0.2")
    out = tmp_path_factory.mktemp("whole") / "run"
    train(config, out)
    return config, out


def without_speed(out: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key != "images_per_s"} for record in metrics(out)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "before",
    [KILL_AT_STEP.format(step=1), KILL_AT_STEP.format(step=5), _KILL_IN_CHECKPOINT.format(number=2)],
    ids=["before the first checkpoint", "after a step that no checkpoint has", "while a checkpoint is written"],
)
@pytest.mark.sample(1)
def test_a_killed_run_resumes_to_the_same_bits(whole, tmp_path, start, before):
    config, uninterrupted = whole
    out = tmp_path / "run"
    killed = start(config, out, before=before)
    killed.join(120)
    assert killed.exitcode == -signal.SIGKILL, stderr_of(killed, out)
    assert not (out / "model.pth").exists()
    assert metrics(out)[-1]["step"] < 6
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "epo')  # a line that the kill cut
    train(config, out, resume=True)
    assert_identical(checkpoint(out), checkpoint(uninterrupted))
    assert (out / "model.pth").read_bytes() == (uninterrupted / "model.pth").read_bytes()
    assert without_speed(out) == without_speed(uninterrupted)
    assert [record["step"] for record in losses(out)] == list(range(7))


@pytest.mark.slow
def test_killed_at_any_step_with_a_worker_reading_ahead(whole, tmp_path, start):
    config, uninterrupted = whole
    step, out = secrets.randbelow(7), tmp_path / "run"
    config = config.model_copy(update={"data": config.data.model_copy(update={"workers": 1})})
    killed = start(config, out, before=KILL_AT_STEP.format(step=step))
    killed.join(120)
    assert killed.exitcode == -signal.SIGKILL, stderr_of(killed, out)
    train(config, out, resume=True)
    assert (out / "model.pth").read_bytes() == (uninterrupted / "model.pth").read_bytes(), f"killed at step {step}"
    assert [record["loss"] for record in losses(out)] == [record["loss"] for record in losses(uninterrupted)]


@pytest.mark.slow
@pytest.mark.parametrize(("key", "then"), [("threads", 64), ("torch", "2.0.0")])
def test_resuming_where_bits_may_differ_is_said(whole, tmp_path, capsys, key, then):
    config, finished = whole
    torch.save({**checkpoint(finished), key: then}, tmp_path / "last.ckpt")
    train(config, tmp_path, resume=True)
    assert f"started with {then}: results agree, but not bit for bit" in capsys.readouterr().err


@pytest.mark.slow
def test_resuming_a_run_of_other_views_is_refused(whole, tmp_path):
    """Checkpoints without a version are from the time of resizing by area."""
    config, finished = whole
    saved = checkpoint(finished)
    del saved["views"]
    torch.save(saved, tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match=r"makes other views \(version 1 then, 2 now\)"):
        train(config, tmp_path, resume=True)


@pytest.mark.slow
def test_a_checkpoint_without_fields_that_came_later_resumes(whole, tmp_path):
    config, finished = whole
    saved = checkpoint(finished)
    del saved["probe"], saved["config"]["run"]["compile"], saved["config"]["run"]["linear_probe"]
    torch.save(saved, tmp_path / "last.ckpt")
    assert train(config, tmp_path, resume=True).read_bytes() == (finished / "model.pth").read_bytes()


@pytest.mark.slow
def test_resuming_on_other_images_is_refused(whole, tmp_path, shared_photos, recipe):
    config, finished = whole
    shutil.copytree(shared_photos, tmp_path / "photos")
    next((tmp_path / "photos").rglob("*.jpg")).unlink()
    shutil.copytree(finished, tmp_path / "run")
    other = config.model_copy(update={"data": config.data.model_copy(update={"root": str(tmp_path / "photos")})})
    with pytest.raises(CheckpointError, match="the run was started on other images: 30 then, 29 now"):
        train(other, tmp_path / "run", resume=True)


@pytest.mark.slow
def test_a_model_without_its_checkpoint_is_not_overwritten(whole, tmp_path):
    config, finished = whole
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "last.ckpt").unlink()
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(BackbenchError, match=r"contains a model\.pth but no last\.ckpt"):
        train(config, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_a_finished_run_resumed_stays_as_it_is(whole):
    config, out = whole
    model, records, saved = (out / "model.pth").read_bytes(), metrics(out), checkpoint(out)
    train(config, out, resume=True)
    assert (out / "model.pth").read_bytes() == model
    assert metrics(out) == records
    assert_identical(checkpoint(out), saved)


@pytest.mark.slow
def test_a_folder_that_holds_a_run_needs_resume(whole):
    config, out = whole
    before = {path: path.read_bytes() for path in out.iterdir() if path.is_file() and path.suffix != ".lock"}
    with pytest.raises(BackbenchError, match=r"contains a run already; continue it with --resume"):
        train(config, out)
    assert {path: path.read_bytes() for path in out.iterdir() if path.is_file() and path.suffix != ".lock"} == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "change, named",
    [
        ("optim.base_lr=3.0", r"optim\.base_lr: 20\.0 then, 3\.0 now"),
        ("method.lambda_b=0.1", r"method\.lambda_b: 0\.5 then, 0\.1 now"),
        ("run.seed=1", r"run\.seed: 0 then, 1 now"),
        ("views.scale=[0.1, 1.0]", r"views\.scale"),
        ("optim.epochs=2.0", r"optim\.epochs: 1\.4 then, 2\.0 now"),
    ],
)
def test_resuming_with_another_recipe_names_the_difference(whole, recipe, change, named):
    config, out = whole
    base = ["optim.epochs=1.4", "run.knn_every=0.6", "optim.warmup_epochs=0.2"]
    before = {path: path.read_bytes() for path in out.iterdir() if path.is_file() and path.suffix != ".lock"}
    with pytest.raises(CheckpointError, match=named) as caught:
        train(recipe(Path(config.data.root), *base, change), out, resume=True)
    assert str(caught.value).count(" then, ") == 1  # nothing else is said to differ
    assert {path: path.read_bytes() for path in out.iterdir() if path.is_file() and path.suffix != ".lock"} == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "spoil, said", [(lambda b: b"", "the file is empty"), (lambda b: b[: len(b) // 2], "truncated")]
)
def test_resuming_from_a_broken_checkpoint_says_so(whole, tmp_path, spoil, said):
    config, finished = whole
    (tmp_path / "last.ckpt").write_bytes(spoil((finished / "last.ckpt").read_bytes()))
    with pytest.raises(CheckpointError, match=rf"last\.ckpt: .*{said}"):
        train(config, tmp_path, resume=True)


@pytest.mark.slow
def test_two_runs_in_one_folder_at_once_is_an_error(shared_photos, recipe, tmp_path, start):
    config, out = recipe(shared_photos, "optim.epochs=0.2"), tmp_path / "run"
    marker, release = tmp_path / "marker", tmp_path / "release"
    first = start(config, out, before=_WAIT_IN_A_STEP.format(marker=str(marker), release=str(release)))
    while not marker.exists():
        assert first.is_alive(), stderr_of(first, out)
        time.sleep(0.02)
    for resume in (False, True):
        with pytest.raises(BackbenchError, match="another process is training in this folder"):
            train(config, out, resume=resume)
    release.touch()
    first.join(60)
    assert first.exitcode == 0 and (out / "model.pth").exists()


@pytest.mark.slow
def test_ctrl_c_leaves_a_checkpoint_to_continue_from(shared_photos, recipe, tmp_path):
    """As from a terminal: the signal goes to the whole process group, including the loader's worker."""
    config = recipe(shared_photos, "data.workers=1", "optim.epochs=1000.0", "run.checkpoint_every=100000")
    (tmp_path / "r.yaml").write_text(dump(config))
    out = tmp_path / "run"
    command = [sys.executable, str(SCRIPT), "--config", str(tmp_path / "r.yaml"), "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        while not (out / "metrics.jsonl").exists() or len(losses_so_far(out)) < 3:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert "--resume" in said and str(out / "last.ckpt") in said
    assert said.count("stopping after this step") == 1
    saved = checkpoint(out)
    assert saved["step"] == len(losses(out)) >= 3
    assert not (out / "model.pth").exists()


def losses_so_far(out: Path) -> list[str]:
    return (out / "metrics.jsonl").read_text().splitlines()


# ---------------------------------------------------------------- the same numbers in other ways


@pytest.mark.slow
@pytest.mark.parametrize("method, views", [("msbreg", 2), ("byol", 3)])
@pytest.mark.sample(1)
def test_one_view_per_pass_equals_all_in_one(shared_photos, recipe, tmp_path, method, views):
    base = (*PROOF, f"method.views={views}", "optim.epochs=0.4", f"method.name={method}")
    for name, override in (("all", "run.views_per_pass=0"), ("one", "run.views_per_pass=1")):
        train(recipe(shared_photos, *base, override), tmp_path / name)
    together, one_by_one = checkpoint(tmp_path / "all"), checkpoint(tmp_path / "one")
    for network in ("online", "target"):
        assert_near(together[network], one_by_one[network], 1e-9)
    for a, b in zip(losses(tmp_path / "all"), losses(tmp_path / "one"), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-9)


@pytest.mark.slow
def test_two_runs_of_one_recipe_are_the_same_and_another_seed_is_not(shared_photos, recipe, tmp_path):
    train(recipe(shared_photos, "optim.epochs=0.2"), tmp_path / "a")
    torch.manual_seed(99)
    train(recipe(shared_photos, "optim.epochs=0.2"), tmp_path / "b")
    train(recipe(shared_photos, "optim.epochs=0.2", "run.seed=1"), tmp_path / "c")
    assert (tmp_path / "a/model.pth").read_bytes() == (tmp_path / "b/model.pth").read_bytes()
    assert losses(tmp_path / "a")[0]["loss"] != losses(tmp_path / "c")[0]["loss"]


@pytest.mark.slow
@pytest.mark.parametrize("override", ["run.amp=bf16", "run.channels_last=true"])
@pytest.mark.sample(1)
def test_other_arithmetic_stays_near(shared_photos, recipe, tmp_path, override):
    """All images in one batch: BatchNorm over six images magnifies bf16's rounding to several percent."""
    for name, more in (("plain", []), ("other", [override])):
        train(recipe(shared_photos, "optim.batch=30", *more), tmp_path / name)
    assert losses(tmp_path / "other")[0]["loss"] == pytest.approx(losses(tmp_path / "plain")[0]["loss"], rel=0.01)
    assert_finite(checkpoint(tmp_path / "other"))
    assert {t.dtype for t in checkpoint(tmp_path / "other")["online"].values()} == {torch.float32, torch.int64}


# ---------------------------------------------------------------- what goes wrong


@pytest.mark.slow
@pytest.mark.parametrize("rate", ["1e30", "1e38"])
def test_a_diverged_run_stops_and_its_checkpoint_is_good(shared_photos, recipe, tmp_path, rate):
    config = recipe(
        shared_photos, f"optim.base_lr={rate}", "optim.epochs=4.0", "optim.warmup_epochs=2.0", "run.checkpoint_every=1"
    )
    with pytest.raises(NonFiniteLoss) as caught:
        train(config, tmp_path / "run")
    saved = checkpoint(tmp_path / "run")
    step = saved["step"]
    message = str(caught.value)
    assert f"not finite at step {step}, learning rate" in message
    stated = float(message.split("learning rate ")[1].split(";")[0])
    assert stated == pytest.approx(config.peak_lr() * step / 10, rel=1e-4)
    assert str(tmp_path / "run/last.ckpt") in message and "optim.base_lr" in message
    assert_finite(saved["online"])
    assert_finite(saved["target"])
    assert_finite(saved["optimizer"])
    assert not (tmp_path / "run/model.pth").exists()
    assert all(math.isfinite(record["loss"]) for record in losses(tmp_path / "run"))


@pytest.mark.slow
def test_a_first_step_that_diverges_says_there_is_no_checkpoint(shared_photos, recipe, tmp_path, monkeypatch):
    def not_finite(p, z, config, *, first=0):
        return p.sum() * torch.nan, {}

    monkeypatch.setattr(msbreg, "METHOD", dataclasses.replace(msbreg.METHOD, losses=not_finite))
    with pytest.raises(NonFiniteLoss, match=r"not finite at step 0, learning rate .*no checkpoint yet"):
        train(recipe(shared_photos), tmp_path / "run")
    assert not (tmp_path / "run/last.ckpt").exists()


def break_images(photos: Path) -> list[str]:
    empty, cut = photos / "train/class0/04.jpg", photos / "train/class1/09.jpg"
    empty.write_bytes(b"")
    cut.write_bytes(cut.read_bytes()[:-200])
    return [str(empty), str(cut)]


@pytest.mark.slow
def test_corrupt_images_are_passed_over_counted_and_named(photos, recipe, tmp_path, capsys):
    broken = break_images(photos)
    train(recipe(photos, "optim.epochs=1.0"), tmp_path / "run")
    said = capsys.readouterr().err
    assert all(f"skipped: {path}" in said for path in broken)
    assert losses(tmp_path / "run")[-1]["corrupt"] == 2
    assert len(checkpoint(tmp_path / "run")["corrupt"]) == 2
    assert (tmp_path / "run/model.pth").exists()


@pytest.mark.slow
def test_corrupt_images_above_the_limit_stop_the_run(photos, recipe, tmp_path):
    break_images(photos)
    with pytest.raises(BackbenchError, match=r"2 unreadable images, more than data\.max_corrupt=1"):
        train(recipe(photos, "data.max_corrupt=1"), tmp_path / "run")


@pytest.mark.slow
def test_a_corrupt_image_counts_once_whatever_the_epochs(photos, recipe, tmp_path):
    """Otherwise one broken file among a million would stop every run of more than `max_corrupt` epochs."""
    break_images(photos)
    train(recipe(photos, "data.max_corrupt=2", "optim.epochs=2.0"), tmp_path / "run")
    assert losses(tmp_path / "run")[-1]["corrupt"] == 2


def test_the_online_knn_is_of_the_labelled_images(shared_photos, recipe, monkeypatch):
    """STL-10's training set is partly labelled."""
    config = recipe(shared_photos)
    split = open_split(config.data)
    part = dataclasses.replace(split, labels=np.where(np.arange(30) % 15 == 14, -1, split.labels))
    online, *_ = build_all(config, torch.device("cpu"))
    asked = []
    monkeypatch.setattr(Files, "pil", lambda source, i, real=Files.pil: asked.append(i) or real(source, i))
    assert "online_knn20" in measure_online(online.backbone, part, config, torch.device("cpu"))
    assert sorted(asked) == [i for i in range(30) if i % 15 != 14]
    for labels in (None, np.full(30, -1), np.ones((30, 3), np.int8)):
        asked.clear()
        found = measure_online(online.backbone, dataclasses.replace(split, labels=labels), config, torch.device("cpu"))
        assert "online_knn20" not in found and "online_rankme" in found
        assert sorted(asked) == list(range(30)), "without a class an image, all serve the diagnostics"


@pytest.mark.slow
def test_a_run_without_labels_says_that_it_has_no_knn(shared_photos, recipe, tmp_path, capsys):
    for split, count in (("all", 1), ("train", 0)):
        config = recipe(shared_photos, f"data.split={split}", "run.knn_every=1.0", "optim.epochs=0.2")
        train(config, tmp_path / split)
        assert capsys.readouterr().err.count("has no labels: no online 20-NN") == count


@pytest.mark.slow
def test_the_online_knn_passes_over_corrupt_images(photos, recipe, tmp_path):
    break_images(photos)
    train(recipe(photos, "run.knn_every=1.0"), tmp_path / "run")
    assert [r["step"] for r in metrics(tmp_path / "run") if "online_knn20" in r] == [4]


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_is_one_sentence(shared_photos, recipe, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    for out in (tmp_path / "file", tmp_path / "file/run"):
        with pytest.raises(BackbenchError, match=r"cannot write .*file.*: a (part of the path is a )?file"):
            train(recipe(shared_photos), out)
    assert (tmp_path / "file").read_text() == "not a folder"


@pytest.mark.slow
@pytest.mark.parametrize("call", ["__init__", "add_scalar", "close"])
@pytest.mark.sample(1)
def test_a_disk_that_fills_up_under_tensorboard_is_one_sentence(shared_photos, recipe, tmp_path, monkeypatch, call):
    def refuse(*_args, **_fields):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(SummaryWriter, call, refuse)
    with pytest.raises(BackbenchError, match=r"cannot write .*: the disk is full"):
        train(recipe(shared_photos), tmp_path / "run")
    monkeypatch.undo()
    assert train(recipe(shared_photos), tmp_path / "run", resume=True).exists(), "with space again it goes on"


@pytest.mark.slow
def test_a_run_that_cannot_start_leaves_nothing_that_blocks_the_next(shared_photos, recipe, tmp_path):
    with pytest.raises(BackbenchError, match="fewer than one batch"):
        train(recipe(shared_photos, "optim.batch=64"), tmp_path / "run")
    assert train(recipe(shared_photos, "optim.epochs=0.2"), tmp_path / "run").exists()


# ---------------------------------------------------------------- what a run leaves behind


@pytest.mark.slow
def test_the_model_loads_as_a_backbone(whole, recipe, shared_photos, tmp_path):
    config, out = whole
    backbone = load_backbone(out / "model.pth")
    assert backbone.format == "backbench"
    assert (backbone.arch.name, backbone.arch.stem) == ("resnet18", "7x7")
    assert backbone.input.size == 32
    assert (backbone.input.mean, backbone.input.std) == (config.data.mean, config.data.std)
    online = checkpoint(out)["online"]
    for name, tensor in backbone.state.items():
        assert torch.equal(tensor, online[f"backbone.{name}"]), name
    assert backbone.build().eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 512)
    changed = recipe(shared_photos, "model.stem=3x3", "data.size=48", "data.mean=[0.4, 0.4, 0.4]", "optim.epochs=0.2")
    other = load_backbone(train(changed, tmp_path / "other"))
    assert (other.arch.stem, other.input.size, other.input.mean) == ("3x3", 48, (0.4, 0.4, 0.4))


@pytest.mark.slow
def test_metrics_hold_what_a_run_is_judged_by(whole):
    config, out = whole
    records = losses(out)
    for record in records:
        parts = record["centroid"] + 4e-3 * record["singular"] + 0.5 * record["brownian"]
        assert record["loss"] == pytest.approx(parts, rel=1e-5)
        assert record["images_per_s"] > 0 and record["std"] > 0
        assert record["base_lr"] == 20.0 and record["corrupt"] == 0
    peak = config.peak_lr()
    assert records[0]["lr"] == 0 and records[1]["lr"] == pytest.approx(peak)  # one step of warm-up
    assert records[3]["lr"] == pytest.approx(peak * (1 + math.cos(math.pi * 2 / 5)) / 2)
    assert records[6]["lr"] == pytest.approx(0, abs=1e-9)
    assert records[0]["tau"] == pytest.approx(0.99) and records[6]["tau"] == 1
    assert records[3]["tau"] == pytest.approx(1 - 0.01 / 2)  # half of the way
    assert all(1 <= r["effective_rank"] <= 8 for r in records)
    knn = {r["step"]: r["online_knn20"] for r in metrics(out) if "online_knn20" in r}
    assert set(knn) == {2, 5, 6}  # every 3 steps, and the end
    assert all(0 <= accuracy <= 100 for accuracy in knn.values())
    ranks = {r["step"]: r["online_rankme"] for r in metrics(out) if "online_rankme" in r}
    assert set(ranks) == set(knn), "in the same line"
    assert all(1 <= rank <= 30 for rank in ranks.values())
    assert [r["epoch"] for r in records] == pytest.approx([(step + 1) / 5 for step in range(7)])


@pytest.mark.slow
def test_the_folder_holds_the_recipe_and_tensorboard(whole):
    from pretrain.config import load

    config, out = whole
    assert load(str(out / "config.yaml"), []) == config
    assert any((out / "tensorboard").iterdir())
    assert not list(out.glob(".*.tmp"))


def test_collapse_verdicts():
    assert monitor.verdict({}) is None
    assert monitor.verdict({"std": 0.5, "effective_rank": 8.0}) is None
    assert monitor.verdict({"std": monitor.SPREAD_LIMIT, "effective_rank": monitor.RANK_LIMIT}) is None
    point = monitor.verdict({"std": 0.01, "effective_rank": 8.0})
    assert "spread is 0.010" in point and "method.lambda_b" in point
    line = monitor.verdict({"std": 0.9, "effective_rank": 1.2})
    assert "effective rank is 1.20" in line and "method.lambda_s" in line


NOTHING_DISPERSES = ("method.name=byol", "method.lambda_s=0.0", "method.lambda_b=0.0", "model.norm=layer")


@pytest.mark.slow
def test_a_collapse_is_said_once_while_it_happens(shared_photos, recipe, tmp_path, capsys):
    """BYOL without BatchNorm in its heads collapses long before the end of the warm-up."""
    config = recipe(
        shared_photos, *NOTHING_DISPERSES, "optim.epochs=3.0", "optim.warmup_epochs=2.5", "optim.base_lr=60.0"
    )
    train(config, tmp_path / "run")
    low = [record["std"] < monitor.SPREAD_LIMIT for record in losses(tmp_path / "run")]
    first = low.index(True)
    assert all(low[first:]) and len(low) - first > 3
    said = capsys.readouterr().err
    assert said.count("collapse: the predictions' spread") == 1 and "back at" not in said
    before = said.partition("collapse:")[0]
    assert before.count("\nstep ") == first + monitor.PATIENCE


@pytest.mark.slow
def test_a_sound_run_is_not_called_collapsed(capsys, shared_photos, recipe, tmp_path):
    train(recipe(shared_photos), tmp_path / "run")
    assert "collapse" not in capsys.readouterr().err


@pytest.mark.slow
def test_a_single_dip_is_no_collapse_and_a_recovery_is_said(shared_photos, recipe, tmp_path, capsys, monkeypatch):
    verdicts = iter(["dip", None, "down", "down", "down", None, "low", "low", None, None])
    monkeypatch.setattr(monitor, "verdict", lambda _values: next(verdicts))
    train(recipe(shared_photos, "optim.epochs=2.0"), tmp_path / "run")
    lines = [
        line for line in capsys.readouterr().err.splitlines() if line in ("dip", "down", "low") or "back at" in line
    ]
    assert [line if "back at" not in line else "back" for line in lines] == ["down", "back", "low", "back"]


# ---------------------------------------------------------------- the plain script


def run_script(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return warm.run([str(SCRIPT), *arguments], cwd=cwd)


@pytest.mark.slow
def test_help_as_a_plain_script_from_anywhere(tmp_path):
    answer = run_script("--help", cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    for word in ("--config", "--out", "--resume", "--dry-run", "key=value", "demo"):
        assert word in answer.stdout


@pytest.mark.slow
def test_dry_run_as_a_plain_script_from_anywhere(tmp_path, shared_photos, recipe):
    (tmp_path / "mine.yaml").write_text(dump(recipe(shared_photos)))
    answer = run_script("--config", "mine.yaml", "--dry-run", "optim.epochs=4.0", cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert "# 20 steps, 5 an epoch, peak rate 0.9375" in answer.stdout  # 20 x 6 / 256 x 2
    assert "epochs: 4.0" in answer.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]  # nothing was trained


@pytest.mark.slow
def test_an_error_of_the_script_is_one_line_and_code_2(tmp_path):
    answer = run_script("--config", "dmeo", cwd=tmp_path)
    assert answer.returncode == 2 and answer.stdout == ""
    assert answer.stderr.strip() == "configuration error: no recipe 'dmeo'; did you mean 'demo'?"
