"""Tables and plot of a study, made from the JSON of its numbers alone."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.evidence import CELLS, UNTRAINED
from benchmarks.report import escape

TITLES = {"imagenet_knn": "20-NN", "imagenet_linear": "linear probe"}
BUDGETS = {"steps": "equal steps", "views": "equal views"}
MONITORED = ("std", "effective_rank")  # of the predictions, at the last logged step


def markdown(made: Mapping[str, Any]) -> str:
    """Return claims with their verdicts, and all arms with means and standard deviations over seeds."""
    setting = made["setting"]
    lines = [
        f"**{made['title']}** ({made['source']}). {setting['backbone']}, {setting['images']:,} images, views of "
        f"{setting['size']} px, batches of {setting['batch']}, {made['seeds']} pretrainings of each arm.",
        "",
    ]
    if made["claims"]:
        lines += _claims(made)
    head = ["arm", "budget", "views", "steps", *(TITLES[cell] for cell in CELLS), "spread", "rank"]
    lines += [_row(head), _row(["---"] * len(head))]
    return "\n".join([*lines, *(_arm(result) for result in made["results"])]) + "\n"


def _claims(made: Mapping[str, Any]) -> list[str]:
    head = ["claim", "refuted by", "budget", *(f"{TITLES[cell]}, points" for cell in CELLS)]
    lines = [_row(head), _row(["---"] * len(head))]
    for number, claim in enumerate(made["claims"]):
        for budget in made["budgets"]:
            own = [v for v in made["verdicts"] if v["claim"] == number and v["budget"] == budget]
            by_cell = {v["cell"]: v for v in own}
            words = [escape.markdown(claim["text"]), escape.markdown(claim["refuted_by"]), BUDGETS[budget]]
            lines.append(_row([*words, *(_verdict(by_cell[cell]) for cell in CELLS)]))
    return [*lines, ""]


def _verdict(verdict: Mapping[str, Any]) -> str:
    interval = verdict["interval"]
    return f"**{verdict['verdict']}**: {interval['difference']:+.1f} [{interval['low']:+.1f}, {interval['high']:+.1f}]"


def _arm(result: Mapping[str, Any]) -> str:
    untrained = result["arm"] == UNTRAINED
    monitored = {key: [m[key] for m in result["monitored"] if key in m] for key in MONITORED}
    words = [escape.markdown(result["arm"]), BUDGETS[result["budget"]]]
    words += ["", ""] if untrained else [str(result["views"]), str(result["steps"])]
    words += [_spread(result[cell], 1) for cell in CELLS]
    return _row([*words, _spread(monitored["std"], 2), _spread(monitored["effective_rank"], 1)])


def _spread(numbers: Sequence[float], digits: int) -> str:
    if not numbers:
        return ""
    spread = f" ± {statistics.stdev(numbers):.{digits}f}" if len(numbers) > 1 else ""
    return f"{statistics.mean(numbers):.{digits}f}{spread}"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def plot(made: Mapping[str, Any]) -> str:
    """Return an SVG: a dot per pretraining, a row per arm, a panel per cell."""
    from matplotlib import pyplot as plt

    from benchmarks.report.plots import svg

    results = made["results"]
    figure, panels = plt.subplots(1, len(CELLS), figsize=(9, 0.34 * len(results) + 1.1), sharey=True, squeeze=False)
    for panel, cell in zip(panels[0], CELLS, strict=True):
        for y, result in enumerate(results):
            colour = "#b0b0b0" if result["arm"] == UNTRAINED else "#1f6f8b"
            panel.plot(result[cell], [y] * len(result[cell]), "o", color=colour, alpha=0.8)
        panel.set_xlabel(f"{TITLES[cell]}, %")
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
    labels = [f"{result['arm']}, {BUDGETS[result['budget']]}" for result in results]
    panels[0, 0].set_yticks(range(len(results)), labels, parse_math=False)
    panels[0, 0].invert_yaxis()
    figure.tight_layout()
    return svg(figure, "a dot per pretraining, a row per arm, a panel per cell")
