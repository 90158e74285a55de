"""BYOL: every view predicts every *other* view's target (MSBReg eq. 1), as a mean over the pairs.

Not MSBReg at K=2 without its extra losses: the centroid holds the view's own target too. The Brownian and singular
value losses may be added (MSBReg Table 8, rows 2 to 4).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.losses import dispersive_losses

if TYPE_CHECKING:
    from pretrain.config import MethodConfig


def cross_view_loss(p: Tensor, z: Tensor, first: int = 0) -> Tensor:
    """Mean over pairs i != j of `|| p^_i - z^_j ||^2`; p (V, B, D) are views `first` on of the K views in z (K, B, D)."""
    p, z = F.normalize(p, dim=-1), F.normalize(z.detach(), dim=-1)
    distance_VK = 2 - 2 * torch.einsum("vbd,kbd->vk", p, z) / p.shape[1]
    other = torch.ones_like(distance_VK).scatter_(1, torch.arange(first, first + len(p), device=p.device)[:, None], 0.0)
    return (distance_VK * other).sum() / other.sum()


def losses(
    p: Tensor, z: Tensor, noise: Tensor, config: MethodConfig, *, first: int = 0
) -> tuple[Tensor, dict[str, Tensor]]:
    """The cross-view loss and whatever of MSBReg's two dispersive losses has a weight. Shapes as in `msbreg.losses`."""
    attraction = cross_view_loss(p, z, first)
    dispersion, parts = dispersive_losses(p, noise, config)
    return attraction + dispersion, {"cross_view": attraction, **parts}
