"""The smallest pretraining: an image folder with smooth pictures, a recipe, and runs in separate processes."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from backbench.config import dump
from pretrain.config import PretrainConfig
from pretrain.config import recipe as build_recipe

IMAGES = 30  # 20-NN needs at least 20 in four fifths of them

# Fields that a method needs for batches of a few images.
MADE_SMALL: dict[str, tuple[str, ...]] = {
    "mocov2": ("method.queue=480",),
    "swav": ("method.prototypes=8", "method.queue=12", "method.queue_from=0.2", "method.freeze_epochs=0.3"),
    "wmse": ("method.whitening_size=3", "method.iterations=2", "method.epsilon=0.5"),
}

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["pretrain.run", "pretrain.train", "torch.utils.tensorboard"])

# Code to put before the run: the process kills itself with SIGKILL, so that nothing can be cleaned up.
KILL_AT_STEP = """
import signal
import pretrain.train as t
step_as_it_is = t.train_step
def train_step(*args, step, **kwargs):
    if step == {step}:
        os.kill(os.getpid(), signal.SIGKILL)
    return step_as_it_is(*args, step=step, **kwargs)
t.train_step = train_step
"""

_CHILD = """
import os
os.environ.update({environment!r})
os.dup2(os.open({stderr!r}, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), 2)
{before}
from backbench.errors import run_cli
from pretrain.run import main
run_cli(lambda: main({arguments!r}))
"""


def smooth_image(height: int, width: int, seed: int = 0, cells: int = 6) -> np.ndarray:
    """(H, W, 3) uint8: enlarged colour noise of few cells, as smooth as a photograph, with all levels."""
    noise = np.random.default_rng(seed).uniform(-40, 295, (cells, cells, 3)).astype(np.float32)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 255).astype(np.uint8)


def write_photos(root: Path) -> Path:
    """An image folder of 2 x 15 images in `train`."""
    for i in range(IMAGES):
        path = root / "train" / f"class{i % 2}" / f"{i // 2:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(smooth_image(40 + i % 3, 48 - i % 5, seed=i)).save(path, quality=90)
    return root


def tiny_recipe(root: Path, *overrides: str) -> PretrainConfig:
    """ResNet-18 at 32 pixels, 2 views, 5 steps an epoch, everything logged."""
    values = {
        "method": {"views": 2},
        "model": {"backbone": "resnet18", "hidden": 16, "outputs": 8},
        "data": {"name": "imagefolder", "root": str(root), "size": 32, "workers": 0},
        "optim": {"base_lr": 20.0, "batch": 6, "epochs": 1.0, "warmup_epochs": 0.0},
        "run": {
            "threads": 1,
            "log_every": 1,
            "checkpoint_every": 2,
            "knn_every": 0.0,
            "channels_last": False,
        },
    }
    return build_recipe(values, overrides)


def start_child(config: PretrainConfig, out: Path, *flags: str, before: str = "", **environment: str) -> BaseProcess:
    """Start `pretrain/run.py` in a new process without importing torch again; stderr goes to `<out>.<rank>.stderr`."""
    name = f"{out.name}.{environment.get('RANK', '0')}"
    file = out.parent / f"{out.name}.yaml"
    if not file.exists() or file.read_text() != dump(config):  # another rank may be reading it
        file.write_text(dump(config))
    source = _CHILD.format(
        environment=environment,
        stderr=str(out.parent / f"{name}.stderr"),
        before=before,
        arguments=["--config", str(file), "--out", str(out), *flags],
    )
    process = _CONTEXT.Process(target=exec, args=(source, {}), name=name)
    process.start()
    return process


def job_of_two() -> list[dict[str, str]]:
    """Return the environments of the two ranks of a job on this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    job = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [job | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]


def run_on_two_ranks(config: PretrainConfig, out: Path) -> None:
    """Train in two processes with half the batch each."""
    ranks = [start_child(config, out, **environment) for environment in job_of_two()]
    for process in ranks:
        process.join(120)
    codes = [process.exitcode for process in ranks]
    end(ranks)
    assert codes == [0, 0], [stderr_of(process, out) for process in ranks]


def end(processes: list[BaseProcess]) -> None:
    """End processes of `start_child`."""
    for process in processes:
        if process.is_alive():
            process.kill()
        process.join()


def stderr_of(process: BaseProcess, out: Path) -> str:
    """Return the stderr of a process of `start_child`."""
    return (out.parent / f"{process.name}.stderr").read_text()


def running(found: Callable[[int], bool]) -> list[int]:
    """Return the processes of this machine that are not zombies and for which `found` is true."""

    def lives(number: int) -> bool:
        try:
            return ") Z" not in Path(f"/proc/{number}/stat").read_text() and found(number)
        except OSError:
            return False

    return [int(name) for name in os.listdir("/proc") if name.isdigit() and lives(int(name))]  # noqa: PTH208


def assert_identical(a: Any, b: Any, where: str = "") -> None:
    """Compare bit for bit, through nested containers."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_identical(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_identical(x, y, f"{where}/{i}")
    else:
        assert a == b, where
