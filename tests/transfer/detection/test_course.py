"""Training loop of both engines: with a detector of one norm, and with real detectors."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from backbench import distributed
from backbench.errors import BackbenchError
from model_zoo.reading import load_torch
from transfer.detection import engines
from transfer.detection.job import Job
from transfer.detection.training import checkpoints, course
from transfer.detection.training.course import Course


def noise(number: int) -> torch.Tensor:
    """Return a different batch for each number."""
    return torch.randn(8, 2, generator=torch.Generator().manual_seed(number))


def a_course(**fields) -> Course:
    """A norm and a layer that learn a constant from batches of noise, one for each iteration."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2])
    values = {
        "label": "one norm",
        "model": model,
        "optimizer": optimizer,
        "parts": {"model": model, "optimizer": optimizer, "scheduler": scheduler},
        "advance": scheduler.step,
        "losses": lambda forward, batch: {"loss_cls": (forward(batch) - 1).square().mean()},
        "loader": lambda start: map(noise, itertools.count(start)),
        "seed": lambda _start: None,
    }  # fmt: skip
    return Course(**{**values, **fields})


def a_job(folder: Path) -> Job:
    folder.mkdir()
    return Job(folder, 0, torch.device("cpu"), checkpoint_every=1, log_every=1)


@pytest.fixture
def job(tmp_path) -> Job:
    return a_job(tmp_path / "run")


def stopping(taught: Course, after: int) -> Course:
    """A course that is killed in the batch after `after` others."""
    whole = taught.losses
    seen = itertools.count()

    def losses(forward, batch):
        if next(seen) == after:
            raise KeyboardInterrupt
        return whole(forward, batch)

    taught.losses = losses
    return taught


@pytest.mark.parametrize("after", [0, 1, 3, 4, 5])
def test_a_course_that_is_stopped_ends_as_one_that_is_not(after, short, job, tmp_path):
    """Kill it in any iteration and in PreciseBN (two batches after four iterations)."""
    spec, whole = short(), a_job(tmp_path / "whole")
    expected = course.run(a_course(), spec, {"seed": 0}, whole).state_dict()
    with pytest.raises(KeyboardInterrupt):
        course.run(stopping(a_course(), after), spec, {"seed": 0}, job)
    assert not (job.folder / checkpoints.FINAL).exists()
    found = course.run(a_course(), spec, {"seed": 0}, job).state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert (job.folder / "losses.jsonl").read_text() == (whole.folder / "losses.jsonl").read_text()
    lines = [json.loads(line) for line in (job.folder / "losses.jsonl").read_text().splitlines()]
    assert [(line["iteration"], line["lr"]) for line in lines] == [(0, 0.5), (1, 0.5), (2, 0.05), (3, 0.05)]


def test_a_course_is_continued_with_another_log_interval(short, job):
    with pytest.raises(KeyboardInterrupt):
        course.run(stopping(a_course(), 2), short(), {"seed": 0}, job)
    job.log_every, job.checkpoint_every = 100, 100
    course.run(a_course(), short(), {"seed": 0}, job)
    assert job.resumed_at == [2]


def test_parts_without_a_norm_step_as_the_whole_batch(short, tmp_path):
    """One batch of 8 and parts of 4 and 2 give the same weights and log, up to float32 rounding."""
    found = {}
    for parts in (1, 2, 4):
        taught, mine = a_course(), a_job(tmp_path / str(parts))
        taught.losses = lambda forward, batch: {"loss_cls": (forward[1](batch) - 1).square().mean()}
        mine.accumulate = parts
        found[parts] = course.run(taught, short(precise_bn=0), {"seed": 0}, mine).state_dict()
    for parts in (2, 4):
        for name, value in found[1].items():
            torch.testing.assert_close(found[parts][name], value, rtol=1e-5, atol=1e-6)
    lines = [json.loads((tmp_path / p / "losses.jsonl").read_text().splitlines()[3]) for p in ("1", "4")]
    assert lines[0]["loss_cls"] == pytest.approx(lines[1]["loss_cls"], rel=1e-5)


def test_a_checkpoint_of_before_was_made_in_one_part_and_not_frozen(short, job):
    with pytest.raises(KeyboardInterrupt):
        course.run(stopping(a_course(), 2), short(), {"seed": 0}, job)
    with pytest.raises(BackbenchError, match="is of a run with another accumulate"):
        course.run(a_course(), short(), {"seed": 0, "accumulate": 2}, job)
    with pytest.raises(BackbenchError, match="is of a run with another frozen"):
        course.run(a_course(), short(), {"seed": 0, "frozen": True}, job)
    course.run(a_course(), short(), {"seed": 0, "accumulate": 1, "frozen": False}, job)
    assert job.resumed_at == [2]


