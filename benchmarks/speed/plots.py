"""Draw how cost grows, from the speed records that have a `growth`: `python -m benchmarks.speed.plots`."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from backbench.errors import BackbenchError, run_cli

MEASURED = Path(__file__).resolve().parent.parent / "measured" / "speed"


def parser(prog: str = "python -m benchmarks.speed.plots") -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(prog=prog, description=__doc__)
    p.add_argument(
        "records", nargs="?", type=Path, default=MEASURED, help="a folder that `backbench speed --out` wrote"
    )
    p.add_argument("--out", type=Path, required=True, metavar="FILE", help="the picture: .svg or .png")
    return p


def main(argv: list[str] | None = None, *, prog: str = "python -m benchmarks.speed.plots") -> int:
    """Draw one panel for each record with a `growth`."""
    args = parser(prog).parse_args(argv)
    found = growing(args.records)
    if not found:
        raise BackbenchError(f"{args.records}: no record with a growth in it; `backbench speed --out {args.records}` "
                             "writes some")  # fmt: skip
    draw(found, args.out)
    print(f"{args.out}: {', '.join(record['name'] for record in found)}")
    return 0


def growing(folder: Path) -> list[dict[str, Any]]:
    """The records below a folder with a growth, by path."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.json"))]
    return [record for record in records if len(record.get("growth", {}).get("points", [])) > 1]


def exponent(points: Sequence[Sequence[float]]) -> float:
    """The exponent e of cost ~ size^e between the last two points: 1 is linear growth."""
    (x, y), (x2, y2) = sorted(map(tuple, points))[-2:]
    return math.log(y2 / y) / math.log(x2 / x)


def draw(records: Sequence[dict[str, Any]], out: Path) -> None:
    """Log-log curves, three panels a row, each with the device and the exponent of its last step."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    columns = min(3, len(records))
    lines = math.ceil(len(records) / columns)
    figure, all_axes = plt.subplots(lines, columns, figsize=(3.8 * columns, 3.0 * lines), squeeze=False)
    for axes in all_axes.flat[len(records) :]:
        axes.axis("off")
    for axes, record in zip(all_axes.flat, records, strict=False):
        growth = record["growth"]
        sizes, costs = zip(*growth["points"], strict=True)
        axes.loglog(sizes, costs, "o-", color="#1f6f8b")
        axes.set_xticks(sizes, [f"{size:,.0f}" for size in sizes])
        axes.set_yticks([min(costs), max(costs)], [f"{cost:.2g}" for cost in (min(costs), max(costs))])
        axes.minorticks_off()
        axes.set_title(f"{record['name']}: grows as size^{exponent(growth['points']):.2f}", fontsize=9)
        axes.set_xlabel(growth["axis"], fontsize=8)
        axes.set_ylabel(record["quantity"], fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
        device = record.get("machine", {}).get("device", "")
        axes.text(0.02, 0.96, device, transform=axes.transAxes, fontsize=6, va="top")
    figure.tight_layout()
    figure.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else None)
    plt.close(figure)


if __name__ == "__main__":
    run_cli(main, single=True)
