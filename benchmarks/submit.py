"""Check records and write them as an entry, one JSON file, for a public board."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from backbench.errors import BackbenchError, nearest, run_cli

if TYPE_CHECKING:
    from benchmarks.records.schema import Result

_RESAMPLES = 1  # of average precisions: only whether the scores give the number matters


def parser(prog: str = "python -m benchmarks.submit") -> argparse.ArgumentParser:
    """Return the parser of the command."""
    p = argparse.ArgumentParser(
        prog=prog,
        description=__doc__,
        epilog="A record must be a whole measurement on a published data set, by this program's version of the protocol. "
        "Paths and command lines are left out of the entry.",
    )
    p.add_argument(
        "records", nargs="+", type=Path, metavar="RECORDS", help="result files, or folders with result files"
    )
    p.add_argument("--by", required=True, metavar="NAME", help="who submits: a person, a lab")
    p.add_argument("--name", metavar="NAME", help="the backbone to submit, if the records have several")
    p.add_argument("--link", metavar="URL", help="https://... of the paper or the code")
    p.add_argument("--note", default="", metavar="TEXT", help="one sentence beside the numbers")
    p.add_argument(
        "--weights", type=Path, metavar="FILE", help="also check that the numbers are those of this checkpoint"
    )
    p.add_argument("--out", type=Path, metavar="FILE", help="the entry (default: NAME-WEIGHTS8.json)")
    return p


def main(argv: list[str] | None = None, *, prog: str = "python -m benchmarks.submit") -> int:
    """Check and write; returns the exit code."""
    args = parser(prog).parse_args(argv)
    from backbench.progress import say
    from benchmarks.board import checks, entry
    from benchmarks.records import store

    found = store.read_paths(args.records)
    name = chosen_name(args.name, {record.backbone.name for record in found.values()})
    records, left_out = [], []
    for path, record in found.items():
        if record.backbone.name != name:
            continue
        if why := checks.unfit(record):
            left_out.append(f"{path}: {why}")
            continue
        if why := checks.wrong(record) or _other_scores(record, path):
            raise BackbenchError(f"{path}: not submitted: {why}")
        records.append(record)
    if not records:
        raise BackbenchError(f"no record of '{name}' can be submitted: {left_out[0]}")
    for words in left_out:
        say(f"left out: {words}")
    if args.weights:
        _refuse_other_weights(args.weights, {record.backbone.weights_sha256 for record in records})
    made = entry.make(name, args.by, records, link=args.link, note=args.note)
    out = args.out or Path(f"{store.file_name(name)[:80]}-{records[0].backbone.weights_sha256[:8]}.json")
    entry.write(out, made)
    print(f"entry with {len(records)} records: {out}")
    return 0


def chosen_name(name: str | None, known: set[str]) -> str:
    """Return the backbone to take. Raises BackbenchError: there are several and none is chosen, or the name is unknown."""
    if name is None and len(known) == 1:
        return next(iter(known))
    if name in known:
        return str(name)
    if name is None:
        raise BackbenchError(f"the records are of {len(known)} backbones: choose one with --name{nearest('', known)}")
    raise BackbenchError(f"no records of '{name}'{nearest(name, known)}")


def _other_scores(record: Result, path: Path) -> str | None:
    """Return why the scores per test item beside a record are not those of its headline; None if none are stored."""
    from benchmarks.records.store import items_path
    from benchmarks.report.scores import NoScores, Scores

    if record.primary is None or not items_path(path).exists():
        return None
    try:
        Scores({record.identity(): items_path(path)}).answers(record, record.primary, _RESAMPLES)
    except NoScores as reason:
        return str(reason)
    return None


def _refuse_other_weights(file: Path, hashes: set[str]) -> None:
    from model_zoo import load

    found = load.load(file).weights_sha256
    if hashes != {found}:
        raise BackbenchError(
            f"{file}: not submitted: its weights have the hash {found[:8]}, the records are of "
            f"{' and '.join(sorted(sha[:8] for sha in hashes))}"
        )


if __name__ == "__main__":
    run_cli(main, single=True)
