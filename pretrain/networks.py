"""The online network (backbone, projector, perhaps a predictor) and the moving average that some methods keep of it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NormName = Literal["batch", "layer", "group", "group_ws"]
GROUPS = 16  # of the group norms, as in BYOL without batch statistics


class WeightStandardizedLinear(nn.Linear):
    """Linear layer whose rows are standardised before use (Qiao et al. 2020; BYOL without batch statistics)."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, in) -> (N, out)."""
        weight = self.weight - self.weight.mean(dim=1, keepdim=True)
        weight = weight / (self.weight.std(dim=1, keepdim=True) * self.weight.shape[1] ** 0.5 + 1e-5)
        return F.linear(x, weight, self.bias)


def mlp(inputs: int, hidden: int, outputs: int, norm: NormName) -> nn.Sequential:
    """Two-layer head: linear, norm, ReLU, linear (MSBReg section 7.2)."""
    linear = WeightStandardizedLinear if norm == "group_ws" else nn.Linear
    return nn.Sequential(linear(inputs, hidden), _norm(norm, hidden), nn.ReLU(inplace=True), linear(hidden, outputs))


def _norm(name: NormName, width: int) -> nn.Module:
    if name == "batch":
        return nn.BatchNorm1d(width)
    return nn.LayerNorm(width) if name == "layer" else nn.GroupNorm(GROUPS, width)


@dataclass(frozen=True)
class HeadSizes:
    """Sizes of the heads, from a recipe's `model` fields."""

    features: int  # numbers that the backbone gives per image
    hidden: int
    outputs: int  # D
    norm: NormName


class Heads(NamedTuple):
    """(N, features) -> (N, D), and (N, D) -> (N, D) or None."""

    projector: nn.Module
    predictor: nn.Module | None


def two_mlps(sizes: HeadSizes, _config: Any = None) -> Heads:
    """Projector and predictor of BYOL and MSBReg (section 7.2)."""
    projector = mlp(sizes.features, sizes.hidden, sizes.outputs, sizes.norm)
    return Heads(projector, mlp(sizes.outputs, sizes.hidden, sizes.outputs, sizes.norm))


class Outputs(NamedTuple):
    """Of V views of B images: raw predictions and, without gradient, raw projections, both (V, B, D)."""

    p: Tensor
    z: Tensor


class Online(nn.Module):
    """Backbone and heads; every view is its own forward pass, so BatchNorm statistics are per view."""

    def __init__(self, backbone: nn.Module, heads: Heads) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector, self.predictor = heads

    def forward(self, views_VBCHW: Tensor) -> Outputs:
        """(V, B, 3, H, W) -> outputs of all views in one call: DDP wants one forward per backward.

        Without a predictor the predictions are the projections.
        """
        z = [self.projector(self.backbone(view)) for view in views_VBCHW]
        p = z if self.predictor is None else [self.predictor(projection) for projection in z]
        return Outputs(torch.stack(p), torch.stack([projection.detach() for projection in z]))


class Target(nn.Module):
    """Moving average of the online backbone and projector; train mode, its own running statistics, no gradient."""

    def __init__(self, online: Online) -> None:
        super().__init__()
        # A copy of the online network: nothing is left for a bias correction to correct.
        self.backbone = copy.deepcopy(online.backbone)
        self.projector = copy.deepcopy(online.projector)
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, views_KBCHW: Tensor) -> Tensor:
        """(K, B, 3, H, W) -> raw projections (K, B, D)."""
        return torch.stack([self.projector(self.backbone(view)) for view in views_KBCHW])

    @torch.no_grad()
    def follow(self, online: Online, tau: float) -> None:
        """`xi <- tau xi + (1 - tau) theta` over the parameters (section 3.1); buffers are the target's own."""
        pairs = [(self.backbone, online.backbone), (self.projector, online.projector)]
        mine: list[Tensor] = [p for target, _ in pairs for p in target.parameters()]
        theirs = [p.detach() for _, source in pairs for p in source.parameters()]
        torch._foreach_lerp_(mine, theirs, 1 - tau)
