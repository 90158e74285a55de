"""Both engines in real processes: two as one job, and one that is killed and restarted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import warm
from detectors import WEIGHTS
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from backbench import distributed
from backbench.data import demo
from backbench.data.splits import Files
from model_zoo import export
from model_zoo.reading import load_torch
from transfer.detection import engines, run
from transfer.detection.job import Job
from transfer.detection.training import checkpoints, frozen

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.slow


@pytest.fixture(params=sorted(WEIGHTS))
def name(request) -> str:
    """An engine that is installed."""
    reason = engines.get(request.param).missing()
    if reason is not None:
        pytest.skip(reason)
    return request.param


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "losses.jsonl").read_text().splitlines()]


def command(name: str, out: Path, *overrides: str) -> list[str]:
    values = ["--ckpt", "random:resnet18", "--cell", "coco_instance_segmentation", "--profile", "smoke", "--workers", "0",
              "--data-root", str(demo.root()), "--out", str(out), "log_every=1", f"engine={name}", *overrides]  # fmt: skip
    return [str(ROOT / "benchmarks" / "run_one.py"), *values]


@pytest.mark.sample(0)
def test_a_killed_run_goes_on(name, tmp_path):
    """Iterations and rates continue exactly, the loss log has each iteration once, no checkpoint is lost."""
    course = [
        "spec.batch=2",
        "spec.sides_train=[64]",
        "spec.side_test=64",
        "spec.iterations=9",
        "spec.milestones=[6]",
        "spec.warmup=4",
        "spec.lr=0.004",
        "checkpoint_every=2",
    ]
    arguments = command(name, tmp_path, *course)
    process = warm.Process(arguments, modules=warm.ENGINES)
    while process.poll() is None:  # the test's timeout is the safety net
        (folder,) = [file.parent for file in tmp_path.rglob("losses.jsonl")] or [None]
        if folder and checkpoints.under_way(folder) and (folder / "losses.jsonl").read_text().count("\n") >= 3:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it was killed"
    kept = checkpoints.under_way(folder)[0]
    reached = load_torch(kept)["iteration"]
    done = warm.run(arguments, modules=warm.ENGINES)
    assert done.returncode == 0, done.stderr
    assert f"resuming after {reached + 1} iterations: {kept}" in done.stderr
    record = lines(folder)
    assert [line["iteration"] for line in record] == list(range(9))
    rates = [0.004 * (0.001 + 0.999 * i / 4) if i < 4 else 0.004 * (0.1 if i >= 6 else 1) for i in range(9)]
    np.testing.assert_allclose([line["lr"] for line in record], rates, rtol=1e-6)
    assert len(list(folder.glob("model_*.pth"))) == 2
    (result,) = tmp_path.rglob("seed0.json")
    assert json.loads(result.read_text())["status"] == "ok"


# ---------------------------------------------------------------- two processes


def spread(name: str, folder: Path) -> None:
    """One rank of a training in two processes. Writes its results for the test."""
    from detectors import scenes, short, trained_like

    device = distributed.init()
    engine = engines.get(name)
    engine.prepare()
    job = Job(folder / "run", 0, device, log_every=1)
    split, spec = scenes(folder / f"images{distributed.rank()}", 5), short("c4")
    split = replace(split, source=Files(folder / "images0", split.source.paths))
    distributed.barrier()
    optimizers: list[torch.optim.Optimizer] = []
    register_optimizer_step_pre_hook(lambda optimizer, *_: optimizers.append(optimizer))
    model = engine.train(spec, trained_like("resnet18"), split, job)
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    decay = {id(p): group["weight_decay"] for group in optimizers[-1].param_groups for p in group["params"]}
    found = {
        "state": model.state_dict(),
        "norms": list({type(m).__name__ for m in norms}),
        "decay": [decay[id(p)] for m in norms for p in m.parameters()],
        "boxes": [torch.as_tensor(d.boxes) for d in run.detect(engine, model, spec, split, job)],
    }
    torch.save(found, folder / f"rank{distributed.rank()}.pth")
    distributed.shutdown()


def in_two(*arguments: str) -> None:
    """Run a job of two processes."""
    with warm.ranks(arguments, modules=warm.ENGINES) as ranks:
        assert [process.wait(280) for process in ranks] == [0, 0]


def built(name, backbone, split, job, spec) -> nn.Module:
    """Return an engine's detector before training."""
    engine = engines.get(name)
    engine.prepare()
    return engine.build(engine.write_native(spec, backbone, split, job), backbone, job.device)


