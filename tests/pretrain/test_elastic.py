"""Ranks under torchrun: one is killed, all restart, and the weights equal those of an uninterrupted run."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch
import warm
from pretraining import tiny_recipe

from backbench import elastic, processes
from backbench.config import dump
from backbench.errors import BackbenchError
from pretrain.session import claim

STEPS = 7
# Rank 1 kills itself in step 4, once; a checkpoint is written after every second step.
RANK = """
import os, pathlib, signal, sys
sys.path.insert(0, {root!r})
import pretrain.run, pretrain.train as t
from backbench.errors import run_cli
step_as_it_is, killed = t.train_step, pathlib.Path({folder!r}, "killed")
def train_step(*args, step, **kwargs):
    if step == 4 and os.environ["RANK"] == "1" and not killed.exists():
        killed.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return step_as_it_is(*args, step=step, **kwargs)
if "uninterrupted" not in sys.argv[-1]:
    t.train_step = train_step
run_cli(pretrain.run.main)
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory, shared_photos):
    """What torchrun starts, with its recipe."""
    folder = tmp_path_factory.mktemp("elastic")
    (folder / "rank.py").write_text(RANK.format(root=str(warm.ROOT), folder=str(folder)))
    (folder / "r.yaml").write_text(dump(tiny_recipe(shared_photos, "optim.epochs=1.4")))
    return [str(folder / "rank.py"), "--config", str(folder / "r.yaml"), "--out"]


@pytest.fixture(scope="module")
def uninterrupted(script):
    """The folder of an uninterrupted run of two ranks."""
    out = Path(script[0]).parent / "uninterrupted"
    with warm.ranks([*script, str(out)]) as ranks:
        assert [rank.wait(120) for rank in ranks] == [0, 0]
    return out


def agents(count: int, words: list[str]) -> list[warm.Process]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = ["-m", "torch.distributed.run", f"--nnodes={count}", f"--nproc_per_node={2 // count}"]
    torchrun += [
        "--max-restarts=2",
        "--rdzv_backend=c10d",
        f"--rdzv_endpoint=127.0.0.1:{port}",
        "--monitor_interval=0.1",
    ]
    started_by_us = {**os.environ, processes._PARENT: "0"}  # as in a SLURM job; the ranks are the agent's, not ours
    return [warm.Process([*torchrun, *words], env=started_by_us) for _ in range(count)]


@pytest.mark.sample(1)
@pytest.mark.slow
@pytest.mark.parametrize("nodes", [1, 2])
def test_a_killed_rank_starts_again_from_the_checkpoint(script, uninterrupted, nodes):
    out, killed = uninterrupted.parent / f"killed{nodes}", uninterrupted.parent / "killed"
    killed.unlink(missing_ok=True)
    started = agents(nodes, [*script, str(out)])
    try:
        codes = [agent.wait(200) for agent in started]
    finally:
        for agent in started:
            agent.kill()
    assert codes == [0] * nodes and killed.exists()
    assert (out / "model.pth").read_bytes() == (uninterrupted / "model.pth").read_bytes()
    mine, other = (torch.load(folder / "last.ckpt", weights_only=True) for folder in (out, uninterrupted))
    assert mine["step"] == STEPS
    for network in ("online", "target"):
        assert all(torch.equal(mine[network][name], tensor) for name, tensor in other[network].items())
    assert not (out / ".agents").exists()


def unfinished(out: Path) -> None:
    """A run that ends before its last step."""
    with pytest.raises(RuntimeError, match="killed"), claim(out, resume=False) as resume:
        assert not resume
        (out / "metrics.jsonl").touch()
        raise RuntimeError("killed")


def test_a_restart_by_the_same_agent_continues_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(elastic, "_agent", "host 1234 5678")
    unfinished(tmp_path)
    with claim(tmp_path, resume=False) as resume:
        assert resume
    with pytest.raises(BackbenchError, match="continue it with --resume"), claim(tmp_path, resume=False):
        pass  # that job is done


@pytest.mark.parametrize("agent", [None, "host 1234 9999", "other 1234 5678"])
def test_another_job_in_the_folder_needs_resume_even_when_torchrun_restarts_it(tmp_path, monkeypatch, agent):
    monkeypatch.setattr(elastic, "_agent", "host 1234 5678")
    unfinished(tmp_path)
    monkeypatch.setattr(elastic, "_agent", agent)
    for _ in range(2):
        with pytest.raises(BackbenchError, match="continue it with --resume"), claim(tmp_path, resume=False):
            pass
    with claim(tmp_path, resume=True) as resume:
        assert resume
