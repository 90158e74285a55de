"""Checkpoints of both engines: which are resumed, kept, skipped or refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from backbones import make_backbone
from torch import nn

from backbench.errors import BackbenchError
from model_zoo.architecture import InputSpec
from model_zoo.reading import load_torch
from transfer.detection.job import Job
from transfer.detection.training import checkpoints


def a_course() -> dict:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    return {
        "model": model,
        "optimizer": optimizer,
        "scheduler": torch.optim.lr_scheduler.MultiStepLR(optimizer, [3], 0.5),
    }


def advance(course: dict) -> None:
    course["optimizer"].zero_grad()
    course["model"](torch.ones(1, 2)).sum().backward()
    course["optimizer"].step()
    course["scheduler"].step()


def saved_course(folder: Path, iterations: int) -> dict:
    course = a_course()
    for iteration in range(iterations):
        advance(course)
        checkpoints.save(folder / checkpoints.name(iteration), iteration, {"seed": 1}, course)
    return course


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.glob("*.pth"))


def test_a_course_goes_on_where_it_was(tmp_path):
    first, second = saved_course(tmp_path, 4), a_course()
    assert checkpoints.resume(tmp_path, {"seed": 1}, second) == (4, False)
    assert second["optimizer"].param_groups[0]["lr"] == 0.5
    for course in (first, second):
        advance(course)
    assert torch.equal(first["model"].weight, second["model"].weight), "momentum goes on too"


def test_the_last_two_checkpoints_are_kept(tmp_path):
    course = saved_course(tmp_path, 5)
    assert names(tmp_path) == ["model_0000003.pth", "model_0000004.pth"]
    checkpoints.save(tmp_path / "model_final.pth", 5, {"seed": 1}, course)
    assert names(tmp_path) == ["model_0000004.pth", "model_final.pth"]
    assert checkpoints.resume(tmp_path, {"seed": 1}, a_course()) == (6, True)


def tear(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def test_a_torn_checkpoint_is_passed_over(tmp_path, capsys):
    saved_course(tmp_path, 3)
    tear(tmp_path / "model_0000002.pth")
    assert checkpoints.resume(tmp_path, {"seed": 1}, a_course()) == (2, False)
    assert "model_0000002.pth: begins as a zip archive whose index" in capsys.readouterr().err
    tear(tmp_path / "model_0000001.pth")
    with pytest.raises(BackbenchError, match="none of its 2 checkpoints can be read; remove them to start again"):
        checkpoints.resume(tmp_path, {"seed": 1}, a_course())


def test_a_checkpoint_with_one_other_bit_is_passed_over(tmp_path, capsys):
    """torch compares no checksum: a weight would silently change."""
    saved_course(tmp_path, 3)
    file = tmp_path / "model_0000002.pth"
    weight = load_torch(file)["model"]["weight"].numpy().tobytes()
    data = bytearray(file.read_bytes())
    data[data.index(weight) + 3] ^= 0x40
    file.write_bytes(data)
    assert not torch.equal(
        torch.load(file)["model"]["weight"], torch.frombuffer(bytearray(weight), dtype=torch.float32).view(2, 2)
    )
    course = a_course()
    assert checkpoints.resume(tmp_path, {"seed": 1}, course)[0] == 2
    assert torch.equal(course["model"].weight, load_torch(tmp_path / "model_0000001.pth")["model"]["weight"])
    assert re.search(r"model_0000002\.pth: .*; trying the previous checkpoint", capsys.readouterr().err)


def test_what_a_killed_run_left_half_written_is_cleared(tmp_path):
    saved_course(tmp_path, 1)
    for name in (".model_0000001.pth.a1b2.tmp", ".train.json.c3.tmp"):
        (tmp_path / name).write_bytes(b"half")
    assert checkpoints.resume(tmp_path, {"seed": 1}, a_course())[0] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["model_0000000.pth"]


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    saved_course(tmp_path, 1)
    with pytest.raises(BackbenchError, match=r"model_0000000\.pth is of a run with another seed"):
        checkpoints.resume(tmp_path, {"seed": 2}, a_course())
    assert checkpoints.resume(tmp_path / "empty", {"seed": 2}, a_course()) == (0, False)


def test_what_other_tools_left_is_refused(tmp_path):
    torch.save({"model": {}, "iteration": 3}, tmp_path / "model_final.pth")
    with pytest.raises(BackbenchError, match=r"model_final\.pth was written by other tools; give another folder"):
        checkpoints.resume(tmp_path, {"seed": 1}, a_course())


@pytest.mark.parametrize("other", [{"spec": InputSpec(order="bgr")}, {"stride_in_1x1": True}, {"seed": 1}])
def test_the_same_weights_built_or_fed_otherwise_are_another_run(other, tmp_path, scenes, short):
    split, a_job = scenes(tmp_path, 1), Job(tmp_path, 0, torch.device("cpu"))
    one, another = (checkpoints.identity(short(), make_backbone(**fields), split, a_job) for fields in ({}, other))
    assert one != another


def test_weights_that_are_not_finite_replace_nothing(tmp_path):
    course = saved_course(tmp_path, 2)
    with torch.no_grad():
        course["model"].bias[0] = float("inf")
    with pytest.raises(BackbenchError, match=r"after iteration 2, rate 1: bias .*checkpoint is .*model_0000001\.pth"):
        checkpoints.save(tmp_path / "model_0000002.pth", 2, {"seed": 1}, course)
    assert names(tmp_path) == ["model_0000000.pth", "model_0000001.pth"]


def test_the_last_iteration_is_saved_where_statistics_follow():
    assert [checkpoints.is_due(i, 6, 2, more=False) for i in range(6)] == [False, True, False, True, False, False]
    assert [checkpoints.is_due(i, 5, 2, more=True) for i in range(5)] == [False, True, False, True, True]
