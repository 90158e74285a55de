"""Killed detection runs and damaged checkpoints: the next run gives the number of an uninterrupted one."""

from __future__ import annotations

import functools
import json
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import warm
from commands import ROOT, run
from torch import nn

from backbench.data import demo
from backbench.errors import BackbenchError
from model_zoo.reading import load_torch
from transfer.detection import engines
from transfer.detection.training import checkpoints

WEIGHTS = {"detectron2": "model", "mmdet": "state_dict"}
WITHIN = 400.0  # seconds for one run
COURSE = [
    "spec.iterations=4", "spec.milestones=[3]", "spec.warmup=2", "spec.batch=2", "spec.precise_bn=3", "spec.rois=16",
    "spec.sides_train=[64,80]", "spec.side_test=80", "spec.side_max=128", "checkpoint_every=2", "log_every=1",
]  # fmt: skip
PLACES = {  # state at the kill -> iterations of the checkpoint
    "in the course": (lambda folder: _lines(folder) >= 3, [2]),
    "before any checkpoint": (lambda folder: _lines(folder) >= 1 and not checkpoints.under_way(folder), []),
    "in PreciseBN": (lambda folder: (folder / checkpoints.name(3)).exists(), [4]),
    "in the evaluation": (lambda folder: (folder / checkpoints.FINAL).exists(), [4]),
}


def _lines(folder: Path) -> int:
    file = folder / "losses.jsonl"
    return file.read_text().count("\n") if file.exists() else 0


def command(name: str, out: Path) -> list[str]:
    return [str(ROOT / "benchmarks/run_one.py"), "--ckpt", "random:resnet18", "--cell", "voc0712_detection",
            "--profile", "smoke", "--workers", "0", "--data-root", str(demo.root()), "--out", str(out),
            "train=trainval", f"engine={name}", *COURSE]  # fmt: skip


def finish(name: str, out: Path) -> str:
    """Run to the end and return the output."""
    done = warm.run(command(name, out), modules=warm.ENGINES, timeout=WITHIN, cwd=ROOT)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr[-3000:]
    return done.stderr


def outcome(name: str, out: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor], str]:
    """Return record, weights and losses."""
    (record,) = out.rglob("seed0.json")
    (final,) = out.rglob(checkpoints.FINAL)
    losses = (final.parent / "losses.jsonl").read_text()
    return json.loads(record.read_text()), load_torch(final)[WEIGHTS[name]], losses


@functools.cache
def _whole(name: str, folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor], str]:
    finish(name, folder)
    return outcome(name, folder)


@pytest.fixture
def whole(tmp_path_factory) -> Callable[[str], Any]:
    """Return the outcome of an uninterrupted run, once per engine."""
    base = tmp_path_factory.getbasetemp() / "whole"
    return lambda name: _whole(name, base / name)


def check_equal(name: str, out: Path, expected: Any, resumed_at: list[int]) -> None:
    record, weights, losses = outcome(name, out)
    sound, tensors, expected_losses = expected
    assert record["status"] == "ok" and record["metrics"] == sound["metrics"]
    assert [key for key in tensors if not torch.equal(weights[key], tensors[key])] == []
    assert losses == expected_losses, "each iteration appears once"
    assert record["provenance"]["resumed_at"] == resumed_at and sound["provenance"]["resumed_at"] == []
    left = [path.name for path in out.rglob("*") if path.name.endswith(".tmp")]
    assert left == [], "incomplete files are removed"


def killed(name: str, out: Path, place: str, how: signal.Signals) -> None:
    """Start, wait for the state, kill the process."""
    there, _ = PLACES[place]
    process = warm.Process(command(name, out), modules=warm.ENGINES, cwd=ROOT)
    deadline = time.monotonic() + WITHIN
    try:
        while time.monotonic() < deadline and process.poll() is None:
            if any(
                there(file.parent) for file in out.rglob("backbone.pkl" if name == "detectron2" else "backbone.pth")
            ):
                break
            time.sleep(0.005)
        assert process.poll() is None, "it ended before the kill"
        process.send_signal(how)
        process.wait(timeout=60)
    finally:
        process.kill()
    assert process.returncode != 0, "the kill came too late"


KILLS = [(name, place, how) for name in WEIGHTS for place in PLACES for how in (signal.SIGKILL, signal.SIGTERM)]


@pytest.mark.timeout(3 * WITHIN)
@pytest.mark.parametrize(("name", "place", "how"), KILLS, ids=[f"{n}, {p}, {h.name}" for n, p, h in KILLS])
@pytest.mark.sample(0)
def test_a_killed_run_ends_in_the_number_of_a_whole_one(name, place, how, whole, tmp_path):
    if reason := engines.get(name).missing():
        pytest.skip(reason)
    killed(name, tmp_path / "out", place, how)
    (folder,) = {file.parent for file in (tmp_path / "out").rglob("backbone.p*")}
    (folder / f".{checkpoints.name(3)}.abcd.tmp").write_bytes(b"half")  # as left by a kill during writing
    finish(name, tmp_path / "out")
    record, _, _ = outcome(name, tmp_path / "out")
    reached = record["provenance"]["resumed_at"]  # the kill comes after the state was seen
    assert len(reached) == len(PLACES[place][1]) and all(a >= b for a, b in zip(reached, PLACES[place][1], strict=True))
    check_equal(name, tmp_path / "out", whole(name), reached)


