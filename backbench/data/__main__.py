"""`python -m backbench.data doctor|prepare|lists`."""

from __future__ import annotations

import argparse
from pathlib import Path

from backbench import plugins
from backbench.errors import run_cli


def main(argv: list[str] | None = None, *, prog: str = "python -m backbench.data") -> int:
    """Dispatch a sub-command; returns the exit code."""
    args = parser(prog).parse_args(argv)
    return {"doctor": _doctor, "prepare": _prepare, "lists": _lists}[args.command](args)


def parser(prog: str = "python -m backbench.data") -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(prog=prog, description="Check data sets, unpack them, fetch lists.")
    commands = p.add_subparsers(dest="command", required=True)
    doctor = commands.add_parser(
        "doctor", help="report for every data set whether it is present, complete and the published one"
    )
    doctor.add_argument("--data-root", type=Path, metavar="DIR", help="contains a folder for each data set")
    doctor.add_argument("--data", action="append", default=[], metavar="name=PATH", help="a data set in another place")
    doctor.add_argument("--full", action="store_true", help="check every image, not 200 of each split")
    doctor.add_argument("--json", action="store_true")
    prepare = commands.add_parser("prepare", help="unpack what you downloaded into the layout that the readers expect")
    prepare.add_argument("name", help="a published data set, such as voc, food101 or imagenet")
    prepare.add_argument(
        "--from", dest="archives", action="append", required=True, type=Path, metavar="ARCHIVE", help="repeatable"
    )
    prepare.add_argument("--data-root", type=Path, required=True, metavar="DIR", help="unpacked into DIR/<name>")
    prepare.add_argument(
        "--val-labels",
        type=Path,
        metavar="FILE",
        help="imagenet, without its devkit (--from ILSVRC2012_devkit_t12.tar.gz): 50,000 WordNet ids, one per validation "
        "image, in order",
    )
    prepare.add_argument("--dry-run", action="store_true", help="only print what would be done")
    commands.add_parser("lists", help="fetch and verify ImageNet's 1%% and 10%% lists")
    for command in commands.choices.values():
        plugins.add_option(command)
    return p


def _doctor(args: argparse.Namespace) -> int:
    from backbench.data import doctor
    from backbench.data.catalogue import DataPlaces, parse_places

    places = DataPlaces(args.data_root, parse_places(args.data))
    return doctor.run(places, full=args.full, as_json=args.json)


def _prepare(args: argparse.Namespace) -> int:
    from backbench.data import doctor, unpack
    from backbench.data.catalogue import DataPlaces

    unpack.prepare(
        args.name, args.archives, args.data_root / args.name, val_labels=args.val_labels, dry_run=args.dry_run
    )
    if args.dry_run:
        return 0
    return doctor.run(DataPlaces(None, {args.name: args.data_root / args.name}))


def _lists(_: argparse.Namespace) -> int:
    from backbench.data import subsets

    for name, official in subsets.OFFICIAL.items():
        print(f"{name:>4}  {subsets.fetch(name)}  {official.count} names, verified")
    return 0


if __name__ == "__main__":
    run_cli(main, single=True)
