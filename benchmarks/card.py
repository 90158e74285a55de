"""Write a model card, README.md with a model hub's front matter, from the records of one backbone."""

from __future__ import annotations

import argparse
from pathlib import Path

from backbench.errors import BackbenchError, run_cli
from benchmarks.submit import chosen_name


def parser(prog: str = "python -m benchmarks.card") -> argparse.ArgumentParser:
    """Return the parser of the command."""
    p = argparse.ArgumentParser(
        prog=prog,
        description=__doc__,
        epilog="Rehearsals and a demo's numbers are left out; numbers on other than the published data are marked.",
    )
    p.add_argument(
        "records", nargs="+", type=Path, metavar="RECORDS", help="result files, or folders with result files"
    )
    p.add_argument("--name", metavar="NAME", help="the backbone, if the records have several")
    p.add_argument(
        "--licence", metavar="WORD", help="of the weights, as the hub spells it: mit, apache-2.0, cc-by-nc-4.0"
    )
    p.add_argument("--link", metavar="URL", help="https://... of the paper or the code")
    p.add_argument("--out", type=Path, default=Path("README.md"), metavar="FILE", help="the card (default: README.md)")
    p.add_argument("--force", action="store_true", help="replace an existing file")
    return p


def main(argv: list[str] | None = None, *, prog: str = "python -m benchmarks.card") -> int:
    """Read and write; returns the exit code."""
    args = parser(prog).parse_args(argv)
    if args.out.exists() and not args.force:
        raise BackbenchError(f"{args.out} exists: give another --out, or --force to replace it")
    from backbench.files.atomic import atomic_write_text
    from benchmarks.board.card import card
    from benchmarks.board.entry import is_address
    from benchmarks.records.store import read_paths

    if args.link and not is_address(args.link):
        raise BackbenchError("--link: write a plain https:// address of at most 200 characters")
    found = read_paths(args.records)
    name = chosen_name(args.name, {record.backbone.name for record in found.values()})
    mine = [record for record in found.values() if record.backbone.name == name and record.status == "ok"]
    results = [r for r in mine if r.profile == "full" and r.data and not r.data.is_demo]
    if not results:
        raise BackbenchError(f"no number of '{name}' belongs on a card: {len(mine)} are rehearsals or a demo's")
    atomic_write_text(args.out, card(name, results, licence=args.licence, link=args.link))
    print(f"card of {name}, {len(results)} records: {args.out}")
    return 0


if __name__ == "__main__":
    run_cli(main, single=True)
