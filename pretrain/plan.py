"""Count the steps of a recipe, and print for `--dry-run` what a run would do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from backbench.config import dump
from backbench.data import catalogue, demo
from backbench.errors import BackbenchError
from pretrain.config import OWN_LAYOUTS, DataConfig, PretrainConfig


@dataclass(frozen=True)
class Plan:
    """Numbers of optimiser steps."""

    per_epoch: int
    total: int
    warmup: int


def plan_steps(config: PretrainConfig, images: int) -> Plan:
    """Return the steps per epoch, in total and for warm-up. The incomplete last batch of an epoch does not count."""
    per_epoch = max(1, images // config.optim.batch)
    total = max(1, round(config.optim.epochs * per_epoch))
    return Plan(per_epoch, total, min(round(config.optim.warmup_epochs * per_epoch), total - 1))


def forecast(config: PretrainConfig, out: Path) -> str:
    """Return the resolved recipe with comments on its steps and on unchecked data. Writes nothing.

    Raises:
        BackbenchError: the data exist and training would refuse them.
    """
    absent = _absent(config.data)
    images = _published(config.data) if absent else _counted(config)
    rate = f"peak rate {config.peak_lr():g} -> {out}"
    if images is None:
        steps = f"# number of steps unknown: each epoch has (number of images) // {config.optim.batch}, {rate}"
    elif images < config.optim.batch:
        raise BackbenchError(f"only {images} images, fewer than one batch of {config.optim.batch}: lower optim.batch")
    else:
        plan = plan_steps(config, images)
        steps = f"# {plan.total} steps, {plan.per_epoch} an epoch, {rate}"
    if not absent:
        return dump(config) + steps
    if images is None:
        return f"{dump(config)}{steps}\n# data not checked: {absent}"
    return f"{dump(config)}{steps}\n# data not checked: {absent}; steps for the {images:,} images of the published data set"


def _absent(data: DataConfig) -> str | None:
    """Return why the data cannot be read now, or None."""
    if data.name == "demo":
        return None if demo.is_made() else "the demo's images are made when training starts"
    if data.root is None:
        owner = "your images" if data.name in OWN_LAYOUTS else data.name
        return f"data.root is not set; give data.root=DIR, the folder of {owner}"
    return None if Path(data.root).is_dir() else f"data.root: no folder {data.root}"


def _published(data: DataConfig) -> int | None:
    """Return the published (or rendered) number of images of the split; None if only the folder can answer."""
    if data.name == "demo":
        from backbench.data.demo import write

        return len(write.CLASSES) * write.PER_CLASS[data.split] if data.split in write.PER_CLASS else None
    if data.name in OWN_LAYOUTS:
        return None
    counts = catalogue.info(data.name).counts
    parts = data.split.split("+")
    return sum(counts[part] for part in parts) if all(part in counts for part in parts) else None


def _counted(config: PretrainConfig) -> int:
    """Return the number of images in the data. Raises the same errors as training."""
    from pretrain.data import make_loader, open_split

    split = open_split(config.data)
    make_loader(split, config, start=0, stop=plan_steps(config, len(split)).total, pin=False)
    return len(split)
