"""Runs of their own processes: the points of a grid, one after the other or as an array of SLURM jobs."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from backbench import job, local, slurm
from backbench.config import without_indifferent
from backbench.data import demo
from backbench.errors import BackbenchError
from backbench.files.atomic import atomic_write_text, make_folder
from backbench.processes import INTERRUPTED
from backbench.progress import say
from pretrain import table
from pretrain.config import load
from pretrain.grid import Point
from pretrain.plan import forecast

_SCRIPT = Path(__file__).resolve().parent / "run.py"
_RESTARTS = 3  # of torchrun on several nodes, before the job fails


@dataclass(frozen=True, kw_only=True)
class Start:
    """What the command line says of all runs."""

    recipe: str | None
    folder: Path  # of a grid, or of the one run
    resume: bool
    nproc: int
    jobs: int
    slurm: slurm.Slurm | None  # None: on this machine


def run(points: Sequence[Point], start: Start) -> int:
    """Train every point that is not done and print the table of a grid; returns the exit code.

    Raises:
        BackbenchError: a folder holds a run and `resume` is off; SLURM refuses.
    """
    waiting = [point for point in points if not _is_done(point, start)]
    taken = [point for point in points if _is_begun(start.folder / point.name)]
    if taken and not start.resume:
        raise BackbenchError(
            f"{start.folder / taken[0].name}: contains a run already; continue {'all ' if len(points) > 1 else ''}with "
            "--resume, or give another --out"
        )
    make_folder(start.folder)
    if points[0].values:
        fields = [field for field, _ in points[0].values]
        table.write_grid(start.folder, fields, {p.name: [value for _, value in p.values] for p in points})
        say(f"{len(points)} runs in {start.folder}, {len(points) - len(waiting)} done")
    code = _submit(waiting, start) if start.slurm else _run_here(waiting, start)
    if points[0].values:
        print(table.write(start.folder, table.queue(start.folder)), end="")
        say(f"table: {start.folder / table.TABLE}")
    return code


def plan(points: Sequence[Point], start: Start) -> str:
    """What `run` would do: a line for each point, or what sbatch would read. Writes nothing.

    Raises:
        BackbenchError: the data are there and training would refuse them.
    """
    waiting = [point for point in points if not _is_done(point, start)]
    if start.slurm:
        return slurm.preview(_works(waiting, start), start.slurm, start.folder / "slurm", at_once=start.jobs)
    lines = []
    for point in points:
        steps = forecast(load(start.recipe, list(point.words)), start.folder / point.name).splitlines()
        state = "" if point in waiting else ", done"
        lines += [f"{point.name}: {' '.join(f'{key}={value}' for key, value in point.values)}{state}"]
        lines += [line for line in steps if line.startswith("# ")]
    return "\n".join([*lines, f"{len(points)} runs, {len(points) - len(waiting)} done"])


def _is_begun(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("last.ckpt", "model.pth", "metrics.jsonl"))


def _is_done(point: Point, start: Start) -> bool:
    """Whether the run's folder has the model of this very recipe."""
    folder = start.folder / point.name
    if not (folder / "model.pth").is_file() or not (folder / "config.yaml").is_file():
        return False
    before, now = load(str(folder / "config.yaml"), []), load(start.recipe, list(point.words))
    return without_indifferent(before) == without_indifferent(now)


def _argv(point: Point, start: Start) -> list[str]:
    """The script and its words for one run."""
    recipe = start.recipe
    if recipe is not None and Path(recipe).is_file():
        recipe = str(Path(recipe).resolve())
    words = ["--config", recipe] if recipe is not None else []
    words += ["--out", str((start.folder / point.name).resolve()), "--resume"]
    words += ["--grid", str(start.folder.resolve())] if point.values else []
    return [str(_SCRIPT), *words, *point.words]


def _run_here(points: Sequence[Point], start: Start) -> int:
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    ranks = [job.__file__, str(start.nproc)] if start.nproc > 1 else []
    commands = [[sys.executable, *ranks, *_argv(point, start)] for point in points]
    jobs = start.jobs or max(1, gpus // start.nproc)
    codes = local.run(commands, jobs=jobs, gpus=gpus, gpus_each=start.nproc)
    if INTERRUPTED in codes:
        say("stopped; continue with the same command and --resume")
        return INTERRUPTED
    for point, code in zip(points, codes, strict=True):
        if code and not (start.folder / point.name / table.FAILED).exists():
            table.note_failure(str(make_folder(start.folder / point.name)), job.how(code))
    return int(any(codes))


def _works(points: Sequence[Point], start: Start) -> list[slurm.Work]:
    assert start.slurm is not None
    return [
        slurm.Work(
            name=point.name or start.folder.name,
            argv=tuple(_argv(point, start)),
            processes=max(1, start.nproc, start.slurm.gpus),
            restarts=_RESTARTS,
            failed=functools.partial(table.note_failure, str((start.folder / point.name).resolve())),
        )
        for point in points
    ]


def _submit(points: Sequence[Point], start: Start) -> int:
    """Submit one array of the runs that are not in SLURM's queue already."""
    assert start.slurm is not None
    numbers, queued = table.jobs(start.folder), table.queue(start.folder)
    missing = [point for point in points if point.name not in queued]
    if len(missing) < len(points):
        say(f"{len(points) - len(missing)} runs are in SLURM's queue already")
    for config in (load(start.recipe, list(point.words)) for point in missing):
        if config.data.name == "demo":
            demo.root()  # made here: a node may have no place for it
    for point in missing:
        make_folder(start.folder / point.name)
    submitted = slurm.submit(_works(missing, start), start.slurm, start.folder / "slurm", at_once=start.jobs)
    numbers |= {point.name: number for point, number in zip(missing, submitted, strict=True)}
    atomic_write_text(start.folder / table.JOBS, json.dumps(numbers, indent=1) + "\n")
    for point, number in zip(missing, submitted, strict=True):
        say(f"job {number}: {point.name or start.folder}; output: {slurm.log_of(start.folder / 'slurm', number)}")
    if missing:
        say("submitted; the same command with --resume shows what is done and submits what has failed")
    return 0
