"""Which cells a run has planned: a small file in the folder of each, so that `backbench status` also shows waiting cells."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from backbench.files.atomic import atomic_write_text
from backbench.files.locks import held

if TYPE_CHECKING:
    from benchmarks.starting import Pair, Run

FILE = "planned.json"
SLURM = ".slurm"  # folder in that of the results: files and logs of SLURM's jobs


@dataclass(frozen=True)
class Planned:
    """What was planned for the folder of a cell."""

    backbone: str
    cell: str
    seeds: tuple[int, ...]
    launcher: str  # local or slurm
    job: str  # the launching process, or the number of the SLURM job

    def lock(self, out: Path) -> Path:
        """The lock that a local launcher holds while it runs."""
        return out / ".launchers" / f"{self.job}.lock"


def folders(run: Run, pair: Pair) -> dict[Path, tuple[int, ...]]:
    """The seeds of a (backbone, cell) by the folder of their records; a random baseline has a folder for each seed."""
    from benchmarks.records import store
    from benchmarks.subjects import by_seed

    subject, cell = pair
    found: dict[Path, list[int]] = {}
    for seed, one in by_seed(subject.backbones, run.repeats[cell.name], cell):
        place = store.folder(run.options.out, one.name, one.weights_sha256, cell.name, cell.config_sha256)
        found.setdefault(place, []).append(seed)
    return {place: tuple(seeds) for place, seeds in found.items()}


def note(run: Run, pair: Pair, launcher: str, job: str) -> None:
    """Write what is planned for a (backbone, cell)."""
    subject, cell = pair
    for place, seeds in folders(run, pair).items():
        planned = Planned(subject.name, cell.name, seeds, launcher, job)
        atomic_write_text(place / FILE, json.dumps(asdict(planned)) + "\n")


def read(folder: Path) -> Planned | None:
    """What was planned for a folder; None if nothing was, or the file cannot be read."""
    try:
        values = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return Planned(**{**values, "seeds": tuple(int(seed) for seed in values["seeds"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


@contextlib.contextmanager
def launching(run: Run, pairs: list[Pair]) -> Iterator[None]:
    """Note what a launcher on this machine will run; while the body runs, the pairs count as waiting or running."""
    name = f"{socket.gethostname()}-{os.getpid()}"
    lock = Planned("", "", (), "local", name).lock(run.options.out)
    with held(lock):
        for pair in pairs:
            note(run, pair, "local", name)
        yield
    with contextlib.suppress(OSError):
        for file in lock.parent.glob(f"{name}.*.lock"):
            file.unlink()
        lock.parent.rmdir()
