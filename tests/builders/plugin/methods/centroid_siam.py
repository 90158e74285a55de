"""SimSiam towards the views' centroid, as a user would write it: stop-gradient, no second network, own heads."""

from __future__ import annotations

from torch import Tensor, nn

from pretrain.losses import centroid_loss
from pretrain.method import Method, MethodConfig, StopGradient
from pretrain.networks import Heads, HeadSizes, mlp


class Config(MethodConfig):
    """The predictor is narrower than the projections."""

    narrowing: int = 4


def heads(sizes: HeadSizes, config: Config) -> Heads:
    """A projector that ends with a norm, and a bottleneck."""
    projector = nn.Sequential(
        mlp(sizes.features, sizes.hidden, sizes.outputs, sizes.norm), nn.BatchNorm1d(sizes.outputs)
    )
    narrow = max(1, sizes.outputs // config.narrowing)
    return Heads(
        projector, nn.Sequential(nn.Linear(sizes.outputs, narrow), nn.ReLU(), nn.Linear(narrow, sizes.outputs))
    )


def losses(p: Tensor, z: Tensor, config: Config, *, first: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    """Equation 3 of MSBReg, with the online network's own projections as targets."""
    attraction = centroid_loss(p, z)
    return attraction, {"centroid": attraction}


METHOD = Method(
    name="centroid_siam", losses=losses, Config=Config, heads=heads, target=StopGradient(), fixed_predictor_rate=True
)
