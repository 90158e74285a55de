"""Measure checkpoints and baselines by every transfer protocol: plan, run one process per cell, report."""

from __future__ import annotations

if __name__ == "__main__":  # before the imports, so that Ctrl-C ends them without a traceback
    import signal

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

import fnmatch
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":  # as a plain script: import from the repository's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from backbench import job, processes, trackers
from backbench.errors import BackbenchError, ConfigError, run_cli
from backbench.printable import printable
from backbench.processes import INTERRUPTED
from benchmarks import starting
from benchmarks.options import RunOptions, run_parser
from benchmarks.starting import Run
from benchmarks.subjects import MOST_SEEDS, Subject, by_seed, curves_of, find_subjects

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backbench.data.catalogue import DataPlaces
    from benchmarks.plan import Cell
    from benchmarks.report import Planned

parser = run_parser


def main(argv: list[str] | None = None, *, prog: str = "benchmarks/run_all.py") -> int:
    """Run the command; returns exit code 1 when a cell failed or every cell was skipped."""
    options = RunOptions.parse(argv, prog=prog)
    if options.list or options.show:
        return _list(options)
    refuse_mistakes(options)

    run = _resolved(options)
    if options.estimate:
        return _price(run)
    if options.dry_run:
        return _foretell(run)
    return _submit(run) if options.launcher == "slurm" else _measure(run)


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
    trackers.chosen()
    if options.launcher == "slurm":
        from benchmarks.launchers import slurm

        slurm.wanted(options)
    elif options.slurm:
        raise ConfigError("--slurm without --launcher slurm: add --launcher slurm, or leave --slurm out")
    if options.nproc > job.MOST:
        raise ConfigError(f"--nproc {options.nproc}: at most {job.MOST} processes are allowed on one machine")


def _resolved(options: RunOptions) -> Run:
    """Find the cells and the backbones. Raises BackbenchError: a name or a file cannot be used."""
    from backbench.data import catalogue
    from backbench.progress import say
    from benchmarks import forecast, pairs, plan

    suite_name = options.suite or ("paper" if options.data or options.data_root else "demo")
    suite = plan.load_suite(suite_name)
    named = catalogue.parse_places(options.data)  # before the cells: the user's own data sets define some
    wanted = list(suite.cells) if options.tasks is None else plan.named_cells(options.tasks)
    for name in wanted:
        plan.load_cell(name)  # refuse unknown names before reading anything
    own = [o for o in suite.overrides if fnmatch.filter(wanted, o.partition(".")[0])]
    overrides = plan.split_overrides([*own, *options.override], wanted)
    cells, overrides = plan.load_cells(wanted, overrides, options.profile)
    for name in sorted((set(named) & set(catalogue.OWN)) - {cell.config.data.name for cell in cells}):
        say(f"--data {name}: no cell of this run reads it; name its cells: --tasks {','.join(pairs.of_data(name))}")
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
    return Run(options, suite_name, cells, overrides, repeats, places, subjects, skipped, absent)


def _foretell(run: Run) -> int:
    """Say what each cell would do, for `--dry-run`."""
    from backbench.progress import say
    from benchmarks import forecast

    parts = (run.subjects, run.absent, run.cells, run.skipped, run.repeats, run.places, run.options)
    for line in forecast.lines(*parts):
        say(line)
    if run.options.launcher == "slurm":
        from benchmarks.launchers import slurm

        print(slurm.preview(run))
    return 0


def _price(run: Run) -> int:
    """Print what each cell would take, for `--estimate`."""
    from benchmarks.price import lines

    options = run.options
    devices = options.jobs or 1
    for line in lines.lines(run.subjects, run.cells, run.repeats, run.places, on=options.on, devices=devices):
        print(line)
    return 0


def _measure(run: Run) -> int:
    """Run the cells that can run, record why the others cannot, show the report; returns the exit code."""
    from backbench.progress import say
    from benchmarks import planned
    from benchmarks.records import store

    _get_ready(run)
    pairs = run.wanted()
    before = store.written(run.options.out)
    with planned.launching(run, pairs):
        codes = starting.launch(run, pairs)
    starting.record_ended(pairs, codes, run.repeats, before, run.options)
    if interrupted := any(code == INTERRUPTED for code in codes):
        say(f"stopped; finished results are in {run.options.out}: run the same command to continue")
    show(run.options.out, run.suite, curves_of(run.subjects), run.planned())
    if not pairs:
        say("every cell was skipped, for the reasons above")
    return INTERRUPTED if interrupted else int(any(codes) or not pairs)


def _submit(run: Run) -> int:
    """Submit the cells that have no number yet to SLURM, and show the report of those that have one."""
    from backbench.progress import say
    from benchmarks.launchers import slurm
    from benchmarks.records import store

    _get_ready(run)
    slurm.submit(run)
    if store.written(run.options.out):
        show(run.options.out, run.suite, curves_of(run.subjects), run.planned())
    if not run.wanted():
        say("every cell was skipped, for the reasons above")
    return int(not run.wanted())


def _get_ready(run: Run) -> None:
    """Say what will run, make the folder of results, and record what cannot run."""
    from backbench.progress import say

    for subject in run.subjects:
        for cell in run.cells:
            reason = run.skipped.get((subject, cell.name))
            say(f"{'skip' if reason else 'run '}  {subject.name:<28} {cell.name}" + (f": {reason}" if reason else ""))
    make_ready(run.subjects, run.cells, run.repeats, run.options)
    starting.record_skipped(run)


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


if __name__ == "__main__":
    run_cli(main, single=True)
