"""Kills at any moment: a pretraining resumes to the same bits, leaves no process, and prints at most a short message."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
import waits
from commands import HANG, ROOT
from pretraining import end, running, start_child, stderr_of, tiny_recipe, write_photos

from pretrain.config import PretrainConfig
from pretrain.train import train

STEPS = 7
KILLS = 77

# Code before a run: write a file at each step's start, and create a session, as a terminal does.
_TELL = """
import pathlib
os.setsid()
import pretrain.train as t
step_as_it_is = t.train_step
def train_step(*args, step, **kwargs):
    pathlib.Path({folder!r}, f"step{{step}}").touch()
    return step_as_it_is(*args, step=step, **kwargs)
t.train_step = train_step
"""


def of(number: int) -> Callable[[BaseProcess], None]:
    return lambda process: send(os.kill, process.pid, number)


def group(number: int) -> Callable[[BaseProcess], None]:
    return lambda process: send(os.killpg, process.pid, number)


def several(*kills: Callable[[BaseProcess], None], pause: float = 0.0) -> Callable[[BaseProcess], None]:
    def kill(process: BaseProcess) -> None:
        for one in kills:
            one(process)
            time.sleep(pause)

    return kill


def worker(number: int) -> Callable[[BaseProcess], None]:
    def kill(process: BaseProcess) -> None:
        for child in running(
            lambda p: int(Path(f"/proc/{p}/stat").read_text().rpartition(")")[2].split()[1]) == process.pid
        ):
            send(os.kill, child, number)

    return kill


def send(how: Callable[[int, int], None], target: int | None, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        how(int(target or 0), number)


WAYS = {
    "KILL": of(signal.SIGKILL),
    "TERM": of(signal.SIGTERM),
    "INT": of(signal.SIGINT),
    "HUP": of(signal.SIGHUP),
    "INT twice": several(of(signal.SIGINT), of(signal.SIGINT), pause=0.03),
    "INT at once twice": several(of(signal.SIGINT), of(signal.SIGINT)),
    "INT and TERM": several(of(signal.SIGINT), of(signal.SIGTERM)),
    "KILL of the group": group(signal.SIGKILL),
    "INT of the group": group(signal.SIGINT),
    "HUP of the group": group(signal.SIGHUP),
    "TERM of the group twice": several(group(signal.SIGTERM), group(signal.SIGTERM), pause=0.05),
    "KILL of a worker": worker(signal.SIGKILL),
    "TERM of a worker": worker(signal.SIGTERM),
    "KILL, and again while it resumes": of(signal.SIGKILL),
}


def plan() -> list[tuple[str, int, int, float]]:
    """Return (way, step, workers, seconds after the step's start) of every kill, the same in every run."""
    chosen = []
    for i in range(KILLS):
        way, draw = list(WAYS)[i % len(WAYS)], random.Random(i)
        chosen.append(
            (way, draw.randrange(STEPS - 1), 1 if "worker" in way else draw.randrange(2), draw.random() * 0.1)
        )
    return chosen


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, photos) -> tuple[PretrainConfig, Path]:
    """Return an uninterrupted run of 7 steps."""
    config = tiny_recipe(photos, "optim.epochs=1.4", "run.knn_every=0.6", "optim.warmup_epochs=0.2")
    out = tmp_path_factory.mktemp("whole") / "run"
    before = torch.get_num_threads()
    train(config, out)
    torch.set_num_threads(before)
    return config, out


