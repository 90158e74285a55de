"""Test batches in parts: valid values, gradients, resuming, the record's note."""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from detectors import WEIGHTS

from backbench.config import build, digest
from backbench.errors import BackbenchError, ConfigError
from benchmarks import plan
from model_zoo.reading import load_torch
from transfer.detection import engines, run
from transfer.detection.job import Job
from transfer.detection.training import checkpoints, course
from transfer.detection.training.accumulation import note, split


def test_parts_keep_the_order_of_the_images():
    images, columns = list("abcdef"), {"inputs": list("abcdef"), "data_samples": list(range(6))}
    assert split(images, 1) == [images]
    assert split(images, 3) == [["a", "b"], ["c", "d"], ["e", "f"]]
    assert split(columns, 2) == [
        {"inputs": ["a", "b", "c"], "data_samples": [0, 1, 2]},
        {"inputs": ["d", "e", "f"], "data_samples": [3, 4, 5]},
    ]


def test_parts_that_do_not_divide_the_batch_are_refused_with_those_that_do(scenes, short, monkeypatch, tmp_path):
    with pytest.raises(
        ConfigError,
        match=r"accumulate=3 does not divide the batch of 16 images; set <cell>.accumulate to 1, 2, 4, 8 or 16",
    ):
        plan.load_cell("voc0712_detection", ["accumulate=3"])
    config = run.DetectionConfig(spec=short("c4", batch=6), accumulate=2)
    monkeypatch.setattr(run, "world_size", lambda: 2)
    found = scenes(tmp_path / "images", 1)
    context = run.RunContext({"train": found, "test": found}, 0, torch.device("cpu"), tmp_path, tmp_path)
    with pytest.raises(ConfigError, match=r"the batch of each process of 3 images; set <cell>.accumulate to 1 or 3$"):
        run.detections(object(), config, context)


@pytest.mark.parametrize("cell", ["voc0712_detection", "coco_instance_segmentation"])
def test_one_part_is_the_protocol_that_was_measured_before(cell):
    plain, whole, parts = (plan.load_cell(cell, given).config for given in ([], ["accumulate=1"], ["accumulate=4"]))
    assert digest(plain.identity()) == digest(whole.identity()) != digest(parts.identity())
    assert "accumulate" not in plain.model_dump(mode="json")
    stored = parts.model_dump(mode="json")
    assert stored["accumulate"] == 4 and build(type(parts), stored) == parts
    assert parts.course() == plain.course(), "the batch is the total"
    smoke = plan.load_cell(cell, ["accumulate=4"], "smoke").config
    assert smoke.course().batch % (8 * 4) == 0, "a rehearsal divides among 8 processes too"


def test_the_record_says_how_many_images_the_norms_saw():
    assert note(16, 4, frozen=False) == (
        "accumulate=4: each step adds the gradients of 4 parts of 4 images; BatchNorm's statistics are over 4 images, not 16"
    )
    assert note(16, 4, frozen=True).endswith("of 4 images; norms are frozen")


def storage(name: str) -> contextlib.AbstractContextManager[Any]:
    """Detectron2's models write to an event storage."""
    if name != "detectron2":
        return contextlib.nullcontext()
    from detectron2.utils.events import EventStorage

    return EventStorage()


def gradients(model: torch.nn.Module, taught: Any, parts: list[Any]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    model.zero_grad()
    losses = course.backward(taught, model, parts, 0, None)
    return losses, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).double()


@pytest.mark.slow
def test_parts_give_the_gradient_of_the_whole_batch(name, monkeypatch, scenes, short, trained_like, tmp_path):
    """Frozen norms, images of equal size, equally many boxes per image: losses to 1e-5, the gradient to 1e-4 of its norm."""
    engine, job = engines.get(name), Job(tmp_path, 0, torch.device("cpu"))
    monkeypatch.setattr(torch, "randperm", lambda n, **fields: torch.arange(n, device=fields.get("device")))
    spec = short("fpn", masks=False, norm="frozen", batch=4, rois=8, sides_train=(64,))
    taught = engine.new_course(spec, trained_like("resnet18"), scenes(tmp_path / "images", 4), job)
    model, batch = taught.model.train(), next(iter(taught.loader(0)))
    with storage(name):
        whole, expected = gradients(model, taught, [batch])
        for count in (2, 4):
            losses, found = gradients(model, taught, split(batch, count))
            assert losses.keys() == whole.keys() and len(losses) == 4
            for key, value in whole.items():
                torch.testing.assert_close(losses[key], value, rtol=1e-5, atol=1e-7, msg=lambda m, k=key: f"{k}: {m}")
            assert float((found - expected).norm() / expected.norm()) < 1e-4
        half = gradients(model, taught, split(batch, 2)[:1])[1]
    assert float((half - expected).norm() / expected.norm()) > 1e-2, "the other parts matter"


@pytest.mark.sample(1)
@pytest.mark.slow
def test_a_kill_between_two_parts_changes_no_number(name, monkeypatch, trained_like, scenes, short, tmp_path):
    engine, backbone, found = engines.get(name), trained_like("resnet18"), scenes(tmp_path / "images", 3)
    spec = short("c4", iterations=2, milestones=(), precise_bn=1, sides_train=(48, 64))

    def trained(folder: str, accumulate: int = 2) -> Path:
        job = Job(tmp_path / folder, 0, torch.device("cpu"), checkpoint_every=1, log_every=1, accumulate=accumulate)
        engine.train(spec, backbone, found, job)
        return job.folder

    whole, seen, losses = trained("whole"), itertools.count(), course._losses

    def stopping(*arguments: Any) -> Any:
        if next(seen) == 3:  # the second part of the second iteration
            raise KeyboardInterrupt
        return losses(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(course, "_losses", stopping)
        trained("parts")
    with pytest.raises(BackbenchError, match=r"is of a run with another accumulate; give another folder"):
        trained("parts", accumulate=1)
    parts = trained("parts")
    expected, mine = (load_torch(folder / checkpoints.FINAL)[WEIGHTS[name]] for folder in (whole, parts))
    assert [key for key in expected if not torch.equal(mine[key], expected[key])] == []
    assert (parts / "losses.jsonl").read_text() == (whole / "losses.jsonl").read_text()
