"""Compare result files with each other and with the literature: differences, intervals, differing conditions."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if __name__ == "__main__":  # as a plain script: import from the repository's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from backbench import plugins
from backbench.errors import BackbenchError, nearest, run_cli
from backbench.printable import printable

_MOST_RESAMPLES = 1_000_000


def parser(prog: str = "benchmarks/compare.py") -> argparse.ArgumentParser:
    """Return the parser of the command."""
    p = argparse.ArgumentParser(
        prog=prog,
        description=__doc__,
        epilog="Markdown goes to stdout. Numbers from different data never share a table and have no difference.",
    )
    plugins.add_option(p)
    p.add_argument(
        "results", nargs="+", type=Path, metavar="RESULTS", help="result files, or folders with result files"
    )
    p.add_argument("--to", metavar="BASELINE", help="a measured row, or a published entry or method; NAME@TEXT picks the "
                   "published row with TEXT in its setting or source")  # fmt: skip
    p.add_argument("--tasks", metavar="a,b", help="only these cells")
    p.add_argument("--literature", action=argparse.BooleanOptionalAction, default=True, help="published rows (default)")
    p.add_argument("--source", default="", metavar="TEXT", help="only published rows with TEXT in their source: "
                   "'MSBReg Table 5'")  # fmt: skip
    p.add_argument("--resamples", type=int, default=10_000, metavar="N", help="resamples of the test items, for the intervals "
                   "(default: 10000; at most 2000 for average precisions)")  # fmt: skip
    p.add_argument("--csv", type=Path, metavar="FILE", help="also every row, unrounded")
    p.add_argument("--html", type=Path, metavar="FILE", help="also a page with plots and provenance")
    return p


def main(argv: list[str] | None = None, *, prog: str = "benchmarks/compare.py") -> int:
    """Read, compare, print."""
    args = parser(prog).parse_args(argv)
    if args.resamples < 100:
        raise BackbenchError("--resamples must be at least 100: fewer cannot give a 95% interval")
    if args.resamples > _MOST_RESAMPLES:
        raise BackbenchError(f"--resamples must be at most {_MOST_RESAMPLES}: more would change no digit that is shown")

    from backbench.files.atomic import atomic_write_text
    from benchmarks.records.store import items_path, read_paths
    from benchmarks.report import render, spreadsheet, standing_text
    from benchmarks.report.averages import averages
    from benchmarks.report.comparison import cells_of, compare, headlines_alike
    from benchmarks.report.intervals import Intervals, folder_of
    from benchmarks.report.standing import standings
    from benchmarks.report.table import gather

    found = read_paths(args.results)
    if args.tasks is not None:
        found = only(found, [name.strip() for name in args.tasks.split(",") if name.strip()])
    table = gather(found.values())
    if not table.rows:
        reasons = "; ".join(sorted({f"{a.cell} {a.status}: {a.reason}" for a in table.absent})[:3])
        raise BackbenchError(f"no result file has a number ({reasons or 'none could be read; see above'})")
    columns = render.comparable(table)
    items = {result.identity(): items_path(path) for path, result in found.items() if result.status == "ok"}
    options = {"with_literature": args.literature, "source": args.source}
    intervals = Intervals(items, args.resamples, folder_of(args.results))
    comparisons = compare(table, columns, intervals, to=args.to, **options)
    print(render.comparisons_markdown(comparisons, table, to=args.to))
    for whole in headlines_alike(columns):
        if len(cells_of(whole)) > 1:
            print(render.averages_markdown(averages(table, whole, **options), whole, table))
    found_standings = standings(table, columns, intervals)
    for standing in found_standings:
        print(standing_text.markdown(standing))
    if table.absent:
        print(render.absent_markdown(table))
    if args.csv:
        atomic_write_text(args.csv, spreadsheet.comparisons_csv(comparisons))
    if args.html:
        from benchmarks.report import html

        source = args.source if args.literature else None
        shown = {"comparisons": comparisons, "baseline": args.to, "source": source,
                 "standings": found_standings, "items": items}  # fmt: skip
        atomic_write_text(args.html, html.page(table, list(found.values()), suite="", **shown))
    return 0


def only(found: dict, cells: list[str]) -> dict:
    """Return the records of these cells; raises BackbenchError with the nearest name for an unknown cell."""
    known = {result.cell for result in found.values()}
    if not cells:
        raise BackbenchError(f"--tasks: no cell named; there are {printable(', '.join(sorted(known)), 2000)}")
    for name in cells:
        if name not in known:
            raise BackbenchError(f"no results of cell '{name}'{nearest(name, known)}")
    return {path: result for path, result in found.items() if result.cell in cells}


if __name__ == "__main__":
    run_cli(main, single=True)
