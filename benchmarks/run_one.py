"""Measure one (backbone, cell): all its seeds, one JSON each."""

from __future__ import annotations

if __name__ == "__main__":  # before the imports, so that Ctrl-C ends them without a traceback
    import signal

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

import sys
from pathlib import Path

if __name__ == "__main__":  # as a plain script: import from the repository's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from backbench.errors import BackbenchError, run_cli
from benchmarks.options import CellOptions
from benchmarks.subjects import MOST_SEEDS, backbones, refuse_idle


def main(argv: list[str] | None = None) -> int:
    """Run every seed without an identical result; returns exit code 1 when one failed."""
    options = CellOptions.parse(argv)
    if not 1 <= options.seeds <= MOST_SEEDS:
        raise BackbenchError(f"--seeds must be at least 1 and at most {MOST_SEEDS}")

    from backbench import distributed
    from backbench.data.catalogue import DataPlaces, parse_places
    from benchmarks.measuring import run_seed
    from benchmarks.plan import load_cell

    refuse_idle(options.choice, [options.ckpt, *([options.like] if options.like else [])])
    places = DataPlaces(options.data_root, parse_places(options.data))  # first: the user's own data sets define cells
    cell = load_cell(options.cell, options.override, options.profile)
    with distributed.joined():  # torchrun's job, if there is one
        failed = 0
        for seed, backbone in backbones(options.ckpt, options.like, options.seeds, cell, options.choice):
            failed += run_seed(backbone, cell, seed, places, options).status == "failed"
        return 1 if failed else 0


if __name__ == "__main__":
    run_cli(main)
