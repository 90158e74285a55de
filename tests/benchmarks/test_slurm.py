"""Cells as SLURM jobs: what would be submitted, and a cell that is killed, recorded, submitted again and collected."""

from __future__ import annotations

import functools
import json
import os
import signal
from pathlib import Path

import pytest
from backbones import initial
from waits import wait_for

from backbench.errors import ConfigError
from backbench.files.locks import held
from benchmarks import planned, run_all, status
from model_zoo.architecture import Architecture, InputSpec
from model_zoo.backbone import save


@pytest.fixture
def words(tmp_path, image_folder):
    """The words of a run of one small cell, on SLURM."""
    ckpt, small = tmp_path / "photos.pth", Architecture(name="resnet18", width=0.25)
    save(ckpt, initial(small), small, InputSpec(size=32))
    fields = [f"imagenet_knn.{word}" for word in ("data.expect=any", "k=[1,3]", "headline_k=3")]
    return ["--ckpt", str(ckpt), "--tasks", "imagenet_knn", "--data", f"imagenet={image_folder}", "--out",
            str(tmp_path / "out"), "--launcher", "slurm", *fields]  # fmt: skip


def test_a_dry_run_prints_the_array_and_needs_no_slurm(words, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    assert run_all.main([*words, "--dry-run", "--jobs", "3", "--slurm", "partition=gpu gpus=1 time=2-0"]) == 0
    shown = capsys.readouterr().out
    for line in ("--partition=gpu", "--gpus-per-node=1", "--time=2880", "--requeue"):
        assert f"#SBATCH {line}\n" in shown
    assert "0: photos imagenet_knn: " in shown and "run_one.py --suite paper" in shown
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--slurm", "gpus=8"], r"each job would use 1 of them; add --nproc 8, or give gpus=1"),
        (["--slurm", "nodes=2"], r"name the processes of each node too"),
        (["--slurm", "partion=x"], r"unknown key 'partion'; did you mean 'partition'"),
        (["--launcher", "local", "--slurm", "gpus=1"], r"--slurm without --launcher slurm"),
    ],
)
def test_options_that_contradict_each_other_are_refused(words, more, sentence):
    with pytest.raises(ConfigError, match=sentence):
        run_all.main([*words, *more])


until = functools.partial(wait_for, within=120.0, every=0.1)


def _run_one(out: Path) -> int | None:
    """The process that measures for a folder of results."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().decode().split("\0")
            except OSError:
                continue
            if str(out) in command and any(word.endswith("run_one.py") for word in command[:2]):
                return int(entry.name)
    return None


@pytest.mark.slow
def test_a_killed_cell_is_recorded_and_submitted_again_once(slurm_cluster, words, tmp_path, capsys):
    out = tmp_path / "out"
    run = [*words, "--slurm", "time=30 cpus=1"]

    def state():
        (found,) = status.cells(out)
        return found

    def submit():
        capsys.readouterr()
        assert run_all.main(run) == 0
        return capsys.readouterr().err

    assert "submitted 1 job, SLURM " in submit()
    (folder,) = (file.parent for file in out.glob(f"*/*/{planned.FILE}"))
    with held(folder / ".lock"):  # another launcher has the cell in hand: the job waits
        until(lambda: _run_one(out))
        assert state().state == "running"
        assert "running: process" in submit() and len(slurm_cluster.queue()) == 1
        until(lambda: "waiting for process" in next((out / ".slurm").glob("*.out")).read_text())
        os.kill(_run_one(out), signal.SIGKILL)
        until(lambda: list(folder.glob("seed0.json")))
    until(lambda: not slurm_cluster.queue())
    failed = state()
    assert failed.state == "failed" and "ended with code -9" in failed.reason and "its output is in" in failed.reason
    assert "waiting for process" in Path(failed.log).read_text()

    assert "submitted 1 job" in submit()
    assert state().state in ("waiting", "running")
    until(lambda: not slurm_cluster.queue())
    assert (state().state, state().seeds_done) == ("done", 1)
    assert "kept: identical results exist" in submit()
    assert not slurm_cluster.queue()
    assert status.main([str(out), "--json"]) == 0
    assert [cell["state"] for cell in json.loads(capsys.readouterr().out)] == ["done"]