def kill_at(config: PretrainConfig, out: Path, way: str, step: int, after: float, *flags: str) -> str:
    """Start a run, kill it this way, and return its output. It must end with few words and leave no process."""
    told = out.parent / f"told{len(flags)}"
    told.mkdir()
    process = start_child(config, out, *flags, before=_TELL.format(folder=str(told)))
    try:
        wait_for(lambda: (told / f"step{step}").exists() or not process.is_alive())
        time.sleep(after)
        WAYS[way](process)
        process.join(HANG)
        assert process.exitcode is not None, f"it hangs: {stderr_of(process, out)}"
        said = stderr_of(process, out)
        wait_for(lambda: not running(lambda p: os.getsid(p) == process.pid), within=20)
    except AssertionError:
        left = running(lambda p: os.getsid(p) == process.pid)
        raise AssertionError(
            [(p, Path(f"/proc/{p}/stat").read_text(), Path(f"/proc/{p}/status").read_text()) for p in left]
        ) from None
    finally:
        send(os.killpg, process.pid, signal.SIGKILL)
        end([process])
    asked = {-signal.SIGINT, -signal.SIGTERM, -signal.SIGHUP, 130}
    assert process.exitcode in ({-signal.SIGKILL, 0} if "KILL" in way and "worker" not in way else {*asked, 2, 0}), said
    assert "Traceback" not in said and "rror:" not in said.replace("data error: a process that reads images died", "")
    return said


wait_for = functools.partial(waits.wait_for, within=HANG, every=0.005)


def losses(out: Path) -> list[float]:
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [record["loss"] for record in lines if "loss" in record]


def assert_equal(out: Path, uninterrupted: Path) -> None:
    """Model, checkpoint and losses are bitwise equal, and no file is left over."""
    assert (out / "model.pth").read_bytes() == (uninterrupted / "model.pth").read_bytes()
    mine, other = (torch.load(folder / "last.ckpt", weights_only=True) for folder in (out, uninterrupted))
    for network in ("online", "target"):
        assert all(torch.equal(mine[network][name], tensor) for name, tensor in other[network].items())
    for index, state in other["optimizer"]["state"].items():
        assert torch.equal(mine["optimizer"]["state"][index]["momentum_buffer"], state["momentum_buffer"])
    assert losses(out) == losses(uninterrupted)
    assert list(out.glob(".*.tmp")) == []


@pytest.mark.parametrize(
    ("way", "step", "workers", "after"), plan(), ids=[f"{p[0]} in step {p[1]}, {i}" for i, p in enumerate(plan())]
)
@pytest.mark.sample(0)
def test_a_killed_pretraining_resumes_to_the_same_bits(whole, tmp_path, way, step, workers, after):
    config, uninterrupted = whole
    config = config.model_copy(update={"data": config.data.model_copy(update={"workers": workers})})
    out = tmp_path / "run"
    kill_at(config, out, way, step, after)
    if "again" in way:
        kill_at(config, out, way, min(step + 1, STEPS - 1), after, "--resume")
    before = torch.get_num_threads()
    train(config, out, resume=True)
    torch.set_num_threads(before)
    assert_equal(out, uninterrupted)


def test_what_a_kill_left_half_written_is_cleared(whole, tmp_path):
    config, uninterrupted = whole
    out = tmp_path / "run"
    out.mkdir()
    (out / ".last.ckpt.a1b2c3d4.tmp").write_bytes(bytes(1 << 20))
    (out / ".of.somebody.else.tmp.txt").write_text("stays")
    train(config, out, resume=True)
    assert_equal(out, uninterrupted)
    assert (out / ".of.somebody.else.tmp.txt").exists()


# ---------------------------------------------------------------- two ranks


def start_two(config: PretrainConfig, out: Path, told: Path, *flags: str) -> list[BaseProcess]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    told.mkdir()
    job = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "BACKBENCH_RENDEZVOUS_S": "60"}
    before = _TELL.format(folder=str(told))
    return [start_child(config, out, *flags, before=before, RANK=str(r), LOCAL_RANK=str(r), **job) for r in range(2)]