def test_a_finished_course_draws_no_batch(short, job):
    expected = course.run(a_course(), short(), {"seed": 0}, job).state_dict()
    found = course.run(stopping(a_course(), 0), short(), {"seed": 0}, job).state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_loss_that_is_not_finite_is_never_stepped_on(short, job):
    batches = [torch.ones(8, 2), torch.randn(8, 2), torch.full((8, 2), float("nan"))]
    taught = a_course(loader=lambda _start: batches)
    with pytest.raises(
        BackbenchError, match=r"not finite at iteration 2, rate 0\.05: .*last good checkpoint is"
    ) as error:
        course.run(taught, short(), {"seed": 0}, job)
    kept = checkpoints.under_way(job.folder)[0]
    assert kept.name == checkpoints.name(1) and str(kept) in str(error.value)
    assert all(torch.isfinite(tensor).all() for tensor in taught.model[1].state_dict().values())


@pytest.mark.parametrize("after", [2, 4], ids=["in the course", "in PreciseBN"])
def test_a_rank_whose_proposals_are_not_finite_waits_for_no_other(after, monkeypatch, short, job):
    """Detectron2 raises its own error before there is a loss, on one rank only."""
    taught, seen = a_course(), itertools.count()
    whole = taught.losses

    def losses(forward, batch):
        if next(seen) == after:
            monkeypatch.setattr(distributed, "any_rank", lambda *_: pytest.fail("the other ranks are somewhere else"))
            raise FloatingPointError("Predicted boxes or scores contain Inf/NaN. Training has diverged.")
        return whole(forward, batch)

    taught.losses = losses
    with pytest.raises(BackbenchError, match=rf"not finite at iteration {after}, .*proposals.*last good checkpoint is"):
        course.run(taught, short(), {"seed": 0}, job)
    assert not (job.folder / checkpoints.FINAL).exists()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "head"), [("detectron2", "c4"), ("mmdet", "fpn")])  # test_parity: losses are the same
@pytest.mark.sample(0)
def test_losses_fall(name, head, trained_like, scenes, short, job, tmp_path):
    engine = engines.get(name)
    if engine.missing():
        pytest.skip(engine.missing())
    job.checkpoint_every = 100
    spec = short(head, iterations=30, lr=0.01, milestones=(), warmup=5, precise_bn=0, rois=8, sides_train=(64,))
    engine.train(spec, trained_like("resnet18"), scenes(tmp_path / "images", 8), job)
    totals = [json.loads(line)["total"] for line in (job.folder / "losses.jsonl").read_text().splitlines()]
    assert len(totals) == 30
    assert sum(totals[-5:]) < 0.8 * sum(totals[:5])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "weights"), [("detectron2", "model"), ("mmdet", "state_dict")])
@pytest.mark.sample(1)
def test_a_kill_in_precise_bn_repeats_no_iteration(
    name, weights, monkeypatch, trained_like, scenes, short, job, tmp_path
):
    engine = engines.get(name)
    if engine.missing():
        pytest.skip(engine.missing())
    spec, trained, split = short("c4", iterations=1), trained_like("resnet18"), scenes(tmp_path / "images", 2)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(course, "precise_statistics", killed)
        with pytest.raises(KeyboardInterrupt):
            engine.train(spec, trained, split, job)
    assert not (job.folder / checkpoints.FINAL).exists()
    kept = checkpoints.under_way(job.folder)[0]
    assert kept.name == checkpoints.name(spec.iterations - 1)
    reached = load_torch(kept)[weights]
    written = [(job.folder / name).stat().st_mtime_ns for name in ("train.json", "losses.jsonl")]
    monkeypatch.setattr(course, "iterate", killed)
    found = engine.train(spec, trained, split, job).state_dict()
    assert [(job.folder / name).stat().st_mtime_ns for name in ("train.json", "losses.jsonl")] == written
    assert all(torch.equal(found[name], value) for name, value in reached.items() if name.endswith("weight"))
    means = [name for name in reached if name.endswith("running_mean")]
    assert not any(torch.equal(found[name], reached[name]) for name in means), "statistics are estimated"
    assert (job.folder / checkpoints.FINAL).exists()
