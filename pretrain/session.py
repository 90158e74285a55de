"""A run's folder: who may train in it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from filelock import Timeout

from backbench import distributed
from backbench.errors import BackbenchError
from backbench.files.atomic import make_folder
from backbench.files.locks import held, holder


@contextlib.contextmanager
def claim(out: Path, resume: bool) -> Iterator[None]:
    """Take the run's folder for this job (rank 0): two runs in one folder are an error, so is a finished one."""
    refused = None
    with contextlib.ExitStack() as claimed:
        if distributed.is_main():
            try:  # the data workers of a run just killed hold it for up to 5 s more
                claimed.enter_context(held(make_folder(out) / ".lock", timeout=6))
                _refuse_taken(out, resume)
            except Timeout:
                who = holder(out / ".lock")
                refused = BackbenchError(
                    f"{out}: another process is training in this folder; give another --out ({who})"
                )
            except BackbenchError as error:
                refused = error
        if bool(distributed.any_rank(torch.tensor([refused is not None], device=distributed.device()))):
            raise refused or SystemExit(2)  # the other ranks end silently: rank 0 has printed the error
        yield


def _refuse_taken(out: Path, resume: bool) -> None:
    """BackbenchError when a run in the folder would be mixed with another, or its model overwritten."""
    if not resume and any((out / name).exists() for name in ("last.ckpt", "model.pth", "metrics.jsonl")):
        raise BackbenchError(f"{out}: holds a run already; continue it with --resume, or give another --out")
    if (out / "model.pth").exists() and not (out / "last.ckpt").exists():
        raise BackbenchError(
            f"{out}: holds a model.pth and no last.ckpt to resume; it would be overwritten: give another --out"
        )
