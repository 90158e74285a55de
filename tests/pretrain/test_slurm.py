"""Pretraining as jobs of a real SLURM: an array of a grid, one of its jobs interrupted, requeued and continued."""

from __future__ import annotations

import functools
import json

import pytest
from pretraining import tiny_recipe
from waits import wait_for

from backbench.config import dump
from pretrain import run, table
from pretrain.config import load
from pretrain.train import train

until = functools.partial(wait_for, within=200.0, every=0.1)


@pytest.mark.slow
def test_a_grid_is_an_array_and_an_interrupted_run_ends_with_the_same_bits(
    slurm_cluster, shared_photos, tmp_path, capfd
):
    out, recipe = tmp_path / "grid", tmp_path / "r.yaml"
    recipe.write_text(dump(tiny_recipe(shared_photos, "optim.epochs=8.0", "run.checkpoint_every=100")))
    words = ["--config", str(recipe), "--out", str(out), "run.seed=0,1", "--launcher", "slurm"]
    words += ["--slurm", "time=30 cpus=1 notice=60"]
    assert run.main(words) == 0
    said = capfd.readouterr()
    assert "| 0 | seed-0 | in SLURM's queue: " in said.out or "| 0 | seed-0 | running |" in said.out
    numbers = json.loads((out / "jobs.json").read_text())
    assert {number.partition("_")[0] for number in numbers.values()} == {
        numbers["seed-0"].partition("_")[0]
    }  # one array
    assert run.main([*words, "--resume"]) == 0
    assert "2 runs are in SLURM's queue already" in capfd.readouterr().err and len(slurm_cluster.queue()) == 2

    log = out / "seed-1" / "metrics.jsonl"
    until(lambda: log.exists() and log.read_text().count("\n") >= 2)
    slurm_cluster.tool("scancel", "--signal=USR2", numbers["seed-1"])
    until(lambda: (out / "seed-1" / "last.ckpt").exists())
    assert not (out / "seed-1" / "model.pth").exists()
    until(lambda: not slurm_cluster.queue())
    assert [row["state"] for row in table.rows(out)] == ["done", "done"], (out / "table.md").read_text()
    assert "resumed after step" in (out / "seed-1" / "log.txt").read_text()
    train(load(str(recipe), ["run.seed=1"]), tmp_path / "alone")
    assert (out / "seed-1" / "model.pth").read_bytes() == (tmp_path / "alone" / "model.pth").read_bytes()
    assert run.main([*words, "--resume"]) == 0
    assert "2 runs in" in (said := capfd.readouterr()).err and ", 2 done" in said.err and not slurm_cluster.queue()