@pytest.mark.sample(0)
def test_two_processes_are_one_detector(name, tmp_path, trained_like, scenes, short):
    in_two(__file__, "spread", name, str(tmp_path))
    ranks = [load_torch(tmp_path / f"rank{rank}.pth") for rank in range(2)]
    assert [rank["norms"] for rank in ranks] == [["GlobalBatchNorm"]] * 2
    assert set(ranks[0]["decay"]) == {0.0}, "synchronised norms are norms to the weight decay"
    assert len(ranks[0]["decay"]) == 2 * 21
    for key, tensor in ranks[0]["state"].items():
        assert torch.equal(tensor, ranks[1]["state"][key]), key
    assert [line["iteration"] for line in lines(tmp_path / "run")] == list(range(4))
    split, spec = scenes(tmp_path / "alone", 5), short("c4")
    job = Job(tmp_path / "single", 0, torch.device("cpu"))
    model = built(name, trained_like("resnet18"), split, job, spec)
    model.load_state_dict(load_torch(tmp_path / "run" / checkpoints.FINAL)[WEIGHTS[name]])
    alone = engines.get(name).detect(model, spec, split, job)
    for rank in ranks:
        assert len(rank["boxes"]) == len(alone) == 5
        for ours, theirs in zip(rank["boxes"], alone, strict=True):
            torch.testing.assert_close(ours, torch.as_tensor(theirs.boxes), rtol=1e-4, atol=1e-2)


def still(name: str, folder: Path) -> None:
    """One rank of a training on a frozen backbone."""
    from detectors import scenes, short, trained_like

    device, backbone = distributed.init(), trained_like("resnet18")
    engine = engines.get(name)
    job = Job(folder / "run", 0, device, frozen=True)
    split, spec = scenes(folder / f"images{distributed.rank()}", 4), short("fpn", masks=False, iterations=2, rois=8)
    split = replace(split, source=Files(folder / "images0", split.source.paths))
    distributed.barrier()
    model = engine.train(spec, backbone, split, job)
    frozen.confirm(model, export.get(name), backbone, spec, job)
    torch.save(model.state_dict(), folder / f"rank{distributed.rank()}.pth")
    distributed.shutdown()


@pytest.mark.sample(0)
def test_a_frozen_backbone_is_still_in_two_processes(name, tmp_path):
    """The norms of neck and head are synchronised, those of the backbone keep the checkpoint's statistics."""
    in_two(__file__, "still", name, str(tmp_path))
    ranks = [load_torch(tmp_path / f"rank{rank}.pth") for rank in range(2)]
    assert [key for key in ranks[0] if not torch.equal(ranks[0][key], ranks[1][key])] == []


def halves(name: str, folder: Path) -> None:
    """A step on two images in one process, or on one image in each of two processes."""
    from detectors import step

    device = distributed.init()
    mine, part = (
        ([0, 1], "alone") if distributed.world_size() == 1 else ([distributed.rank()], f"rank{distributed.rank()}")
    )
    torch.save(step(name, folder / part, mine, device), folder / f"{part}.pth")
    distributed.shutdown()


@pytest.mark.sample(1)
def test_a_step_of_two_processes_is_that_of_one_on_both_images(name, tmp_path):
    for other in engines.names():
        if engines.get(other).missing():
            pytest.skip(engines.get(other).missing())
    done = warm.run([__file__, "halves", name, str(tmp_path)], modules=warm.ENGINES)
    assert done.returncode == 0, done.stderr
    in_two(__file__, "halves", name, str(tmp_path))
    ranks = [load_torch(tmp_path / f"rank{rank}.pth") for rank in range(2)]
    alone = load_torch(tmp_path / "alone.pth")
    assert set(alone) == set(ranks[0])
    for key, expected in alone.items():
        assert expected.abs().sum() > 0, key
        if key.startswith("loss"):
            found = (ranks[0][key] + ranks[1][key]) / 2
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6, msg=lambda m, k=key: f"{k}: {m}")
            continue
        assert torch.equal(ranks[0][key], ranks[1][key]), key
        difference = float((ranks[0][key] - expected).norm() / expected.norm())
        assert difference < 1e-2, (key, difference)  # rounding differs with the size of a batch


@pytest.mark.sample(1)
def test_two_processes_write_one_record(name, tmp_path):
    """One engine as torchrun starts it, in processes that import everything."""
    words = command(name, tmp_path, "spec.iterations=2", "spec.batch=2", "spec.sides_train=[64]", "spec.side_test=64")
    if name == "mmdet":
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        subprocess.run([*start, *words], check=True, timeout=280, env=environment, cwd=ROOT)
    else:
        in_two(*words)
    (record,) = tmp_path.rglob("seed0.json")
    values = json.loads(record.read_text())
    assert values["status"] == "ok" and values["task"]["engine"] == engines.get(name).version()
    assert values["data"]["counts"]["test"] == 8


if __name__ == "__main__":
    {"spread": spread, "still": still, "halves": halves}[sys.argv[1]](sys.argv[2], Path(sys.argv[3]))
