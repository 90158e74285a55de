"""Train the arms of a study and measure them: `runs/<run>/model.pth`, then records of `benchmarks/run_all.py`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from backbench import local
from backbench.config import dump
from backbench.errors import BackbenchError
from backbench.files.atomic import atomic_write_text, make_folder
from backbench.processes import INTERRUPTED
from backbench.progress import say
from benchmarks import run_all
from benchmarks.evidence import CELLS
from benchmarks.evidence import study as studies
from benchmarks.evidence.study import Budget, Study
from benchmarks.records import store
from pretrain.config import PretrainConfig

_PRETRAIN = Path(__file__).resolve().parents[2] / "pretrain" / "run.py"


@dataclass(frozen=True)
class Run:
    """One pretraining of one arm under one budget; equal recipes of several arms, budgets and studies are one folder."""

    budget: Budget
    arm: str
    seed: int
    config: PretrainConfig

    @property
    def name(self) -> str:
        """The run's folder, and its backbone's name in records."""
        return studies.run_name(self.config)


def of(study: Study, root: Path) -> list[Run]:
    """Return all pretrainings of a study on the images in `root`, the first seed of every arm first.

    Raises:
        ConfigError: an arm's fields do not fit the recipe.
    """
    return [
        Run(budget, arm, seed, studies.recipe(study, arm, budget, seed, root))
        for seed in range(study.seeds)
        for budget in study.budgets
        for arm in study.arms
    ]


def folder(out: Path, run: Run) -> Path:
    """The folder of a pretraining."""
    return out / "runs" / run.name


def is_done(out: Path, run: Run) -> bool:
    """Whether its model is there."""
    return (folder(out, run) / "model.pth").is_file()


def measured(out: Path) -> set[str]:
    """The runs with a record of every cell. Their models are not needed: a study may continue on another machine."""
    cells: dict[str, set[str]] = {}
    for record in store.read_all(out / "results"):
        if record.status == "ok":
            cells.setdefault(record.backbone.name, set()).add(record.cell)
    return {name for name, found in cells.items() if found.issuperset(CELLS)}


def to_do(runs: Sequence[Run], out: Path) -> list[Run]:
    """The pretrainings without a model and without records, each once."""
    known = measured(out)
    return list({run.name: run for run in runs if run.name not in known and not is_done(out, run)}.values())


def train(runs: Sequence[Run], out: Path, *, jobs: int) -> int:
    """Train what is not done, `jobs` at a time, and continue what was stopped; return the exit code."""
    missing = to_do(runs, out)
    say(f"{len({run.name for run in runs})} pretrainings, {len(missing)} to do")
    commands = []
    for run in missing:
        recipe = make_folder(folder(out, run)) / "recipe.yaml"
        atomic_write_text(recipe, dump(run.config))
        words = ["--config", str(recipe), "--out", str(folder(out, run)), "--resume"]
        commands.append([sys.executable, str(_PRETRAIN), *words])
    codes = local.run(commands, jobs=jobs, gpus=_gpus())
    if INTERRUPTED in codes:
        return INTERRUPTED
    if failed := [run.name for run, code in zip(missing, codes, strict=True) if code]:
        raise BackbenchError(
            f"{len(failed)} of {len(missing)} pretrainings failed, the first in {out / 'runs' / failed[0]}"
        )
    return 0


def measure(runs: Sequence[Run], root: Path, out: Path, *, jobs: int) -> int:
    """Measure every model, and as many untrained networks as there are seeds, `jobs` at a time; return the exit code."""
    models = {run.name: folder(out, run) / "model.pth" for run in runs if is_done(out, run)}
    if not models:
        return 0
    seeds = len({run.seed for run in runs})
    words = ["--out", str(out / "results"), "--data", f"imagenet={root}", "--tasks", ",".join(CELLS)]
    words += ["--baselines", "random", "--seeds", str(seeds), "--jobs", str(jobs)]
    for name, model in models.items():
        words += ["--ckpt", f"{name}={model}"]
    return run_all.main([*words, "*.data.expect=any", "imagenet_knn.k=[20]"])


def _gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
