"""BYOL: every view predicts every *other* view's target (MSBReg eq. 1), as a mean over the pairs.

It differs from MSBReg at K=2 without the extra losses, because MSBReg's centroid includes the view's own target. The Brownian
and singular value losses are added unless their weights are 0 (MSBReg Table 8, rows 2 to 4).
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from pretrain.losses import DispersiveConfig, dispersive_losses
from pretrain.method import Ema, Method


class Config(DispersiveConfig):
    """MSBReg's views and weights; `lambda_s=0` and `lambda_b=0` give BYOL itself."""

    views: Annotated[int, Field(ge=2)] = 4


def cross_view_loss(p: Tensor, z: Tensor, first: int = 0) -> Tensor:
    """Mean over pairs i != j of `|| p^_i - z^_j ||^2`; p (V, B, D) are the views from `first` on, z (K, B, D) all views."""
    p, z = F.normalize(p, dim=-1), F.normalize(z.detach(), dim=-1)
    distance_VK = 2 - 2 * torch.einsum("vbd,kbd->vk", p, z) / p.shape[1]
    other = torch.ones_like(distance_VK).scatter_(1, torch.arange(first, first + len(p), device=p.device)[:, None], 0.0)
    return (distance_VK * other).sum() / other.sum()


def losses(p: Tensor, z: Tensor, noise: Tensor, config: Config, *, first: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the sum of the cross-view loss and the weighted dispersive losses, and its parts. See `pretrain.method.Losses`."""
    attraction = cross_view_loss(p, z, first)
    dispersion, parts = dispersive_losses(p, noise, config)
    return attraction + dispersion, {"cross_view": attraction, **parts}


METHOD = Method(name="byol", losses=losses, Config=Config, target=Ema(0.99))
