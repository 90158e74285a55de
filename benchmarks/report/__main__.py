"""Render the report of a folder of results again, or rewrite the tables of a README (`--readme FILE`)."""

from __future__ import annotations

import argparse
from pathlib import Path

from backbench import plugins
from backbench.errors import BackbenchError, run_cli
from backbench.printable import visible
from benchmarks import report


def parser(prog: str = "python -m benchmarks.report") -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    plugins.add_option(parser)
    parser.add_argument("results", nargs="?", type=Path, help="a folder that run_all wrote")
    parser.add_argument(
        "--readme",
        action="append",
        nargs="?",
        default=[],
        type=Path,
        metavar="FILE",
        help="rewrite the tables between the markers of a page (without FILE: of README.md and docs/measured.md)",
    )
    parser.add_argument(
        "--to", metavar="BASELINE", help="the row that differences refer to (default: the first random baseline)"
    )
    parser.add_argument("--format", choices=["latex", "markdown", "csv", "json"], help="print the page's overview in this "
                        "format, and write nothing")  # fmt: skip
    parser.add_argument("--serve", nargs="?", type=int, const=8000, metavar="PORT", help="show the page to this machine's "
                        "browsers; it follows the records of a run (default port: 8000; 0: any free one)")  # fmt: skip
    parser.add_argument(
        "--curves", action="append", default=[], metavar="NAME=metrics.jsonl", help="also plot a pretraining's curves"
    )
    return parser


def main(argv: list[str] | None = None, *, prog: str = "python -m benchmarks.report") -> int:
    """Render and print; returns the exit code."""
    args = parser(prog).parse_args(argv)
    if not args.readme and not args.results:
        raise BackbenchError("nothing to render: give a folder that run_all wrote, or --readme FILE")
    if args.readme:
        from benchmarks.report import readme

        for page in readme.PAGES if None in args.readme else args.readme:
            readme.write(page)
    if args.results:
        if not args.results.is_dir():
            raise BackbenchError(f"{args.results}: no such folder of results")
        _show(args, _curves(args.curves))
    return 0


def _show(args: argparse.Namespace, curves: dict[str, Path]) -> None:
    """Serve the report, print it in a format, or write it and print its table."""
    if args.serve is not None:
        from benchmarks.report.serve import serve

        serve(args.results, port=args.serve, to=args.to, curves=curves)
    elif args.format:
        print(report.Report(args.results, to=args.to).export(args.format), end="")
    else:
        table, page = report.render_all(args.results, curves=curves, to=args.to)
        print(table)
        print(f"report: {visible(str(page))}")


def _curves(pairs: list[str]) -> dict[str, Path]:
    """Return the files by name. Raises BackbenchError: one does not exist, or a name is given twice."""
    curves: dict[str, Path] = {}
    for name, path in ((name, Path(path)) for name, _, path in (pair.partition("=") for pair in pairs)):
        if not path.is_file():
            raise BackbenchError(f"--curves {name}={path}: expected NAME=FILE, the metrics.jsonl of a pretraining run")
        if name in curves:
            raise BackbenchError(f"--curves {name}: given twice; give each run another name")
        curves[name] = path
    return curves


if __name__ == "__main__":
    run_cli(main, single=True)
