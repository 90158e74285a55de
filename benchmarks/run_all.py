"""Measure checkpoints and baselines by every transfer protocol: plan, run one process per cell, report."""

from __future__ import annotations

if __name__ == "__main__":  # before the imports, so that Ctrl-C ends them without a traceback
    import signal

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

import fnmatch
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":  # as a plain script: import from the repository's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from backbench import job, processes
from backbench.errors import BackbenchError, ConfigError, run_cli
from backbench.printable import printable
from backbench.processes import INTERRUPTED
from benchmarks.options import CellOptions, RunOptions, run_parser
from benchmarks.subjects import MOST_SEEDS, Subject, by_seed, curves_of, find_subjects

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backbench.data.catalogue import DataPlaces
    from benchmarks.plan import Cell
    from benchmarks.report import Planned

parser = run_parser

_RUN_ONE = Path(__file__).resolve().parent / "run_one.py"


@dataclass(frozen=True)
class _Run:
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

    def wanted(self) -> list[tuple[Subject, Cell]]:
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


def main(argv: list[str] | None = None, *, prog: str = "benchmarks/run_all.py") -> int:
    """Run the command; returns exit code 1 when a cell failed or every cell was skipped."""
    options = RunOptions.parse(argv, prog=prog)
    if options.list or options.show:
        return _list(options)
    refuse_mistakes(options)

    run = _resolved(options)
    if options.estimate:
        return _price(run)
    return _foretell(run) if options.dry_run else _measure(run)


def _list(options: RunOptions) -> int:
    """Print what `--list` or `--show CELL` asks for."""
    from backbench.data.catalogue import parse_places
    from benchmarks import listing

    parse_places(options.data)  # the user's own data sets define cells
    print(listing.cell_text(options.show, options.override) if options.show else listing.everything())
    return 0


def refuse_mistakes(options: RunOptions) -> None:
    """Raise ConfigError or BackbenchError for options that contradict each other or make no sense."""
    if processes.is_under_torchrun():
        raise ConfigError(
            "start benchmarks/run_all.py directly, not with torchrun: --nproc N shares a cell among N GPUs"
        )
    if not options.ckpt and not options.baselines:
        raise BackbenchError("nothing to measure: give --ckpt FILE (or --baselines random:resnet50)")
    if (options.seeds is not None and options.seeds < 1) or options.jobs < 0 or options.nproc < 1:
        raise BackbenchError("--seeds and --nproc must be at least 1, --jobs at least 0")
    if options.seeds is not None and options.seeds > MOST_SEEDS:
        raise BackbenchError(f"--seeds {options.seeds}: at most {MOST_SEEDS} are allowed")
    if options.nproc > job.MOST:
        raise ConfigError(f"--nproc {options.nproc}: at most {job.MOST} processes are allowed on one machine")


def _resolved(options: RunOptions) -> _Run:
    """Find the cells and the backbones. Raises BackbenchError: a name or a file cannot be used."""
    from backbench.data import catalogue
    from backbench.progress import say
    from benchmarks import forecast, plan

    suite_name = options.suite or ("paper" if options.data or options.data_root else "demo")
    suite = plan.load_suite(suite_name)
    named = catalogue.parse_places(options.data)  # before the cells: the user's own data sets define some
    wanted = list(suite.cells) if options.tasks is None else plan.named_cells(options.tasks)
    for name in wanted:
        plan.load_cell(name)  # refuse unknown names before reading anything
    own = [o for o in suite.overrides if fnmatch.filter(wanted, o.partition(".")[0])]
    overrides = plan.split_overrides([*own, *options.override], wanted)
    cells, overrides = plan.load_cells(wanted, overrides, options.profile)
    if options.suite is None and suite_name == "demo":
        say("no data given: running the demo suite on rendered scenes; use --data-root DIR for the real protocols")
    repeats = {cell.name: options.seeds or suite.seeds_of.get(cell.name, suite.seeds) for cell in cells}
    absent: list[str] = []
    if options.dry_run:
        options, absent = forecast.without_absent(options)
    subjects = find_subjects(options.ckpt, options.baselines, max(repeats.values()), options.choice)
    places = plan.places_of(suite, options.data_root, named)
    skipped = gaps(subjects, cells, places)
    refuse_place(options.out, cells, places)
    options = replace(options, suite=suite_name)
    return _Run(options, suite_name, cells, overrides, repeats, places, subjects, skipped, absent)


def _foretell(run: _Run) -> int:
    """Say what each cell would do, for `--dry-run`."""
    from backbench.progress import say
    from benchmarks import forecast

    parts = (run.subjects, run.absent, run.cells, run.skipped, run.repeats, run.places, run.options)
    for line in forecast.lines(*parts):
        say(line)
    return 0


def _price(run: _Run) -> int:
    """Print what each cell would take, for `--estimate`."""
    from benchmarks.price import lines

    options = run.options
    devices = options.jobs or 1
    for line in lines.lines(run.subjects, run.cells, run.repeats, run.places, on=options.on, devices=devices):
        print(line)
    return 0


def _measure(run: _Run) -> int:
    """Run the cells that can run, record why the others cannot, show the report; returns the exit code."""
    from backbench.progress import say
    from benchmarks.records import store

    options = run.options
    for subject in run.subjects:
        for cell in run.cells:
            reason = run.skipped.get((subject, cell.name))
            say(f"{'skip' if reason else 'run '}  {subject.name:<28} {cell.name}" + (f": {reason}" if reason else ""))
    make_ready(run.subjects, run.cells, run.repeats, options)
    runs = run.wanted()
    before = store.written(options.out)
    codes = launch(runs, run.overrides, run.repeats, run.places, options)
    record_without_number(run.subjects, run.cells, run.skipped, runs, codes, run.repeats, before, options)
    if interrupted := any(code == INTERRUPTED for code in codes):
        say(f"stopped; finished results are in {options.out}: run the same command to continue")
    show(options.out, run.suite, curves_of(run.subjects), run.planned())
    if not runs:
        say("every cell was skipped, for the reasons above")
    return INTERRUPTED if interrupted else int(any(codes) or not runs)


