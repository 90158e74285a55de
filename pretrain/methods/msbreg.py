"""MSBReg: multiview centroid, singular value and Brownian diffusive losses (eq. 2)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from pretrain.losses import DispersiveConfig, centroid_loss, dispersive_losses
from pretrain.method import Ema, Method


class Config(DispersiveConfig):
    """Four views (section 7.2); the weights are section 4.5's."""

    views: Annotated[int, Field(ge=2)] = 4


def losses(p: Tensor, z: Tensor, noise: Tensor, config: Config, *, first: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    """Return `L_c + lambda_s L_s + lambda_b L_b` of the views in `p`, and its parts. See `pretrain.method.Losses`."""
    attraction = centroid_loss(p, z)
    dispersion, parts = dispersive_losses(p, noise, config)
    return attraction + dispersion, {"centroid": attraction, **parts}


METHOD = Method(name="msbreg", losses=losses, Config=Config, target=Ema(0.99))
