"""The work of cells that train a classifier, counted from their configuration."""

from __future__ import annotations

from typing import Any

from benchmarks.price.work import PER_FLOP, Work, features_of, operations_at
from model_zoo.backbone import Backbone


def semi_supervised(config: Any, backbone: Backbone, counts: tuple[int, int, int]) -> tuple[Work, Work]:
    """Fine-tuning; its features are not kept."""
    train, test, _ = counts
    seen, one = config.epochs * train, operations_at(config, backbone)
    if config.rate_encoder:
        images = Work(crops=seen, training=3 * seen * one, memory=config.batch * one * PER_FLOP)
    else:
        images = Work(crops=seen, forward=seen * one, memory=config.batch * one * PER_FLOP / 8)
    found = features_of(config, backbone, test)
    return Work(), found + images + Work(disk=-found.disk)  # its features are not kept


def finetune(config: Any, backbone: Backbone, counts: tuple[int, int, int]) -> tuple[Work, Work]:
    """Every grid point on the images that are not held out, evaluated on those; then the chosen one on all."""
    train, test, _ = counts
    points = len(config.rates) * len(config.decays)
    trainings, aside = (points + 1, int(config.holdout * train)) if points > 1 else (1, 0)
    one, batch = operations_at(config, backbone), min(config.batch, train)
    seen, looked_at = trainings * config.steps * batch, points * aside + test
    return Work(), Work(
        views=looked_at, crops=seen, forward=looked_at * one, training=3 * seen * one, memory=batch * one * PER_FLOP
    )
