"""Online network (backbone, projector, optional predictor) and its moving average, which some methods use."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbench.errors import ConfigError

NormName = Literal["batch", "layer", "group", "group_ws", "none"]
GROUPS = 16  # number of groups, as in BYOL without batch statistics


class WeightStandardizedLinear(nn.Linear):
    """Linear layer with standardised rows (Qiao et al. 2020; BYOL without batch statistics)."""

    def forward(self, x: Tensor) -> Tensor:
        """Turn (N, in) into (N, out)."""
        weight = self.weight - self.weight.mean(dim=1, keepdim=True)
        weight = weight / (self.weight.std(dim=1, keepdim=True) * self.weight.shape[1] ** 0.5 + 1e-5)
        return F.linear(x, weight, self.bias)


def mlp(
    inputs: int,
    hidden: int,
    outputs: int,
    norm: NormName,
    *,
    layers: int = 2,
    bias: bool = True,
    last: Literal["plain", "scaled"] | None = None,
) -> nn.Sequential:
    """Head of `layers` linear layers with norm and ReLU between them (two: MSBReg section 7.2).

    Args:
        bias: whether the layers before a norm have one.
        last: also ends with a norm, after a layer without a bias: `plain` has neither scale nor shift, `scaled` a scale.
    """
    linear = WeightStandardizedLinear if norm == "group_ws" else nn.Linear
    widths = [inputs] + [hidden] * (layers - 1)
    body: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        body += [linear(before, after, bias=bias or norm == "none"), norm_layer(norm, after), nn.ReLU(inplace=True)]
    if last is None or norm == "none":
        return nn.Sequential(*body, linear(widths[-1], outputs))
    end = norm_layer(norm, outputs, affine=last == "scaled")
    if last == "scaled":
        end.bias.requires_grad_(False)  # stays 0
    return nn.Sequential(*body, linear(widths[-1], outputs, bias=False), end)


def norm_layer(name: NormName, width: int, *, affine: bool = True) -> nn.Module:
    """Normalisation of (N, width); without scale and shift where `affine` is false.

    Raises:
        ConfigError: the width does not divide into groups of two values or more (one value would always become 0).
    """
    if name == "none":
        return nn.Identity()
    if name == "batch":
        return nn.BatchNorm1d(width, affine=affine)
    if name == "layer":
        return nn.LayerNorm(width, elementwise_affine=affine)
    if width % GROUPS or width == GROUPS:
        raise ConfigError(
            f"a head's norm over {width} values needs 2 or more in each of the {GROUPS} groups of model.norm={name}; make "
            f"model.hidden and model.outputs larger multiples of {GROUPS}, or use model.norm=layer"
        )
    return nn.GroupNorm(GROUPS, width, affine=affine)


@dataclass(frozen=True)
class HeadSizes:
    """Sizes of the heads, from a recipe's `model` fields."""

    features: int  # the backbone's features per image
    hidden: int
    outputs: int  # D
    norm: NormName


class Heads(NamedTuple):
    """Projector (N, features) -> (N, D), and predictor (N, D) -> (N, D) or None."""

    projector: nn.Module
    predictor: nn.Module | None


def two_mlps(sizes: HeadSizes, _config: Any = None, *, predictor_hidden: int = 0) -> Heads:
    """Return projector and predictor of BYOL and MSBReg (section 7.2); the predictor's hidden layer may have another width."""
    projector = mlp(sizes.features, sizes.hidden, sizes.outputs, sizes.norm)
    return Heads(projector, mlp(sizes.outputs, predictor_hidden or sizes.hidden, sizes.outputs, sizes.norm))


class Memory(nn.Module):
    """What a method keeps from step to step. Its buffers (a queue) are part of a checkpoint and the same on all ranks."""

    def begin(self, step: int, epoch: float) -> None:
        """Prepare for a step, numbered from 0. `epoch` is the number of epochs done, with their fraction."""

    def frozen(self) -> Sequence[nn.Parameter]:
        """Return the parameters that the optimiser leaves unchanged in this step."""
        return ()

    def end(self, p: Tensor, z: Tensor) -> None:
        """Take in a step's predictions (Q, B, D) and targets (K, B, D), both raw, of this rank and without gradient."""


class Outputs(NamedTuple):
    """Raw predictions and raw projections of V views of B images, both (V, B, D)."""

    p: Tensor
    z: Tensor


class Online(nn.Module):
    """Backbone and heads. Every view is a separate forward pass, so BatchNorm statistics are per view."""

    def __init__(self, backbone: nn.Module, heads: Heads, memory: Memory | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector, self.predictor = heads
        self.memory = memory

    def begin(self, step: int, epoch: float) -> None:
        """Prepare for a step. See `Memory.begin`."""
        if self.memory is not None:
            self.memory.begin(step, epoch)

    def forward(self, views: Sequence[Tensor] | Tensor) -> Outputs:
        """Return the outputs of V views, each (B, 3, H, W), in one call, since DDP needs one forward per backward.

        Without a predictor the predictions are the projections.
        """
        z = [self.projector(self.backbone(view)) for view in views]
        p = z if self.predictor is None else [self.predictor(projection) for projection in z]
        return Outputs(torch.stack(p), torch.stack(z))


class Target(nn.Module):
    """Moving average of the online backbone and projector: train mode, separate running statistics, no gradient."""

    def __init__(self, online: Online) -> None:
        super().__init__()
        # It starts as a copy of the online network, so it needs no bias correction.
        self.backbone = copy.deepcopy(online.backbone)
        self.projector = copy.deepcopy(online.projector)
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, views: Sequence[Tensor] | Tensor) -> Tensor:
        """Return raw projections (K, B, D) of K views, each (B, 3, H, W)."""
        return torch.stack([self.projector(self.backbone(view)) for view in views])

    @torch.no_grad()
    def follow(self, online: Online, tau: float) -> None:
        """Update the parameters: `xi <- tau xi + (1 - tau) theta` (section 3.1). Buffers are not averaged."""
        pairs = [(self.backbone, online.backbone), (self.projector, online.projector)]
        mine: list[Tensor] = [p for target, _ in pairs for p in target.parameters()]
        theirs = [p.detach() for _, source in pairs for p in source.parameters()]
        torch._foreach_lerp_(mine, theirs, 1 - tau)
