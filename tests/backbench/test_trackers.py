"""Curves sent elsewhere: each library is called as it wants to be, none is needed, and no number changes."""

from __future__ import annotations

import importlib.machinery
import os
import sys
import types

import pytest

from backbench import trackers
from backbench.errors import BackbenchError, ConfigError


@pytest.fixture
def library(monkeypatch):
    """A module in the place of a library, which notes how its functions are called."""

    def put(name, *functions):
        module, calls = types.ModuleType(name), []
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)

        def noting(function):
            def call(*args, **fields):
                calls.append((function, args, fields))
                return module

            return call

        for function in functions:
            setattr(module, function, noting(function))
        monkeypatch.setitem(sys.modules, name, module)
        return calls

    return put


def test_nothing_is_sent_by_default(tmp_path):
    assert trackers.chosen() is None
    with trackers.opened(trackers.chosen(), tmp_path / "x", "name", {}):
        assert not trackers.is_open()
        trackers.log({"loss": 1.0}, 0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", trackers.KINDS)
def test_a_library_that_is_absent_is_named_with_its_command(kind, monkeypatch):
    monkeypatch.setenv(trackers.VARIABLE, kind)
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match=f"--log {kind}: {kind} is not installed; pip install {kind}"):
        trackers.chosen()


def test_an_unknown_tracker_is_refused(monkeypatch):
    monkeypatch.setenv(trackers.VARIABLE, "wand")
    with pytest.raises(ConfigError, match="BACKBENCH_LOG='wand': not a tracker; known: wandb, mlflow, tensorboard"):
        trackers.chosen()


def test_wandb_continues_the_run_of_a_folder(library, tmp_path):
    calls = library("wandb", "init", "log", "finish")
    for _ in range(2):
        with trackers.opened("wandb", tmp_path, "net knn", {"batch": 8}):
            trackers.log({"loss": 0.5}, 3)
    (_, _, first), log, finish, (_, _, second), *_ = calls
    assert first == second and first["resume"] == "allow"
    assert (first["project"], first["name"], first["config"]) == ("backbench", "net knn", {"batch": 8})
    assert log == ("log", ({"loss": 0.5, "step": 3},), {})
    assert finish == ("finish", (), {"exit_code": 0})


def test_mlflow_gets_values_steps_and_the_end(library, tmp_path):
    calls = library("mlflow", "set_experiment", "start_run", "log_params", "log_metrics", "end_run")
    with pytest.raises(ZeroDivisionError), trackers.opened("mlflow", tmp_path, "net", {"rates": [1, 2]}):
        trackers.log({"loss": 0.5}, 3)
        1 / 0  # noqa: B018
    assert [name for name, _, _ in calls] == ["set_experiment", "start_run", "log_params", "log_metrics", "end_run"]
    assert calls[2][1] == ({"rates": "[1, 2]"},)
    assert calls[3][1:] == (({"loss": 0.5},), {"step": 3})
    assert calls[4][2] == {"status": "FAILED"}
    assert not trackers.is_open()


def test_tensorboard_holds_the_curve(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with trackers.opened("tensorboard", tmp_path, "net", {}):
        for step in range(3):
            trackers.log({"loss": 1.0 / (step + 1)}, step)
    curves = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(point.step, point.value) for point in curves.Scalars("loss")] == [
        (0, 1.0),
        (1, 0.5),
        (2, pytest.approx(1 / 3)),
    ]


def test_a_tracker_that_fails_does_not_end_the_work(library, tmp_path, capsys, monkeypatch):
    library("wandb", "init", "log", "finish")

    def fails(*_args):
        raise OSError("no network")

    monkeypatch.setattr(sys.modules["wandb"], "log", fails)
    with trackers.opened("wandb", tmp_path, "net", {}):
        trackers.log({"loss": 0.5}, 0)
        trackers.log({"loss": 0.4}, 1)
    assert capsys.readouterr().err.count("the tracker of --log failed (no network); the run continues without it") == 1


def test_a_tracker_that_does_not_start_is_a_sentence(library, tmp_path):
    library("wandb")
    with (
        pytest.raises(BackbenchError, match=r"--log wandb: it does not start .*leave --log out"),
        trackers.opened("wandb", tmp_path, "net", {}),
    ):
        pass


def test_other_ranks_send_nothing(library, tmp_path, monkeypatch):
    calls = library("wandb", "init", "log", "finish")
    monkeypatch.setenv("RANK", "1")
    with trackers.opened("wandb", tmp_path, "net", {}):
        trackers.log({"loss": 0.5}, 0)
    assert calls == []


@pytest.mark.slow
def test_a_probe_has_the_same_number_and_its_curves(tmp_path, image_folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from benchmarks import run_one
    from benchmarks.records import store

    words = ["--ckpt", "random:resnet18", "--cell", "imagenet_linear", "--data", f"imagenet={image_folder}", "--workers",
             "0", "data.expect=any", "size=32", "resize=32", "epochs=2", "batch=8", "rates=[0.1,1.0]"]  # fmt: skip
    values = []
    for kind in ("", "tensorboard"):
        os.environ[trackers.VARIABLE] = kind
        assert run_one.main([*words, "--out", str(tmp_path / f"out-{kind}")]) == 0
        (record,) = store.read_all(tmp_path / f"out-{kind}")
        values.append(record.metrics)
    assert values[0] == values[1]
    assert not list((tmp_path / "out-").rglob("curves-*"))
    (folder,) = (tmp_path / "out-tensorboard").glob("*/*/curves-seed0/tensorboard")
    curves = EventAccumulator(str(folder)).Reload()
    assert {"loss/rate_0.1", "loss/rate_1.0", f"final/{record.primary}"} <= set(curves.Tags()["scalars"])
    assert {point.step for point in curves.Scalars("loss/rate_0.1")} == {1, 2}
