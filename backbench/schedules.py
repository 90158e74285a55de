"""Schedules as pure functions of the optimiser step, and parameter groups."""

from __future__ import annotations

import math
from typing import Any

from torch import nn


def lr_at(step: int, *, total: int, warmup: int, peak: float) -> float:
    """Learning rate of optimiser step `step` (0-based): 0 at step 0, linear to `peak` at `warmup`, cosine to 0.

    The cosine has no restarts (MSBReg section 7.1) and reaches 0 at step `total - 1`, the last one.
    """
    if step < warmup:
        return peak * step / warmup
    if total - 1 <= warmup:
        return peak
    progress = (step - warmup) / (total - 1 - warmup)
    return 0.5 * peak * (1 + math.cos(math.pi * min(progress, 1.0)))


def tau_at(step: int, *, total: int, base: float, final: float = 1.0) -> float:
    """Target decay rate of step `step`: `final - (final - base) (cos(pi t / T) + 1) / 2`; T, the last step, gives `final`.

    BYOL's final rate is 1. The rate is constant where `base` and `final` are equal (MoCo).
    """
    return final - (final - base) * (math.cos(math.pi * step / max(total - 1, 1)) + 1) / 2


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups for timm's LARS: weights (decayed, adapted) and biases and norms (neither).

    timm adapts a group only where `weight_decay != 0` or `always_adapt` (timm/optim/lars.py), so the second group sets
    both explicitly. MSBReg section 7.1 does not decay biases and BatchNorm parameters, following BYOL.
    """
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    return [
        {"params": [p for _, p in named if p.ndim > 1], "weight_decay": weight_decay, "always_adapt": True},
        {"params": [p for _, p in named if p.ndim <= 1], "weight_decay": 0.0, "always_adapt": False},
    ]