@pytest.fixture(scope="module")
def whole_of_two(tmp_path_factory, photos) -> tuple[PretrainConfig, Path]:
    place = tmp_path_factory.mktemp("two")
    config = tiny_recipe(photos, "optim.epochs=1.4")
    ranks = start_two(config, place / "run", place / "told")
    for process in ranks:
        process.join(240)
    said = [stderr_of(process, place / "run") for process in ranks]
    end(ranks)
    assert [process.exitcode for process in ranks] == [0, 0], said
    return config, place / "run"


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("whom", "number", "step"),
    [
        *((0, signal.SIGKILL, 3), (1, signal.SIGKILL, 0), (1, signal.SIGKILL, 4), (1, signal.SIGTERM, 2)),
        *((0, signal.SIGINT, 3), (1, signal.SIGHUP, 5)),
    ],
    ids=lambda value: value.name if isinstance(value, signal.Signals) else str(value),
)
@pytest.mark.sample(0)
def test_two_ranks_resume_to_the_same_bits(whole_of_two, tmp_path, whom, number, step):
    config, uninterrupted = whole_of_two
    out = tmp_path / "run"
    ranks = start_two(config, out, tmp_path / "first")
    try:
        wait_for(lambda: (tmp_path / "first" / f"step{step}").exists(), within=120)
        os.kill(int(ranks[whom].pid or 0), number)
        for process in ranks:
            process.join(HANG)
        assert all(process.exitcode is not None for process in ranks), "the remaining rank hangs"
    finally:
        end(ranks)
    other = stderr_of(ranks[1 - whom], out)
    if number == signal.SIGKILL:
        assert ranks[1 - whom].exitcode == 2
        assert other.splitlines()[-1].startswith(f"job error: rank {whom} (process {ranks[whom].pid}) of 2 has ended")
    else:
        assert [process.exitcode for process in ranks] == [130, 130]
    assert "Traceback" not in other
    again = start_two(config, out, tmp_path / "second", "--resume")
    for process in again:
        process.join(240)
    codes, said = [process.exitcode for process in again], [stderr_of(process, out) for process in again]
    end(again)
    assert codes == [0, 0], said
    assert_equal(out, uninterrupted)


# ---------------------------------------------------------------- run_all and its processes

RUN_ALL = [sys.executable, str(ROOT / "benchmarks" / "run_all.py"), "--baselines", "random:resnet18", "--seeds", "1"]
RUN_ALL += ["--tasks", "imagenet_linear", "imagenet_linear.epochs=100000"]
COMPUTES = "a cell computes features"
MOMENTS: list[tuple[str, float | str]] = [
    (way, moment) for moment in (0.2, 1.0, 3.0, 8.0, COMPUTES) for way in ("KILL", "TERM", "INT", "HUP", "INT twice")
]
MOMENTS += [
    ("INT of the group", 1.0),
    *((way, COMPUTES) for way in ("INT of the group", "HUP of the group", "INT and TERM")),
]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("way", "moment"), MOMENTS, ids=[f"{way}, {moment}" for way, moment in MOMENTS])
def test_run_all_ends_with_all_that_it_started(tmp_path, way, moment):
    """Kill it during its imports, while cells start (both after seconds), and while they run."""
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(
            [*RUN_ALL, "--out", str(tmp_path / "results")], cwd=ROOT, stdout=said, stderr=said, start_new_session=True
        )
        mine = str(tmp_path / "results").encode()
        try:
            if moment == COMPUTES:
                wait_for(lambda: list((tmp_path / "results").rglob("*.part0")))
            else:
                time.sleep(moment)
            WAYS[way](process)  # type: ignore[arg-type]
            process.wait(HANG)
            wait_for(lambda: not running(lambda p: mine in Path(f"/proc/{p}/cmdline").read_bytes()), within=20)
        finally:
            for left in (process.pid, *running(lambda p: mine in Path(f"/proc/{p}/cmdline").read_bytes())):
                send(os.kill, left, signal.SIGKILL)
            process.wait()
    assert process.returncode in {-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP, 130}
    assert "Traceback" not in (tmp_path / "said").read_text()
