"""Random generators in a checkpoint, so that a resumed run draws the same numbers as an uninterrupted one."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch

from backbench import distributed
from transfer.detection.job import Job

PART = "draws"  # of a checkpoint; those of older versions have none


class Draws:
    """The random generators of all ranks, as a part of a checkpoint, and the iterations at which the run was resumed."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.resumed_at: list[int] = []
        self._kept: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        """The generators' state; every rank must call it. The data workers' draws follow from their number alone."""
        states = distributed.gather(_generators(self.job.device))
        return {"resumed_at": list(self.resumed_at), "states": states, **_shape(self.job)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep the state that `restore` puts back."""
        self._kept, self.resumed_at = state, list(state["resumed_at"])

    def restore(self) -> bool:
        """Restore this rank's generators; False, and a note, where that is impossible."""
        mine = _shape(self.job)
        other = [f"{self._kept[name]} {name} instead of {mine[name]}" for name in mine
                 if self._kept and self._kept[name] != mine[name]]  # fmt: skip
        if other or not self._kept:
            why = f"begun with {' and '.join(other)}" if other else "its checkpoint is of an older version"
            self.job.notes.append(f"resumed with other random draws than an uninterrupted run's: {why}")
        if not self._kept or any(self._kept[name] != mine[name] for name in ("processes", "workers")):
            return False
        _put_back(self._kept["states"][distributed.rank()], self.job.device)
        return True


def after(batches: Iterable[Any], count: int) -> Iterator[Any]:
    """The batches that follow the first `count`, which are taken at once: by then their random numbers are drawn."""
    rest = iter(batches)
    for _ in islice(rest, count):
        pass
    return rest


def _shape(job: Job) -> dict[str, int]:
    """Settings that, with the generators, decide what is drawn and how sums are rounded."""
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
