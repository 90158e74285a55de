"""Build a public board, a static site, from a folder of entries that `backbench submit` wrote."""

from __future__ import annotations

import argparse
from pathlib import Path

from backbench.errors import BackbenchError, run_cli
from backbench.files import folder_option

_MOST_ENTRIES = 10_000


def parser(prog: str = "python -m benchmarks.board") -> argparse.ArgumentParser:
    """Return the parser of the command."""
    p = argparse.ArgumentParser(
        prog=prog,
        description=__doc__,
        epilog="Every entry is checked. One that does not pass is left out, named with the reason, and the exit code is 1. "
        "The zoo's published numbers are on the board, flagged as published.",
    )
    p.add_argument("folder", type=folder_option, metavar="DIR", help="the folder of entries (*.json)")
    p.add_argument(
        "--out", type=folder_option, default=Path("site"), metavar="SITE", help="the site's folder (default: site)"
    )
    p.add_argument("--title", default="backbench board", help="the page's title (default: backbench board)")
    return p


def main(argv: list[str] | None = None, *, prog: str = "python -m benchmarks.board") -> int:
    """Check the entries and write the site; returns 1 if an entry was left out."""
    args = parser(prog).parse_args(argv)
    if not args.folder.is_dir():
        raise BackbenchError(
            f"{args.folder}: no such folder of entries; create it, or give the one with the *.json files"
        )
    from backbench.files.atomic import atomic_write_text
    from backbench.progress import say
    from benchmarks.board import site
    from benchmarks.board.collection import read_folder

    found = read_folder(args.folder, most=_MOST_ENTRIES)
    for words in found.refused:
        say(f"left out: {words}")
    tables = site.tables(found.entries)
    atomic_write_text(args.out / "board.csv", site.csv_text(tables))
    atomic_write_text(args.out / "index.html", site.page(tables, title=args.title, refused=found.refused))
    print(f"board of {len(found.entries)} entries: {args.out / 'index.html'}")
    return 1 if found.refused else 0


if __name__ == "__main__":
    run_cli(main, single=True)