def show(out: Path, suite: str, curves: Mapping[str, Path], planned: Planned) -> None:
    """Write the report and print its table; on failure, say where the measured numbers are."""
    from backbench.progress import say
    from benchmarks import report

    try:
        table, path = report.render_all(out, suite=suite, curves=curves, only=planned)
        print(table)
        print(f"report: {printable(path, 4000)}")
    except Exception:
        say(f"the measured numbers are in {out}: `backbench report {out}` renders the report again")
        raise


def refuse_place(out: Path, cells: list[Cell], places: DataPlaces) -> None:
    """Raise ConfigError when `out` is a file, or lies in a data set that the results would change."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out}: is a file; give a folder")
    for name in sorted({cell.config.data.name for cell in cells}):
        data = places.of(name)
        if data is not None and out.resolve().is_relative_to(data.resolve()):
            raise ConfigError(
                f"--out {out}: lies in the data of '{name}' ({data}), which the results would change; give another folder"
            )


def make_ready(subjects: list[Subject], cells: list[Cell], repeats: dict[str, int], options: RunOptions) -> None:
    """Make the results folder before anything is measured.

    Raises:
        BackbenchError: the folder is not writable, or a record in it must not be replaced.
    """
    from backbench.files.atomic import atomic_write_text
    from benchmarks import measuring
    from benchmarks.records import store

    probe = options.out / ".writable"
    atomic_write_text(probe, "")
    probe.unlink()
    for subject in subjects:
        for cell in cells:
            for seed, backbone in by_seed(subject.backbones, repeats[cell.name], cell):
                store.refuse_newer(options.out, measuring.blank(backbone, cell, seed, options, status="skipped"))


def gaps(subjects: list[Subject], cells: list[Cell], places: DataPlaces) -> dict[tuple[Subject, str], str]:
    """Return why cells cannot run, by (subject, cell): no data, no engine, or a backbone the protocol does not take."""
    absent = {cell.name: cell.task.missing(cell.config, places) for cell in cells}
    found = {
        (subject, cell.name): absent[cell.name] or cell.task.unfit(subject.backbones[0], cell.config)
        for subject in subjects
        for cell in cells
    }
    return {pair: reason for pair, reason in found.items() if reason}


def record_without_number(
    subjects: list[Subject],
    cells: list[Cell],
    skipped: dict[tuple[Subject, str], str],
    runs: list[tuple[Subject, Cell]],
    codes: list[int],
    repeats: dict[str, int],
    before: dict[Path, int],
    options: RunOptions,
) -> None:
    """Write a record for every cell that was skipped, killed or crashed, because the report reads only records.

    The record is for the first seed without a number whose failure the process did not record itself.

    Args:
        before: `store.written` when the processes were started.
    """
    from benchmarks import measuring
    from benchmarks.records import store

    for subject in subjects:
        for cell in cells:
            if reason := skipped.get((subject, cell.name)):
                blank = measuring.blank(subject.backbones[0], cell, 0, options, status="skipped", reason=reason)
                store.write(options.out, blank)
    new = {path for path, time in store.written(options.out).items() if before.get(path) != time}
    for (subject, cell), code in zip(runs, codes, strict=True):
        if code in (0, INTERRUPTED):
            continue
        reason = f"its process ended with code {code}; see its output; a process that ran out of memory prints nothing"
        blanks = [
            measuring.blank(backbone, cell, seed, options, status="failed", reason=reason)
            for seed, backbone in by_seed(subject.backbones, repeats[cell.name], cell)
        ]
        silent = [b for b in blanks if not new & store.of_seed(options.out, b)]
        lost = [b for b in silent if not store.is_measured(options.out, b)]
        if lost or silent == blanks:  # the numbers may come from other data
            store.write(options.out, [*lost, *blanks][0])


def launch(
    runs: list[tuple[Subject, Cell]],
    overrides: dict[str, list[str]],
    repeats: dict[str, int],
    places: DataPlaces,
    options: RunOptions,
) -> list[int]:
    """Start one process, or one group of processes, per (backbone, cell); returns their exit codes."""
    import torch

    from backbench.data import catalogue
    from benchmarks.launchers import local

    commands = []
    for number, (subject, cell) in enumerate(runs, start=1):
        command = [sys.executable, *([job.__file__, str(options.nproc)] if options.nproc > 1 else [])]
        one = CellOptions(
            ckpt=subject.ckpt,
            like=subject.like,
            cell=cell.name,
            place=f"{number}/{len(runs)}",
            suite=options.suite,
            profile=options.profile,
            seeds=repeats[cell.name],
            out=options.out,
            data_root=places.root,
            data=tuple(catalogue.spelled(name, path) for name, path in places.named.items()),
            choice=options.choice,
            override=tuple(overrides[cell.name]),
        )
        commands.append([*command, str(_RUN_ONE), *one.to_argv()])
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return local.run(commands, jobs=options.jobs or max(1, gpus // options.nproc), gpus=gpus, gpus_each=options.nproc)


if __name__ == "__main__":
    run_cli(main, single=True)
