"""Optimisers of pretraining: LARS, SGD and Adam on the same parameter groups."""

from __future__ import annotations

from typing import Any

import torch
from timm.optim import Lars
from torch import nn

from backbench import schedules
from pretrain.config import OptimConfig
from pretrain.method import Method
from pretrain.networks import Online


def build_optimizer(online: Online, method: Method, config: OptimConfig) -> torch.optim.Optimizer:
    """Return the recipe's optimiser over all parameters of the online network. The loop sets its rate at every step."""
    groups = parameter_groups(online, method, config)
    if config.name == "adam":  # weight decay is added to the gradient (L2)
        return torch.optim.Adam(groups, lr=0.0, betas=(config.momentum, 0.999))
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=config.momentum)
    return Lars(
        groups,
        lr=0.0,
        momentum=config.momentum,
        trust_coeff=config.trust_coefficient,
        trust_clip=config.trust_clip,
        nesterov=False,
    )


def parameter_groups(online: Online, method: Method, config: OptimConfig) -> list[dict[str, Any]]:
    """Return groups of weights and of biases and norms. A predictor with a constant rate gets two more, marked `fixed_rate`.

    A group's `rate_scale` multiplies the learning rate.
    """

    def of(module: nn.Module) -> list[dict[str, Any]]:
        weights, biases = schedules.parameter_groups(module, config.weight_decay)
        if config.decay_biases:
            biases["weight_decay"] = config.weight_decay
        if config.bias_rate != 1:
            biases["rate_scale"] = config.bias_rate
        if config.name != "lars":
            weights.pop("always_adapt"), biases.pop("always_adapt")
        return [weights, biases]

    if online.predictor is None or not method.fixed_predictor_rate:
        return of(online)
    trunk = of(nn.ModuleList([online.backbone, online.projector]))
    return trunk + [settings | {"fixed_rate": True} for settings in of(online.predictor)]
