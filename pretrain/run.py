"""Pretrain a backbone: `python pretrain/run.py`, or under torchrun. No arguments: the demo recipe."""

from __future__ import annotations

if __name__ == "__main__":  # before the imports: a signal ends them without a traceback
    import signal

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import os
import sys
from pathlib import Path

if __name__ == "__main__":  # as a plain script: put the repository's root in place of this folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from backbench import plugins
from backbench.errors import BackbenchError, run_cli
from backbench.files import folder_option
from backbench.files.folders import configs_folder


def parser(prog: str = "pretrain/run.py") -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    recipes = ", ".join(sorted(path.stem for path in (configs_folder() / "pretrain").glob("*.yaml")))
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Pretrain with MSBReg. Writes model.pth, last.ckpt, metrics.jsonl, config.yaml, tensorboard/.",
        epilog=f"recipes: {recipes}",
    )
    plugins.add_option(parser)
    parser.add_argument("--config", metavar="RECIPE", help="a recipe's name or a YAML file (default: demo)")
    parser.add_argument("--out", metavar="DIR", type=folder_option, help="the run's folder (default: runs/<recipe>)")
    parser.add_argument("--resume", action="store_true", help="continue the run in the folder from its last checkpoint")
    parser.add_argument(
        "--nproc", type=int, default=1, metavar="N", help="processes (GPUs) on this machine, as with torchrun"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the resolved recipe and its steps; needs no data")
    parser.add_argument("override", nargs="*", metavar="key=value", help="fields of the recipe, e.g. optim.epochs=100")
    return parser


def main(argv: list[str] | None = None, *, prog: str = "pretrain/run.py") -> int:
    """Parse the command line, load the recipe and train. Return the exit code."""
    args = parser(prog).parse_intermixed_args(argv)
    if args.nproc < 1:
        raise BackbenchError("--nproc must be at least 1")

    from pretrain.config import load  # after --help has answered

    config = load(args.config, args.override)
    out = args.out or Path("runs") / Path(args.config or "demo").stem
    if args.dry_run:
        from pretrain.plan import forecast

        print(forecast(config, out))
        return 0
    if args.nproc > 1:
        from backbench import job

        words = ["--out", str(out), *(["--config", args.config] if args.config else [])]
        words += ["--resume"] if args.resume else []
        return job.run([sys.executable, str(Path(__file__).resolve()), *words, *args.override], args.nproc, os.environ)

    import torch

    from backbench import distributed
    from backbench.progress import say
    from pretrain import train

    try:
        with distributed.joined():
            path = train.train(config, out, resume=args.resume)
    except KeyboardInterrupt:
        if (out / "last.ckpt").exists():
            say(f"stopped; continue with the same command and --resume (checkpoint: {out / 'last.ckpt'})")
        raise
    except torch.OutOfMemoryError as error:
        hint = "accumulate gradients over views with run.views_per_pass=1, or lower optim.batch"
        raise BackbenchError(f"the GPU's memory is used up: {hint} ({str(error).splitlines()[0]})") from None
    say(f"done: {path}")
    return 0


if __name__ == "__main__":
    run_cli(main)
