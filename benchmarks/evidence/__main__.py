"""Measure a claim of the MSBReg paper again: train every arm with several seeds, measure them, and decide."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from backbench.errors import BackbenchError, run_cli
from backbench.files import folder_option
from backbench.files.folders import configs_folder

if TYPE_CHECKING:
    from benchmarks.evidence.runs import Run
    from benchmarks.evidence.study import Study

_DATA = "give --data DIR, an image folder with the folders train and val"


def parser(prog: str = "backbench evidence") -> argparse.ArgumentParser:
    """Return the parser of the command."""
    names = ", ".join(sorted(path.stem for path in (configs_folder() / "evidence").glob("*.yaml")))
    p = argparse.ArgumentParser(prog=prog, description=__doc__, epilog=f"studies: {names}; or `predictors RESULTS`")
    p.add_argument("study", help="a study's name or a YAML file")
    p.add_argument("--data", type=Path, metavar="DIR", help="an image folder with train and val, a folder per class")
    p.add_argument(
        "--out",
        type=folder_option,
        default=Path("evidence"),
        metavar="DIR",
        help="folder of runs, results and tables; studies share it (default: evidence)",
    )
    p.add_argument("--jobs", type=int, default=1, metavar="N", help="processes at a time (default: 1)")
    p.add_argument("--dry-run", action="store_true", help="list the pretrainings with their steps; trains nothing")
    return p


def main(argv: list[str] | None = None, *, prog: str = "backbench evidence") -> int:
    """Train, measure and decide; the same command continues a stopped study. Return the exit code."""
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["predictors"]:
        from benchmarks.evidence import predictors

        return predictors.main(words[1:], prog=f"{prog} predictors")
    args = parser(prog).parse_args(words)
    if args.jobs < 1:
        raise BackbenchError(f"--jobs {args.jobs}: give 1 or more")
    if args.data is None:
        raise BackbenchError(_DATA)
    if absent := [part for part in ("train", "val") if not (args.data / part).is_dir()]:
        raise BackbenchError(f"{args.data} has no folder {' and no folder '.join(absent)}: {_DATA}")
    from benchmarks.evidence import runs, study

    chosen = study.read(args.study)
    trainings = runs.of(chosen, args.data.resolve())
    images = _images(trainings[0])
    if args.dry_run:
        print(_plan(chosen, trainings, args.out, images))
        return 0
    code = runs.train(trainings, args.out, jobs=args.jobs) or runs.measure(
        trainings, args.data, args.out, jobs=args.jobs
    )
    if code:
        return code
    _write(Path(args.study).stem, chosen, trainings, args.out, images)
    return 0


def _images(run: Run) -> int:
    from pretrain.data import open_split

    return len(open_split(run.config.data))


def _plan(chosen: Study, trainings: list[Run], out: Path, images: int) -> str:
    from benchmarks.evidence import runs
    from pretrain.plan import plan_steps

    lines = [f"{chosen.title} ({chosen.source})"]
    lines += [f"claim: {claim.text}; refuted by: {claim.refuted_by}" for claim in chosen.claims]
    missing = {run.name for run in runs.to_do(trainings, out)}
    for run in trainings:
        steps, views = plan_steps(run.config, images).total, len(run.config.method.queries())
        state = "done" if run.name not in missing else f"{steps} steps of {run.config.optim.batch} x {views} views"
        lines.append(f"{run.arm:<24} equal {run.budget:<6} seed {run.seed}  {run.name}  {state}")
    return "\n".join([*lines, f"{len({run.name for run in trainings})} pretrainings, {len(missing)} to do"])


def _write(name: str, chosen: Study, trainings: list[Run], out: Path, images: int) -> None:
    from backbench.files.atomic import atomic_write_text
    from backbench.progress import say
    from benchmarks.evidence import collected, tables

    made = collected.collect(name, chosen, trainings, out, images)
    atomic_write_text(out / f"{name}.json", json.dumps(made, indent=1) + "\n")
    atomic_write_text(out / f"{name}.md", tables.markdown(made))
    atomic_write_text(out / f"{name}.svg", tables.plot(made))
    print(tables.markdown(made), end="")
    say(f"numbers, table and plot: {out / name}.json, .md, .svg")


if __name__ == "__main__":
    run_cli(main)
