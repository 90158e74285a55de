"""Which diagnostic predicts the transfer numbers? Rank correlations over the backbones of a folder of results.

A diagnostic is a number without labels, of the tasks `diagnostics` and `uniformity`; a transfer number is the headline of any
other cell. A correlation is positive where backbones that the diagnostic calls better, as its paper claims the direction,
transfer better. Its interval is over draws of the backbones.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from backbench.errors import BackbenchError, run_cli

_MOST_RESAMPLES = 100_000


def parser(prog: str = "python -m benchmarks.evidence.predictors") -> argparse.ArgumentParser:
    """Return the parser of the command."""
    p = argparse.ArgumentParser(
        prog=prog,
        description=__doc__,
        epilog="At least 5 backbones need both numbers. DIR gets predictors.json, predictors.md and predictors.svg.",
    )
    p.add_argument(
        "results", nargs="+", type=Path, metavar="RESULTS", help="folders that `backbench run` wrote, or result files"
    )
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the table, the plot and the JSON")
    p.add_argument("--random", action="store_true", help="count random baselines too; they make most correlations high")
    p.add_argument(
        "--resamples", type=int, default=10_000, metavar="N", help="draws of the backbones, for the intervals (10000)"
    )
    return p


def main(argv: list[str] | None = None, *, prog: str = "python -m benchmarks.evidence.predictors") -> int:
    """Read, correlate, write, print."""
    args = parser(prog).parse_args(argv)
    if not 100 <= args.resamples <= _MOST_RESAMPLES:
        raise BackbenchError(f"--resamples {args.resamples}: give 100 to {_MOST_RESAMPLES} draws for a 95% interval")

    from backbench.files.atomic import atomic_write_text, make_folder
    from backbench.progress import say
    from benchmarks.evidence import predictors_page as page
    from benchmarks.evidence.correlated import correlate
    from benchmarks.records.store import read_paths

    records = [r for r in read_paths(args.results).values() if args.random or r.backbone.format != "random"]
    pairs, left_out = correlate(records, args.resamples)
    for words in left_out:
        say(f"left out: {words}")
    out = make_folder(args.out)
    atomic_write_text(
        out / "predictors.json", json.dumps(page.as_json(pairs, left_out, args.resamples), indent=1) + "\n"
    )
    atomic_write_text(out / "predictors.md", page.markdown(pairs))
    atomic_write_text(out / "predictors.svg", page.plot(pairs))
    print(page.markdown(pairs))
    print(f"table, plot and JSON: {out}")
    return 0


if __name__ == "__main__":
    run_cli(main, single=True)
