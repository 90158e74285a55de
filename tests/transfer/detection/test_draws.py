"""A resumed run draws the same numbers as an uninterrupted one: batches, flips, sizes, proposals, PreciseBN's batches."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectors import WEIGHTS
from PIL import Image

from model_zoo.reading import load_torch
from transfer.detection import engines
from transfer.detection.annotations.split import DetectionSplit, Instance, Picture
from transfer.detection.job import Job
from transfer.detection.training import checkpoints, course
from transfer.detection.training.draws import Draws, after


def some_tall(split: DetectionSplit) -> DetectionSplit:
    """Rotate every third picture, so that batches of wide and of tall images alternate."""
    pictures = list(split.pictures)
    for row in range(0, len(split), 3):
        image, old = split.file(row), pictures[row]
        Image.open(image).transpose(Image.Transpose.TRANSPOSE).save(image)
        pictures[row] = Picture(old.id, old.height, old.width, tuple(map(_transposed, old.instances)))
    return replace(split, pictures=tuple(pictures))


def _transposed(item: Instance) -> Instance:
    x0, y0, x1, y1 = item.box
    polygon = np.reshape(item.mask[0], (-1, 2))[:, ::-1]
    return replace(item, box=(y0, x0, y1, x1), mask=[polygon.reshape(-1).tolist()])


# ---------------------------------------------------------------- the parts


def drawn() -> list[float]:
    return [*torch.rand(3).tolist(), *np.random.rand(3), np.random.randn(), random.random(), random.gauss(0, 1)]


def test_all_generators_are_put_back(tmp_path):
    job = Job(tmp_path, 0, torch.device("cpu"))
    np.random.randn(), random.gauss(0, 1)  # both keep the second of a pair
    kept = Draws(job).state_dict()
    torch.save(kept, tmp_path / "kept.pth")
    expected = drawn()
    other = Draws(job)
    other.load_state_dict(load_torch(tmp_path / "kept.pth"))
    assert other.restore() and drawn() == expected and job.notes == []


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"workers": 2}, "started with 2 workers instead of 0"),
        ({"processes": 4}, "started with 4 processes instead of 1"),
        (None, "its checkpoint is of an older version"),
    ],
)
def test_what_cannot_be_put_back_is_noted(tmp_path, changed, words):
    job = Job(tmp_path, 0, torch.device("cpu"))
    draws = Draws(job)
    if changed:
        draws.load_state_dict(draws.state_dict() | changed)
    assert not draws.restore()
    assert job.notes == [f"resumed with other random draws than an uninterrupted run: {words}"]


def test_another_number_of_threads_rounds_otherwise_and_draws_the_same(tmp_path):
    job = Job(tmp_path, 0, torch.device("cpu"))
    draws = Draws(job)
    draws.load_state_dict(draws.state_dict() | {"threads": 64})
    expected = drawn()
    assert draws.restore() and drawn() == expected
    assert "started with 64 threads instead of" in job.notes[0]


def test_batches_after_others():
    assert list(itertools.islice(after(itertools.count(), 3), 2)) == [3, 4]


# ---------------------------------------------------------------- engines


def loader(name: str, folder: Path, spec: Any, backbone: Any, split: DetectionSplit, workers: int) -> Callable:
    """Return an engine's `batches(start)`, seeded as in a course."""
    engine, job = engines.get(name), Job(folder, 0, torch.device("cpu"), workers)
    cfg = engine.write_native(spec, backbone, split, job)

    def batches(start: int) -> Any:
        torch.manual_seed(1), np.random.seed(1), random.seed(1)
        made = (
            engine.train_loader(cfg, split, start, job)
            if name == "detectron2"
            else engine.train_loader(cfg, start, job)
        )
        return iter(made)

    return batches


def pixels(name: str, batch: Any) -> list[torch.Tensor]:
    return [sample["image"] for sample in batch] if name == "detectron2" else batch["inputs"]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.sample(2)
def test_batches_of_a_course_that_is_gone_on_with(name, workers, trained_like, scenes, short, tmp_path):
    spec = short("c4", batch=3, sides_train=(48, 64, 80))
    batches = loader(
        name, tmp_path / "run", spec, trained_like("resnet18"), some_tall(scenes(tmp_path / "i", 8)), workers
    )
    whole = [pixels(name, batch) for batch in itertools.islice(batches(0), 9)]
    state = np.random.get_state()[1] if not workers else None
    assert len({str([p.shape for p in batch]) for batch in whole}) > 3, "sizes are drawn"
    for start in (1, 2, 5):
        rest = [pixels(name, batch) for batch in itertools.islice(batches(start), 9 - start)]
        for ours, theirs in zip(rest, whole[start:], strict=True):
            assert len(ours) == 3 and all(map(torch.equal, ours, theirs))
        if state is not None:
            assert np.array_equal(np.random.get_state()[1], state), "as many numbers are drawn"
    own = pixels(name, next(batches(course.ESTIMATE)))
    assert not all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(own, whole[0], strict=True))


def states(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return load_torch(folder / checkpoints.FINAL)[WEIGHTS[name]]


def stopped_after(patch: pytest.MonkeyPatch, batches: int) -> None:
    """Raise KeyboardInterrupt after this many batches."""
    whole, seen = course._losses, itertools.count()

    def losses(*arguments: Any) -> Any:
        if next(seen) == batches:
            raise KeyboardInterrupt
        return whole(*arguments)

    patch.setattr(course, "_losses", losses)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "head", "workers"), [("detectron2", "c4", 0), ("mmdet", "fpn", 2)], indirect=["name"])
@pytest.mark.sample(1)
def test_resumed_is_uninterrupted(name, head, workers, monkeypatch, trained_like, scenes, short, tmp_path):
    """Stopped in the fourth iteration and in PreciseBN: weights and statistics equal those of an uninterrupted run."""
    engine, backbone = engines.get(name), trained_like("resnet18")
    spec, split = short(head, sides_train=(48, 64)), some_tall(scenes(tmp_path / "images", 7))

    def job(folder: str) -> Job:
        return Job(tmp_path / folder, 0, torch.device("cpu"), workers, checkpoint_every=2, log_every=1)

    whole = job("whole")
    engine.train(spec, backbone, split, whole)
    assert whole.resumed_at == [] and whole.notes == []
    for batches in (3, 3):  # iterations 0, 1, 2 and then 2, 3 and one of PreciseBN's
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            stopped_after(patch, batches)
            engine.train(spec, backbone, split, job("parts"))
    last = job("parts")
    engine.train(spec, backbone, split, last)
    assert last.resumed_at == [2, 4] and last.notes == []
    expected, found = states(whole.folder, name), states(last.folder, name)
    assert [key for key in expected if not torch.equal(found[key], expected[key])] == []
    assert (last.folder / "losses.jsonl").read_text() == (whole.folder / "losses.jsonl").read_text()
    again = job("parts")
    engine.train(spec, backbone, split, again)
    assert again.resumed_at == [2, 4, 4], "the finished one is resumed"
