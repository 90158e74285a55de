"""`--log`: a run's curves go to the tracker as they go to `metrics.jsonl`."""

from __future__ import annotations

import importlib.machinery
import json
import sys
import types

import pytest
from pretraining import tiny_recipe

from backbench.config import dump
from pretrain import run


@pytest.mark.slow
def test_the_curves_of_a_run_go_to_the_tracker(shared_photos, tmp_path, monkeypatch):
    sent, ended = [], []
    mlflow = types.ModuleType("mlflow")
    mlflow.__spec__ = importlib.machinery.ModuleSpec("mlflow", None)
    mlflow.set_experiment = mlflow.log_params = lambda *_: None
    mlflow.start_run = lambda **_: None
    mlflow.log_metrics = lambda values, step: sent.append({"step": step, **values})
    mlflow.end_run = lambda status: ended.append(status)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    (tmp_path / "r.yaml").write_text(dump(tiny_recipe(shared_photos, "optim.epochs=0.4")))
    assert run.main(["--config", str(tmp_path / "r.yaml"), "--out", str(tmp_path / "run"), "--log", "mlflow"]) == 0
    kept = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [{**line, "epoch": round(line["epoch"], 4)} for line in sent] == kept and len(kept) >= 2
    assert ended == ["FINISHED"]
