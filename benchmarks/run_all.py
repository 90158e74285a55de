"""Every transfer protocol for a checkpoint, beside baselines: plan, one process per cell, report."""

from __future__ import annotations

if __name__ == "__main__":  # before the imports: a signal ends them without a traceback
    import signal

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import fnmatch
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":  # as a plain script: the repository's root in place of this folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from backbench import job, processes
from backbench.errors import BackbenchError, ConfigError, run_cli
from backbench.printable import printable
from backbench.processes import INTERRUPTED
from benchmarks.subjects import MOST_SEEDS, Subject, by_seed, curves_of, find_subjects
from model_zoo.choice import add_options, of_arguments, spelled

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backbench.data.catalogue import DataPlaces
    from benchmarks.plan import Cell
    from benchmarks.report import Planned

_RUN_ONE = Path(__file__).resolve().parent / "run_one.py"


def parser(prog: str = "benchmarks/run_all.py") -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog=prog,
        description="Measure what a checkpoint transfers to. Without data it runs the embedded demo suite, and says so.",
        epilog="Results already there are reused only when weights, protocol, data and seed are identical.",
    )
    p.add_argument("--ckpt", action="append", default=[], metavar="[NAME=]FILE", help="or https://..., zoo:NAME, timm:NAME, "
                   "module:function; may be given several times; checkpoints of one NAME are one row, with mean and "
                   "spread")  # fmt: skip
    add_options(p, "every checkpoint file that --ckpt names")
    p.add_argument("--suite", help="demo or paper (default: paper when data are given, else demo)")
    p.add_argument("--tasks", metavar="a,b", help="only these cells")
    p.add_argument("--profile", choices=["full", "smoke"], default="full", help="smoke: a few steps of every cell")
    p.add_argument("--data-root", type=Path, metavar="DIR", help="folder that holds the data sets by name")
    p.add_argument("--data", action="append", default=[], metavar="name=PATH", help="one data set elsewhere")
    p.add_argument("--baselines", default="", metavar="a,b", help="random: the same architecture, anew for each seed; or "
                   "names of zoo entries")  # fmt: skip
    p.add_argument("--seeds", type=int, metavar="N", help="of the evaluation (default: the suite's)")
    p.add_argument("--out", type=Path, default=Path("results"), metavar="DIR")
    p.add_argument("--jobs", type=int, default=0, metavar="N", help="cells at a time (default: one per GPU, or 1)")
    p.add_argument(
        "--nproc", type=int, default=1, metavar="N", help="processes (GPUs) of this machine that share a cell"
    )
    p.add_argument("--dry-run", action="store_true", help="say what would run, and why not the rest")
    p.add_argument("override", nargs="*", metavar="cell.field=value")
    return p


def main(argv: list[str] | None = None, *, prog: str = "benchmarks/run_all.py") -> int:
    """Exit code 1 when a cell failed or every cell was skipped."""
    args = parser(prog).parse_intermixed_args(argv)
    if processes.is_under_torchrun():
        raise ConfigError(
            "start benchmarks/run_all.py by itself, not by torchrun: --nproc N shares a cell among N GPUs"
        )
    if not args.ckpt and not args.baselines:
        raise BackbenchError("nothing to measure: give --ckpt FILE (or --baselines random:resnet50)")
    if (args.seeds is not None and args.seeds < 1) or args.jobs < 0 or args.nproc < 1:
        raise BackbenchError("--seeds and --nproc must be at least 1, --jobs at least 0")
    if args.seeds is not None and args.seeds > MOST_SEEDS:
        raise BackbenchError(f"--seeds {args.seeds}: more than {MOST_SEEDS} are not meant, are they?")

    if args.nproc > job.MOST:
        raise ConfigError(
            f"--nproc {args.nproc}: more than {job.MOST} processes are not meant for one machine, are they?"
        )

    from backbench.data import catalogue
    from backbench.progress import say
    from benchmarks import plan
    from benchmarks.records import store

    suite_name = args.suite or ("paper" if args.data or args.data_root else "demo")
    suite = plan.load_suite(suite_name)
    wanted = list(suite.cells) if args.tasks is None else plan.named_cells(args.tasks)
    for name in wanted:
        plan.load_cell(name)  # refuses unknown names before anything is read
    own = [o for o in suite.overrides if fnmatch.filter(wanted, o.partition(".")[0])]
    overrides = plan.split_overrides([*own, *args.override], wanted)
    cells = [plan.load_cell(name, overrides[name], args.profile) for name in wanted]
    named = catalogue.parse_places(args.data)
    if args.suite is None and suite_name == "demo":
        say("no data given: running the demo suite on rendered scenes; use --data-root DIR for the real protocols")
    repeats = {cell.name: args.seeds or suite.seeds_of.get(cell.name, suite.seeds) for cell in cells}
    subjects = find_subjects(args.ckpt, args.baselines, max(repeats.values()), of_arguments(args))
    places = plan.places_of(suite, args.data_root, named)
    skipped = gaps(subjects, cells, places)
    refuse_place(args.out, cells, places)
    for subject in subjects:
        for cell in cells:
            reason = skipped.get((subject, cell.name))
            say(f"{'skip' if reason else 'run '}  {subject.name:<28} {cell.name}" + (f": {reason}" if reason else ""))
    if args.dry_run:
        return 0
    args.suite = suite_name
    make_ready(subjects, cells, repeats, args)
    runs = [(subject, cell) for subject in subjects for cell in cells if (subject, cell.name) not in skipped]
    before = store.written(args.out)
    codes = launch(runs, overrides, repeats, places, args)
    record_without_number(subjects, cells, skipped, runs, codes, repeats, before, args)
    if interrupted := any(code == INTERRUPTED for code in codes):
        say(f"stopped; finished results are kept in {args.out}: the same command goes on from there")
    planned = {
        (backbone.name, backbone.weights_sha256, cell.name, cell.config_sha256, cell.task.version, seed)
        for subject in subjects
        for cell in cells
        for seed, backbone in by_seed(subject.backbones, repeats[cell.name], cell)
    }
    show(args.out, suite_name, curves_of(subjects), planned)
    if not runs:
        say("every cell was skipped, for the reasons above")
    return INTERRUPTED if interrupted else int(any(codes) or not runs)


