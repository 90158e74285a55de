"""What a run consists of, the commands of its cells, and the records of cells that give no number."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from backbench import job
from backbench.processes import INTERRUPTED
from benchmarks.options import CellOptions, Options, RunOptions
from benchmarks.subjects import Subject, by_seed

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from backbench.data.catalogue import DataPlaces
    from benchmarks.plan import Cell
    from benchmarks.records.schema import Result
    from benchmarks.report import Planned

    Pair = tuple[Subject, Cell]

_RUN_ONE = Path(__file__).resolve().parent / "run_one.py"


@dataclass(frozen=True)
class Run:
    """The cells and backbones that a command line asks for, before anything is measured."""

    options: RunOptions
    suite: str
    cells: list[Cell]
    overrides: dict[str, list[str]]  # by cell
    repeats: dict[str, int]  # seeds by cell
    places: DataPlaces
    subjects: list[Subject]
    skipped: dict[tuple[Subject, str], str]  # reasons
    absent: list[str]  # sources that a dry run does not download

    def wanted(self) -> list[Pair]:
        """Return the (subject, cell) pairs that can run, in order."""
        pairs = [(subject, cell) for subject in self.subjects for cell in self.cells]
        return [(subject, cell) for subject, cell in pairs if (subject, cell.name) not in self.skipped]

    def planned(self) -> Planned:
        """Return the identities of this run's records; its report shows only these."""
        return {
            (backbone.name, backbone.weights_sha256, cell.name, cell.config_sha256, cell.task.version, seed)
            for subject in self.subjects
            for cell in self.cells
            for seed, backbone in by_seed(subject.backbones, self.repeats[cell.name], cell)
        }


def commands(run: Run, pairs: Sequence[Pair]) -> list[list[str]]:
    """The script and its words for each (backbone, cell)."""
    from backbench.data import catalogue

    options = run.options
    made = []
    for number, (subject, cell) in enumerate(pairs, start=1):
        one = CellOptions(
            ckpt=subject.ckpt,
            like=subject.like,
            cell=cell.name,
            place=f"{number}/{len(pairs)}",
            suite=options.suite,
            profile=options.profile,
            seeds=run.repeats[cell.name],
            out=options.out,
            data_root=run.places.root,
            data=tuple(catalogue.spelled(name, path) for name, path in run.places.named.items()),
            choice=options.choice,
            override=tuple(run.overrides[cell.name]),
        )
        made.append([str(_RUN_ONE), *one.to_argv()])
    return made


def launch(run: Run, pairs: Sequence[Pair]) -> list[int]:
    """Start one process, or one group of processes, per (backbone, cell) on this machine; returns their exit codes."""
    import torch

    from benchmarks.launchers import local

    nproc = run.options.nproc
    start = [sys.executable, *([job.__file__, str(nproc)] if nproc > 1 else [])]
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    words = [[*start, *command] for command in commands(run, pairs)]
    return local.run(words, jobs=run.options.jobs or max(1, gpus // nproc), gpus=gpus, gpus_each=nproc)


def record_skipped(run: Run) -> None:
    """Write a record, with the reason, for every cell that cannot run."""
    from benchmarks import measuring
    from benchmarks.records import store

    for subject in run.subjects:
        for cell in run.cells:
            if reason := run.skipped.get((subject, cell.name)):
                blank = measuring.blank(subject.backbones[0], cell, 0, run.options, status="skipped", reason=reason)
                store.write(run.options.out, blank)


def record_ended(
    pairs: Sequence[Pair], codes: Sequence[int], repeats: dict[str, int], before: dict[Path, int], options: Options
) -> None:
    """Write a record for every cell whose process was killed or crashed, because the report reads only records.

    Args:
        codes: exit codes of the processes.
        before: `store.written` when the processes were started.
    """
    from benchmarks.records import store

    new = {path for path, time in store.written(options.out).items() if before.get(path) != time}
    for pair, code in zip(pairs, codes, strict=True):
        if code not in (0, INTERRUPTED):
            reason = (
                f"its process ended with code {code}; see its output; a process that ran out of memory prints nothing"
            )
            record_killed(options.out, failures(pair, repeats[pair[1].name], options, reason), new)


def failures(pair: Pair, seeds: int, options: Options, reason: str) -> list[Result]:
    """A record of failure for each seed of a (backbone, cell)."""
    from benchmarks import measuring

    subject, cell = pair
    return [
        measuring.blank(backbone, cell, seed, options, status="failed", reason=reason)
        for seed, backbone in by_seed(subject.backbones, seeds, cell)
    ]


def record_killed(out: Path, blanks: Sequence[Result], new: Collection[Path]) -> None:
    """Write one of these records: of the first seed without a number whose failure the process did not record itself.

    Args:
        new: the records that were written since the process was started.
    """
    from benchmarks.records import store

    silent = [b for b in blanks if not set(new) & store.of_seed(out, b)]
    lost = [b for b in silent if not store.is_measured(out, b)]
    if lost or silent == blanks:  # the numbers may come from other data
        store.write(out, [*lost, *blanks][0])
