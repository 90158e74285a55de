"""The evidence of a study: one JSON of all its numbers, and its tables and plot, which are made from the JSON alone."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from backbench import jsonl
from benchmarks.evidence import runs as trainings
from benchmarks.evidence.runs import CELLS, Run
from benchmarks.evidence.study import UNTRAINED, Study
from benchmarks.evidence.verdicts import Measured, arms, decide
from benchmarks.report import escape
from benchmarks.report.plots import svg
from pretrain.plan import plan_steps

TITLES = {"imagenet_knn": "20-NN", "imagenet_linear": "linear probe"}
BUDGETS = {"steps": "equal steps", "views": "equal views"}
_MONITORED = ("std", "effective_rank")  # of the predictions, at the last logged step


def collect(name: str, study: Study, runs: Sequence[Run], out: Path, images: int) -> dict[str, Any]:
    """Return the numbers of a finished study. `images` is the number of training images.

    Raises:
        BackbenchError: a run is not measured.
    """
    measured = Measured(out / "results")
    verdicts = [asdict(verdict) | {"verdict": verdict.word} for verdict in decide(study, runs, measured)]
    found = []
    for budget in study.budgets:
        for arm, names in arms(study, runs, budget).items():
            own = [run for run in runs if run.budget == budget and run.arm == arm]
            found.append(
                {
                    "budget": budget,
                    "arm": arm,
                    "steps": plan_steps(own[0].config, images).total if own else 0,
                    "views": len(own[0].config.method.queries()) if own else 0,
                    "runs": names,
                    "monitored": [_last(trainings.folder(out, run)) for run in own],
                    **{cell: [float(measured.right(run, cell).mean()) for run in names] for cell in CELLS},
                }
            )
    config = runs[0].config
    setting = {"images": images, "batch": config.optim.batch, "size": config.data.size}
    return {
        "study": name,
        **study.model_dump(mode="json"),
        "setting": setting | {"backbone": config.model.backbone},
        "results": found,
        "verdicts": verdicts,
    }


def _last(folder: Path) -> dict[str, float]:
    """The last monitored values of a pretraining."""
    found: dict[str, float] = {}
    for _, line in jsonl.records(folder / "metrics.jsonl"):
        found |= {key: float(line[key]) for key in _MONITORED if line and key in line}
    return found


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
    monitored = {key: [m[key] for m in result["monitored"] if key in m] for key in _MONITORED}
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