# ---------------------------------------------------------------- damage, in one process


def a_course() -> dict[str, Any]:
    torch.manual_seed(0)
    model = nn.Linear(64, 64)
    return {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)}


def saved(folder: Path) -> list[Path]:
    """Write checkpoints after iterations 0 and 1, with weights 0 and 1."""
    course = a_course()
    for iteration in range(2):
        nn.init.constant_(course["model"].weight, iteration)
        checkpoints.save(folder / checkpoints.name(iteration), iteration, {"seed": 1}, course)
    return [folder / checkpoints.name(iteration) for iteration in range(2)]


def flip(part: float) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        data = bytearray(file.read_bytes())
        data[int(part * (len(data) - 1))] ^= 0x40
        file.write_bytes(data)

    return damage


def flip_weight(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[data.index(b"\x00\x00\x80\x3f" * 8) + 3] ^= 0x40  # ones as float32: one becomes another power of two
    file.write_bytes(data)


def cut(part: float) -> Callable[[Path], None]:
    return lambda file: file.write_bytes(file.read_bytes()[: int(part * file.stat().st_size)])


def longer(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\x00" * 512)


def of_another_kind(value: Any) -> Callable[[Path], None]:
    return lambda file: torch.save(value, file)


def fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def folder_there(file: Path) -> None:
    file.unlink()
    file.mkdir()


DAMAGES: dict[str, Callable[[Path], None]] = {
    "a weight's bit": flip_weight,
    **{f"a bit at {part:.0%}": flip(part) for part in (0.3, 0.5, 0.7, 0.9)},
    **{f"cut at {part:.0%}": cut(part) for part in (0.0, 0.01, 0.5, 0.99)},
    "zeros behind": longer,
    "a page": lambda file: file.write_text("<!DOCTYPE html><html>404</html>"),
    "words": lambda file: file.write_text("not a checkpoint"),
    "no permission": lambda file: file.chmod(0),
    "a part that is not there": of_another_kind({"identity": {"seed": 1}, "iteration": 1}),
    "a word for the iteration": of_another_kind(
        {"identity": {"seed": 1}, "iteration": "x", "model": {}, "optimizer": {}}
    ),
    "weights of another shape": of_another_kind(
        {"identity": {"seed": 1}, "iteration": 1, "model": {"weight": torch.ones(2, 2)}, "optimizer": {}}
    ),
    "a pipe": fifo,
    "a folder": folder_there,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _no_hang() -> Iterator[None]:
    def hangs(*_: object) -> None:
        raise TimeoutError("hangs")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(int(2 * WITHIN))
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_checkpoint_is_never_gone_on_from(kind, tmp_path):
    """Resume from the previous checkpoint, or name the file in an error; never use untrained weights."""
    signal.alarm(60)
    _, last = saved(tmp_path)
    DAMAGES[kind](last)
    course = a_course()
    try:
        start, _ = checkpoints.resume(tmp_path, {"seed": 1}, course)
    except BackbenchError as error:
        assert "\n" not in str(error) and str(tmp_path) in str(error)
        return
    assert course["model"].weight.unique().tolist() == [start - 1]  # iteration 0, or the complete one (harmless damage)
    (tmp_path / checkpoints.name(0)).unlink()


@pytest.mark.parametrize("kind", ["a weight's bit", "cut at 50%", "a bit at 50%"])
def test_with_no_whole_checkpoint_left_it_says_so(kind, tmp_path):
    for file in saved(tmp_path):
        if kind == "a weight's bit":
            data = bytearray(file.read_bytes())
            place = data.index(a_course()["model"].bias.detach().numpy().tobytes()[:16])
            data[place] ^= 1
            file.write_bytes(data)
        else:
            DAMAGES[kind](file)
    with pytest.raises(BackbenchError, match=r"none of its 2 checkpoints can be read; remove them to start again"):
        checkpoints.resume(tmp_path, {"seed": 1}, a_course())


@pytest.mark.parametrize("limit", [0, 100, 10_000])
def test_a_file_that_may_not_grow(limit, tmp_path):
    """A full disk and a file size limit give a sentence; existing files stay intact."""
    saved(tmp_path)
    code = (
        "import resource, sys; from pathlib import Path; sys.path[:0] = ['tests/hardening', 'tests/builders']\n"
        "from backbench.errors import run_cli; import test_detection_kills as t\n"
        "from transfer.detection.training import checkpoints as c\n"
        f"course, folder = t.a_course(), Path({str(tmp_path)!r})\n"
        "c.save(folder / 'elsewhere.pth', 1, {}, course)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "run_cli(lambda: c.save(folder / c.name(2), 2, {'seed': 1}, course) and None)\n"
    )
    done = run("-c", code, within=120)  # its output is a pipe: a file could not grow either
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert checkpoints.name(2) in done.stderr.strip().splitlines()[-1]
    assert checkpoints.resume(tmp_path, {"seed": 1}, a_course()) == (2, False)
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != limit
