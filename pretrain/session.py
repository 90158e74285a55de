"""Lock a run's folder for the job that trains in it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from filelock import Timeout

from backbench import distributed, elastic
from backbench.errors import BackbenchError
from backbench.files.atomic import atomic_write_text, make_folder
from backbench.files.locks import held, holder

_AGENTS = ".agents"  # in a run's folder, until it is done: the torchrun agents of the job that trains in it


@contextlib.contextmanager
def claim(out: Path, resume: bool) -> Iterator[bool]:
    """Take the run's folder for this job (rank 0). A second run in the folder is an error, and so is a finished one.

    Yields whether to continue the run in the folder: as asked, or because torchrun has restarted the ranks of this job.
    """
    refused = None
    agents = sorted({agent for agent in distributed.gather(elastic.agent()) if agent})
    with contextlib.ExitStack() as claimed:
        if distributed.is_main():
            try:  # the data workers of a run just killed hold it for up to 5 s more
                claimed.enter_context(held(make_folder(out) / ".lock", timeout=6))
                resume = resume or not set(agents).isdisjoint(_agents_before(out))
                _refuse_taken(out, resume)
                if agents:
                    atomic_write_text(out / _AGENTS, "\n".join(agents))
            except Timeout:
                who = holder(out / ".lock")
                refused = BackbenchError(
                    f"{out}: another process is training in this folder; give another --out ({who})"
                )
            except BackbenchError as error:
                refused = error
        ended, resume = distributed.any_rank(
            torch.tensor([refused is not None, resume], device=distributed.device())
        ).tolist()
        if ended:
            raise refused or SystemExit(2)  # the other ranks end silently: rank 0 has printed the error
        yield resume
        if distributed.is_main():
            (out / _AGENTS).unlink(missing_ok=True)


def _agents_before(out: Path) -> list[str]:
    """The agents of the job that last trained in the folder, if it did not finish."""
    try:
        return (out / _AGENTS).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _refuse_taken(out: Path, resume: bool) -> None:
    """Raise BackbenchError if this run would mix with another in the folder or overwrite its model."""
    if not resume and any((out / name).exists() for name in ("last.ckpt", "model.pth", "metrics.jsonl")):
        raise BackbenchError(f"{out}: contains a run already; continue it with --resume, or give another --out")
    if (out / "model.pth").exists() and not (out / "last.ckpt").exists():
        raise BackbenchError(
            f"{out}: contains a model.pth but no last.ckpt to resume; model.pth would be overwritten: give another --out"
        )