def show(out: Path, suite: str, curves: Mapping[str, Path], planned: Planned) -> None:
    """Write the report and print its table; when that fails, the numbers are there all the same, and where is said."""
    from backbench.progress import say
    from benchmarks import report

    try:
        path = report.write(out, suite=suite, curves=curves, only=planned)
        print(report.text(out, only=planned))
        print(f"report: {printable(path, 4000)}")
    except Exception:
        say(f"what was measured is in {out}: `python -m benchmarks.report {out}` makes the report anew")
        raise


def refuse_place(out: Path, cells: list[Cell], places: DataPlaces) -> None:
    """ConfigError when results cannot lie there: a file is in the way, or they would become a part of a data set."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out}: is a file; give a folder")
    for name in sorted({cell.config.data.name for cell in cells}):
        data = places.of(name)
        if data is not None and out.resolve().is_relative_to(data.resolve()):
            raise ConfigError(
                f"--out {out}: lies in the data of '{name}' ({data}), which results would change; give another"
            )


def make_ready(subjects: list[Subject], cells: list[Cell], repeats: dict[str, int], args: argparse.Namespace) -> None:
    """Make the folder, before anything is measured for it.

    Raises:
        BackbenchError: nothing can be written there, or what lies there must not be replaced.
    """
    from backbench.files.atomic import atomic_write_text
    from benchmarks import run_one
    from benchmarks.records import store

    probe = args.out / ".writable"
    atomic_write_text(probe, "")
    probe.unlink()
    for subject in subjects:
        for cell in cells:
            for seed, backbone in by_seed(subject.backbones, repeats[cell.name], cell):
                store.refuse_newer(args.out, run_one.blank(backbone, cell, seed, args, status="skipped"))


def gaps(subjects: list[Subject], cells: list[Cell], places: DataPlaces) -> dict[tuple[Subject, str], str]:
    """Why a cell cannot run for a subject: no data, no engine, or a protocol that does not take such a backbone."""
    from transfer import tasks

    absent = {cell.name: cell.task.missing(cell.config, places) for cell in cells}
    found = {
        (subject, cell.name): absent[cell.name] or tasks.unfit(cell.task, subject.backbones[0], cell.config)
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
    args: argparse.Namespace,
) -> None:
    """A record for every cell that has no data, or whose process was killed or broke down: the report reads only records.

    That is recorded for the first seed that has no number and whose failure the process did not record itself.

    Args:
        before: `store.written` when the processes were started.
    """
    from benchmarks import run_one
    from benchmarks.records import store

    for subject in subjects:
        for cell in cells:
            if reason := skipped.get((subject, cell.name)):
                blank = run_one.blank(subject.backbones[0], cell, 0, args, status="skipped", reason=reason)
                store.write(args.out, blank)
    new = {path for path, time in store.written(args.out).items() if before.get(path) != time}
    for (subject, cell), code in zip(runs, codes, strict=True):
        if code in (0, INTERRUPTED):
            continue
        reason = f"its process ended with code {code}; what it printed says why, and out of memory it prints nothing"
        blanks = [
            run_one.blank(backbone, cell, seed, args, status="failed", reason=reason)
            for seed, backbone in by_seed(subject.backbones, repeats[cell.name], cell)
        ]
        silent = [b for b in blanks if not new & store.of_seed(args.out, b)]
        lost = [b for b in silent if not store.is_measured(args.out, b)]
        if lost or silent == blanks:  # numbers may be those of other data
            store.write(args.out, [*lost, *blanks][0])


def launch(
    runs: list[tuple[Subject, Cell]],
    overrides: dict[str, list[str]],
    repeats: dict[str, int],
    places: DataPlaces,
    args: argparse.Namespace,
) -> list[int]:
    """One process (or job of processes) per (backbone, cell)."""
    import torch

    from benchmarks.launchers import local

    commands = []
    for subject, cell in runs:
        command = [sys.executable, *([job.__file__, str(args.nproc)] if args.nproc > 1 else [])]
        command += [str(_RUN_ONE), "--ckpt", subject.ckpt, "--cell", cell.name, "--out", str(args.out)]
        command += ["--suite", args.suite, "--profile", args.profile, "--seeds", str(repeats[cell.name])]
        command += ["--like", subject.like] if subject.like else []
        command += spelled(of_arguments(args))
        command += ["--data-root", str(places.root)] if places.root else []
        for name, path in places.named.items():
            command += ["--data", f"{name}={path}"]
        commands.append([*command, *overrides[cell.name]])
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return local.run(commands, jobs=args.jobs or max(1, gpus // args.nproc), gpus=gpus, gpus_each=args.nproc)


if __name__ == "__main__":
    run_cli(main, single=True)
