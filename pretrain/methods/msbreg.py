"""MSBReg: multiview centroid, singular value and Brownian diffusive losses (eq. 2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from pretrain.losses import centroid_loss, dispersive_losses

if TYPE_CHECKING:
    from pretrain.config import MethodConfig


def losses(
    p: Tensor, z: Tensor, noise: Tensor, config: MethodConfig, *, first: int = 0
) -> tuple[Tensor, dict[str, Tensor]]:
    """`L_c + lambda_s L_s + lambda_b L_b` of the views in `p`, and its parts.

    Args:
        p: (V, B, D) raw predictions of V of the K views, those from number `first` on.
        z: (K, B, D) raw target projections of all K views.
        noise: (B, D) standard normal.
    """
    attraction = centroid_loss(p, z)
    dispersion, parts = dispersive_losses(p, noise, config)
    return attraction + dispersion, {"centroid": attraction, **parts}
