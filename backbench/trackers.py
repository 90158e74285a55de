"""Curves of long work in Weights & Biases, MLflow or TensorBoard, for `--log`. Off by default; changes no number.

The loops call `log` where they log anyway; it does nothing unless a run is `opened` in this process, on rank 0.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from backbench.errors import BackbenchError, ConfigError

VARIABLE = "BACKBENCH_LOG"  # inherited by the processes and jobs that a command starts
KINDS = ("wandb", "mlflow", "tensorboard")
_PROJECT = "backbench"


class _Tracker(Protocol):
    def log(self, values: dict[str, float], step: int) -> None: ...

    def close(self, failed: bool) -> None: ...


_open: _Tracker | None = None


class _Choose(argparse.Action):
    def __call__(self, _parser: object, namespace: argparse.Namespace, value: Any, _option: object = None) -> None:
        os.environ[VARIABLE] = value
        setattr(namespace, self.dest, value)


def add_option(parser: argparse.ArgumentParser) -> None:
    """`--log KIND` of a command line; inherited by the processes that the command starts."""
    parser.add_argument("--log", action=_Choose, choices=KINDS, help="send the curves of training there too")


def chosen() -> str | None:
    """The tracker that `--log` or BACKBENCH_LOG names, None by default.

    Raises:
        ConfigError: an unknown name, or a library that is not installed.
    """
    kind = os.environ.get(VARIABLE) or None
    if kind is not None and kind not in KINDS:
        raise ConfigError(f"{VARIABLE}={kind[:40]!r}: not a tracker; known: {', '.join(KINDS)}")
    if kind is not None and importlib.util.find_spec(kind) is None:
        raise ConfigError(f"--log {kind}: {kind} is not installed; pip install {kind}")
    return kind


@contextlib.contextmanager
def opened(kind: str | None, folder: Path, name: str, config: Mapping[str, Any]) -> Iterator[None]:
    """Send what `log` gets to a tracker while the body runs, on rank 0.

    Args:
        kind: one of KINDS, or None for no tracker.
        folder: for the tracker's files; runs in one folder continue one curve.
        config: what is run, as plain values.

    Raises:
        BackbenchError: the tracker does not start.
    """
    global _open
    from backbench.distributed import is_main

    if kind is None or not is_main():
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        makers: dict[str, Callable[..., _Tracker]] = {"wandb": _Wandb, "mlflow": _Mlflow, "tensorboard": _TensorBoard}
        _open = makers[kind](folder, name, config)
    except Exception as error:
        raise BackbenchError(f"--log {kind}: it does not start ({error}); leave --log out, or correct this") from None
    failed = True
    try:
        yield
        failed = False
    finally:
        last, _open = _open, None
        if last is not None:
            with contextlib.suppress(Exception):  # the numbers are in our own files
                last.close(failed)


def log(values: Mapping[str, float], step: int) -> None:
    """Add a point to each of these curves. A tracker that fails is said once and left out; the work continues."""
    global _open
    if _open is None:
        return
    from backbench.progress import say

    try:
        _open.log({name: float(value) for name, value in values.items()}, step)
    except Exception as error:
        _open = None
        say(f"the tracker of --log failed ({error}); the run continues without it")


def is_open() -> bool:
    """Whether `log` leads anywhere: values that cost something to compute are computed only then."""
    return _open is not None


class _Wandb:
    def __init__(self, folder: Path, name: str, config: Mapping[str, Any]) -> None:
        import wandb

        number = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]  # the same after a resume
        self.run = wandb.init(
            project=_PROJECT, name=name, id=number, resume="allow", dir=str(folder), config=dict(config)
        )

    def log(self, values: dict[str, float], step: int) -> None:
        self.run.log({**values, "step": step})  # its own steps cannot go back, which they do after a resume

    def close(self, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))


class _Mlflow:
    def __init__(self, folder: Path, name: str, config: Mapping[str, Any]) -> None:
        import mlflow

        self.library = mlflow
        mlflow.set_experiment(_PROJECT)
        mlflow.start_run(run_name=name, tags={"folder": str(folder.resolve())})
        mlflow.log_params({key: str(value)[:500] for key, value in config.items()})

    def log(self, values: dict[str, float], step: int) -> None:
        self.library.log_metrics(values, step=step)

    def close(self, failed: bool) -> None:
        self.library.end_run(status="FAILED" if failed else "FINISHED")


class _TensorBoard:
    def __init__(self, folder: Path, name: str, config: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"))
        self.writer.add_text("config", f"{name}: {dict(config)}")

    def log(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self, failed: bool) -> None:
        self.writer.close()
