"""SimSiam: every view predicts the other views' projections, whose gradient is stopped (Chen and He 2021).

The last norm of each residual block of the authors' backbone starts at 0 (`zero_init_residual`); ours starts as torchvision's.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from pretrain.method import Method, MethodConfig, StopGradient
from pretrain.methods.byol import cross_view_loss
from pretrain.networks import Heads, HeadSizes, mlp


class Config(MethodConfig):
    """Two views (section 3)."""

    predictor_hidden: Annotated[int, Field(ge=0)] = 0  # 0: a quarter of model.outputs, 512 of 2048 (section 3)


def heads(sizes: HeadSizes, config: Config) -> Heads:
    """Projector of three layers with a norm after each, and a bottleneck (facebookresearch/simsiam, simsiam/builder.py)."""
    narrow = config.predictor_hidden or max(1, sizes.outputs // 4)
    shape = sizes.features, sizes.hidden, sizes.outputs, sizes.norm
    projector = mlp(*shape, layers=3, bias=False, last="plain")
    return Heads(projector, mlp(sizes.outputs, narrow, sizes.outputs, sizes.norm, bias=False))


def losses(p: Tensor, z: Tensor, config: Config, *, first: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the mean negative cosine similarity over pairs of different views (equation 2). See `pretrain.method.Losses`."""
    distance = cross_view_loss(p, z, first, len(config.queries()))  # squared, between points on the sphere: 2 - 2 cos
    negative_cosine = distance / 2 - 1
    return negative_cosine, {"negative_cosine": negative_cosine}


METHOD = Method(
    name="simsiam", losses=losses, Config=Config, heads=heads, target=StopGradient(), fixed_predictor_rate=True
)
