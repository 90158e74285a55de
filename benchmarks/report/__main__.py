"""`python -m benchmarks.report DIR` renders a folder of results anew; `--readme FILE` rewrites a README's tables."""

from __future__ import annotations

import argparse
from pathlib import Path

from backbench.errors import BackbenchError, run_cli
from backbench.printable import visible


def main(argv: list[str] | None = None) -> int:
    """Render and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("results", nargs="?", type=Path, help="a folder that run_all wrote")
    parser.add_argument(
        "--readme", type=Path, metavar="FILE", help="rewrite the tables between the markers of a README"
    )
    parser.add_argument("--curves", action="append", default=[], metavar="NAME=metrics.jsonl")
    args = parser.parse_args(argv)
    if not args.readme and not args.results:
        raise BackbenchError("nothing to render: give a folder that run_all wrote, or --readme FILE")
    if args.readme:
        from benchmarks.report import readme

        readme.write(args.readme)
    if args.results:
        from benchmarks import report

        if not args.results.is_dir():
            raise BackbenchError(f"{args.results}: no such folder of results")
        curves: dict[str, Path] = {}
        for name, path in ((name, Path(path)) for name, _, path in (pair.partition("=") for pair in args.curves)):
            if not path.is_file():
                raise BackbenchError(
                    f"--curves {name}={path}: expected NAME=FILE, the metrics.jsonl of a pretraining run"
                )
            if name in curves:
                raise BackbenchError(f"--curves {name}: given twice; give each run a name of its own")
            curves[name] = path
        print(report.text(args.results))
        print(f"report: {visible(str(report.write(args.results, curves=curves)))}")
    return 0


if __name__ == "__main__":
    run_cli(main, single=True)
