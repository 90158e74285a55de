"""Pretrain a backbone: `python pretrain/run.py`, or under torchrun. No arguments: the demo recipe."""

from __future__ import annotations

if __name__ == "__main__":  # before the imports: a signal ends them without a traceback
    import signal

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":  # as a plain script: put the repository's root in place of this folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from backbench import launcher_options, plugins, processes, trackers
from backbench.errors import BackbenchError, ConfigError, run_cli, sentence
from backbench.files import folder_option
from pretrain import recipes

if TYPE_CHECKING:
    from pretrain.config import PretrainConfig


def parser(prog: str = "pretrain/run.py") -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Pretrain with MSBReg or another method. Writes model.pth, last.ckpt, metrics.jsonl, config.yaml, "
        "tensorboard/.",
        epilog=f"recipes: {', '.join(recipes.names())}",
    )
    plugins.add_option(parser)
    parser.add_argument("--config", metavar="RECIPE", help="a recipe's name or a YAML file (default: demo)")
    parser.add_argument("--out", metavar="DIR", type=folder_option, help="the run's folder (default: runs/<recipe>)")
    parser.add_argument("--resume", action="store_true", help="continue the run in the folder from its last checkpoint")
    parser.add_argument(
        "--nproc", type=int, default=1, metavar="N", help="processes (GPUs) on this machine, as with torchrun"
    )
    parser.add_argument(
        "--jobs", type=int, default=0, metavar="N", help="runs of a grid at a time (default: one per GPU, or 1)"
    )
    launcher_options.add_options(parser)
    trackers.add_option(parser)
    parser.add_argument("--grid", type=Path, help=argparse.SUPPRESS)  # the folder of the grid that this run is of
    parser.add_argument("--dry-run", action="store_true", help="print the resolved recipe and its steps; needs no data")
    parser.add_argument("override", nargs="*", metavar="key=value", help="fields of the recipe, e.g. optim.epochs=100; "
                        "a comma list, method.views=2,4, is a grid: a run for each value")  # fmt: skip
    return parser


def main(argv: list[str] | None = None, *, prog: str = "pretrain/run.py") -> int:
    """Parse the command line, load the recipe and train. Return the exit code."""
    args = parser(prog).parse_intermixed_args(argv)
    if args.nproc < 1:
        raise BackbenchError("--nproc must be at least 1")
    trackers.chosen()  # refuses a library that is not installed before anything starts

    from pretrain.config import load  # after --help has answered

    if args.grid is None and (several := _several(args)) is not None:
        return several
    config = load(args.config, args.override)
    out = args.out or Path("runs") / recipes.run_name(args.config)
    if args.dry_run:
        from pretrain.plan import forecast

        print(forecast(config, out))
        return 0
    if args.nproc > 1:
        from backbench import job

        words = ["--out", str(out), *(["--config", args.config] if args.config else [])]
        words += ["--resume"] if args.resume else []
        return job.run([sys.executable, str(Path(__file__).resolve()), *words, *args.override], args.nproc, os.environ)

    return _train(config, out, args.resume, args.grid)


def _several(args: argparse.Namespace) -> int | None:
    """The exit code of a grid or of SLURM jobs; None where the words mean one run here."""
    from backbench import slurm
    from pretrain import grid

    points = grid.points(args.config, args.override)
    if args.slurm and args.launcher == "local":
        raise ConfigError("--slurm is for --launcher slurm; give that too")
    if not points and args.launcher == "local":
        return None
    if processes.is_under_torchrun():
        raise ConfigError("a grid and --launcher slurm start their own processes; run this without torchrun")
    from pretrain import several

    name = recipes.run_name(args.config).as_posix()
    start = several.Start(
        recipe=args.config,
        folder=args.out or Path("runs") / (f"{name}-grid" if points else name),
        resume=args.resume,
        nproc=args.nproc,
        jobs=max(0, args.jobs),
        slurm=slurm.parse(args.slurm) if args.launcher == "slurm" else None,
    )
    points = points or [grid.Point("", tuple(args.override), ())]
    if args.dry_run:
        print(several.plan(points, start))
        return 0
    return several.run(points, start)


def _train(config: PretrainConfig, out: Path, resume: bool, grid: Path | None) -> int:
    """Train one run in this process; as a point of a grid, with its own log, its name before each line, and the table."""
    import torch

    from backbench import distributed
    from backbench.files.atomic import make_folder
    from backbench.progress import logged, say
    from pretrain import table, train

    try:
        with contextlib.ExitStack() as stack:
            if grid is not None:
                make_folder(out)
                if distributed.is_main():
                    (out / table.FAILED).unlink(missing_ok=True)
                stack.enter_context(logged(f"{out.name}: ", out / "log.txt"))
            own = trackers.chosen()  # TensorBoard's files are written in any case
            told = None if own == "tensorboard" else own, out / "curves", str(out), config.model_dump(mode="json")
            with distributed.joined(), trackers.opened(*told):
                path = train.train(config, out, resume=resume)
            if grid is not None and distributed.is_main():
                table.write(grid)
            say(f"done: {path}")
    except KeyboardInterrupt:
        if (out / "last.ckpt").exists():
            say(f"stopped; continue with the same command and --resume (checkpoint: {out / 'last.ckpt'})")
        raise
    except torch.OutOfMemoryError as error:
        hint = "accumulate gradients over views with run.views_per_pass=1, or lower optim.batch"
        raise BackbenchError(f"the GPU's memory is used up: {hint} ({str(error).splitlines()[0]})") from None
    except BackbenchError as error:
        if grid is not None and distributed.is_main():
            table.note_failure(str(out), sentence(error))
        raise
    return 0


if __name__ == "__main__":
    run_cli(main)
