"""MSBReg: multiview centroid, singular value and Brownian diffusive losses (eq. 2)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from pretrain.losses import centroid_loss
from pretrain.method import Ema, Method, MethodConfig


class Config(MethodConfig):
    """Four views (section 7.2); the weights of the dispersive losses are section 4.5's."""

    views: Annotated[int, Field(ge=2)] = 4
    lambda_s: Annotated[float, Field(ge=0)] = 4e-3
    lambda_b: Annotated[float, Field(ge=0)] = 0.5


def losses(p: Tensor, z: Tensor, config: Config, *, first: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    """Return L_c of the views in `p`; the loop adds `lambda_s L_s + lambda_b L_b`. See `pretrain.method.Losses`."""
    attraction = centroid_loss(p, z)
    return attraction, {"centroid": attraction}


METHOD = Method(name="msbreg", losses=losses, Config=Config, target=Ema(0.99))
