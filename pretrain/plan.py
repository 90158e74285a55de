"""A recipe's numbers in steps."""

from __future__ import annotations

from dataclasses import dataclass

from pretrain.config import PretrainConfig


@dataclass(frozen=True)
class Plan:
    """Optimiser steps, counted from 0."""

    per_epoch: int
    total: int
    warmup: int


def plan_steps(config: PretrainConfig, images: int) -> Plan:
    """Steps per epoch, in all, and of warm-up. The incomplete last batch of an epoch does not count."""
    per_epoch = max(1, images // config.optim.batch)
    total = max(1, round(config.optim.epochs * per_epoch))
    return Plan(per_epoch, total, min(round(config.optim.warmup_epochs * per_epoch), total - 1))
