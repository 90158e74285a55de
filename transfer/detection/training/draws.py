"""Store random generators in a checkpoint, so that a resumed run draws the same numbers as an uninterrupted one."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch

from backbench import distributed
from transfer.detection.job import Job

PART = "draws"  # part of a checkpoint; older versions lack it


class Draws:
    """Part of a checkpoint: the random generators of all ranks, and the iterations at which the run was resumed."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.resumed_at: list[int] = []
        self._kept: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the generators' state. Every rank must call it. The data workers' draws depend only on their number."""
        states = distributed.gather(_generators(self.job.device))
        return {"resumed_at": list(self.resumed_at), "states": states, **_shape(self.job)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep the state for `restore`."""
        self._kept, self.resumed_at = state, list(state["resumed_at"])

    def restore(self) -> bool:
        """Restore this rank's generators. Return False, with a note, if that is impossible."""
        mine = _shape(self.job)
        other = [f"{self._kept[name]} {name} instead of {mine[name]}" for name in mine
                 if self._kept and self._kept[name] != mine[name]]  # fmt: skip
        if other or not self._kept:
            why = f"started with {' and '.join(other)}" if other else "its checkpoint is of an older version"
            self.job.notes.append(f"resumed with other random draws than an uninterrupted run: {why}")
        if not self._kept or any(self._kept[name] != mine[name] for name in ("processes", "workers")):
            return False
        _put_back(self._kept["states"][distributed.rank()], self.job.device)
        return True


def after(batches: Iterable[Any], count: int) -> Iterator[Any]:
    """Take the first `count` batches at once, which draws their random numbers, and return the rest."""
    rest = iter(batches)
    for _ in islice(rest, count):
        pass
    return rest


def _shape(job: Job) -> dict[str, int]:
    """Return the settings that affect draws and the rounding of sums, besides the generators."""
    return {"processes": distributed.world_size(), "workers": job.workers, "threads": torch.get_num_threads()}


def _generators(device: torch.device) -> dict[str, Any]:
    state: Any = np.random.get_state()  # numpy's stubs do not know that this is the tuple
    name, words, position, has_gauss, gauss = state
    assert name == "MT19937"
    version, numbers, python_gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": [torch.from_numpy(words.astype(np.int64)), position, has_gauss, gauss],
        "python": [version, torch.tensor(numbers), python_gauss],
    }


def _put_back(state: dict[str, Any], device: torch.device) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
    words, *rest = state["numpy"]
    np.random.set_state(("MT19937", words.numpy().astype(np.uint32), *rest))
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers.tolist()), gauss))
