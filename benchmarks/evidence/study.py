"""A study: its claims, what would refute them, and the pretrainings that decide. One YAML file each in `configs/evidence`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from backbench.config import Config, build, digest, read_mapping, without_indifferent
from backbench.errors import ConfigError, nearest
from backbench.files.folders import configs_folder
from benchmarks.evidence import UNTRAINED
from pretrain.config import PretrainConfig, load

FOLDER = configs_folder() / "evidence"

Budget = Literal["steps", "views"]


class Claim(Config):
    """A sentence of the paper as an inequality between two arms."""

    text: str  # the claim
    refuted_by: str  # what would refute it, written before the study was run
    better: str  # the arm that the claim puts first
    worse: str


class Study(Config):
    """Arms that are trained alike but for their fields, and the claims about them."""

    title: str
    source: str  # section or table
    recipe: str = "photos_r18_cpu"
    recipes: dict[str, str] = Field(default_factory=dict)  # the recipes of arms that do not take `recipe`
    fields: tuple[str, ...] = ()  # overrides of the recipe for all arms
    epochs: Annotated[float, Field(gt=0)]  # with `views` as the budget: of an arm with two views
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05  # share of the epochs
    seeds: Annotated[int, Field(ge=2)] = 3  # pretrainings of each arm
    budgets: Annotated[tuple[Budget, ...], Field(min_length=1)] = ("views",)
    arms: dict[str, tuple[str, ...]]  # name: overrides of the recipe
    claims: tuple[Claim, ...] = ()

    @model_validator(mode="after")
    def _fits(self) -> Study:
        if UNTRAINED in self.arms:
            raise ValueError(f"arms: '{UNTRAINED}' is the name of the untrained network")
        known = [*self.arms, UNTRAINED]
        for name in self.recipes:
            if name not in self.arms:
                raise ValueError(f"recipes: '{name}' is not an arm{nearest(name, self.arms)}")
        for claim in self.claims:
            for name in (claim.better, claim.worse):
                if name not in known:
                    raise ValueError(f"claims: '{name}' is not an arm{nearest(name, known)}")
        return self


def names() -> list[str]:
    """The studies that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read(name: str) -> Study:
    """Return a study by its name or file.

    Raises:
        ConfigError: there is no such study (the nearest is named), or a field is invalid.
    """
    path = Path(name) if Path(name).suffix == ".yaml" else FOLDER / f"{name}.yaml"
    if not path.is_file():
        raise ConfigError(f"no study '{name}'{nearest(name, names())}")
    return build(Study, read_mapping(path), where=path.name)


def recipe(study: Study, arm: str, budget: Budget, seed: int, root: Path) -> PretrainConfig:
    """Return the recipe of one pretraining.

    With equal `steps` every arm takes as many optimiser steps; with equal `views` an arm with twice the views takes half of
    them. The learning rate follows the recipe's rule.

    Raises:
        ConfigError: the arm's fields do not fit.
    """
    words = [*study.fields, *study.arms[arm], f"run.seed={seed}", f"data.root={root}"]
    epochs, base = study.epochs, study.recipes.get(arm, study.recipe)
    if budget == "views":
        epochs *= 2 / len(load(base, words).method.queries())
    return load(base, [*words, f"optim.epochs={epochs}", f"optim.warmup_epochs={epochs * study.warmup}"])


def run_name(config: PretrainConfig) -> str:
    """The name of a pretraining: its method and a digest of all fields that change a number. Studies share equal ones."""
    return f"{config.method.name}-{digest(without_indifferent(config))[:8]}"
