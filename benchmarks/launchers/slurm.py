"""Cells as an array of SLURM jobs: submits and returns. The jobs continue from their records after every requeue."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backbench import slurm
from backbench.data import subsets
from backbench.errors import ConfigError
from backbench.files import locks
from backbench.progress import say
from benchmarks import forecast, measuring, planned, starting
from benchmarks.options import RunOptions
from benchmarks.records import store
from benchmarks.records.schema import Result

if TYPE_CHECKING:
    from benchmarks.starting import Pair, Run


def wanted(options: RunOptions) -> slurm.Slurm:
    """What each job asks for.

    Raises:
        ConfigError: a field that cannot be, or GPUs that no process of the job would use.
    """
    asked = slurm.parse(options.slurm)
    if asked.gpus > options.nproc:
        raise ConfigError(
            f"--slurm gpus={asked.gpus}: each job would use {options.nproc} of them; add --nproc {asked.gpus}, or give "
            f"gpus={options.nproc}"
        )
    if asked.nodes > 1 and options.nproc == 1 and not asked.gpus:
        raise ConfigError(f"--slurm nodes={asked.nodes}: name the processes of each node too, as --nproc 8 with gpus=8")
    return asked


def preview(run: Run) -> str:
    """The array that `submit` would submit."""
    pairs = run.wanted()
    works = _works(run, pairs)
    return slurm.preview(works, wanted(run.options), _folder(run), at_once=run.options.jobs) if works else ""


def submit(run: Run) -> list[str]:
    """Fetch what the nodes may not, submit the cells without a number as one array, and return the jobs' numbers.

    Cells that have their numbers, or that another job or process has in hand, are not submitted again.
    """
    for cell in run.cells:
        if forecast.needed_list(cell):
            subsets.fetch(cell.config.share)  # type: ignore[attr-defined]
    in_hand = dict(_in_hand(run))
    for (subject, cell), why in in_hand.items():
        say(f"{subject.name:<28} {cell.name}: {why}")
    pairs = [pair for pair in run.wanted() if pair not in in_hand]
    numbers = slurm.submit(_works(run, pairs), wanted(run.options), _folder(run), at_once=run.options.jobs)
    for pair, number in zip(pairs, numbers, strict=True):
        planned.note(run, pair, "slurm", number)
    if numbers:
        jobs = f"{len(numbers)} jobs" if len(numbers) > 1 else "1 job"
        say(f"submitted {jobs}, SLURM {numbers[0].partition('_')[0]}; `backbench status {run.options.out}` shows them, "
            "and the same command again shows the report")  # fmt: skip
    return numbers


def _folder(run: Run) -> Path:
    return run.options.out.resolve() / planned.SLURM


def _works(run: Run, pairs: Sequence[Pair]) -> list[slurm.Work]:
    works = []
    for pair, words in zip(pairs, starting.commands(run, pairs), strict=True):
        subject, cell = pair
        blanks = starting.failures(pair, run.repeats[cell.name], run.options, "")
        plain = [blank.model_dump(mode="json", by_alias=True) for blank in blanks]
        failed = functools.partial(record_failure, run.options.out.resolve(), plain)
        name = f"{subject.name} {cell.name}"
        works.append(slurm.Work(name=name, argv=tuple(words), processes=run.options.nproc, failed=failed, recorded=1))
    return works


def record_failure(out: Path, blanks: Sequence[Mapping[str, Any]], reason: str) -> None:
    """Leave a record of failure, from within the job whose command was killed or crashed."""
    starting.record_killed(out, [Result.model_validate({**blank, "reason": reason}) for blank in blanks], ())


def _in_hand(run: Run) -> Iterator[tuple[Pair, str]]:
    """The pairs that need no job, with the reason."""
    pairs = run.wanted()
    jobs: dict[Pair, str] = {}
    for pair in pairs:
        for place in planned.folders(run, pair):
            if locks.is_live(place / ".lock"):
                yield pair, f"running: {locks.who(locks.read(place / '.lock'))}"
                break
            known = planned.read(place)
            if known and known.launcher == "slurm":
                jobs[pair] = known.job
    queue = slurm.queued(list(jobs.values())) or {}
    for pair, number in jobs.items():
        if number in queue:
            yield pair, f"in SLURM's queue as {number}: {queue[number].lower()}"
    for cell in run.cells:
        of_cell = [pair for pair in pairs if pair[1] is cell]
        splits, _ = forecast.read(cell, run.places) if of_cell else ({}, None)
        data = measuring.describe_data(cell, splits, run.places) if splits else None
        for pair in of_cell if data else ():
            made = [b.model_copy(update={"status": "ok", "data": data}) for b in _blanks(run, pair)]
            if all(store.stored(store.record_path(run.options.out, one), one) for one in made):
                yield pair, "kept: identical results exist"


def _blanks(run: Run, pair: Pair) -> list[Result]:
    return starting.failures(pair, run.repeats[pair[1].name], run.options, "")
