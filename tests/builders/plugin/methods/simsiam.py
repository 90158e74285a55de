"""SimSiam (Chen and He 2021) as a user would write it: stop-gradient, no second network, a predictor of fixed rate."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.method import Method, MethodConfig, StopGradient
from pretrain.networks import Heads, HeadSizes


class Config(MethodConfig):
    """The predictor is a bottleneck of a quarter of the width (section 4.4)."""

    bottleneck: int = 4


def heads(sizes: HeadSizes, config: Config) -> Heads:
    """Three layers with a norm after each, and two layers (facebookresearch/simsiam, simsiam/builder.py)."""
    width, outputs, narrow = sizes.hidden, sizes.outputs, max(1, sizes.outputs // config.bottleneck)
    projector = nn.Sequential(
        *(nn.Linear(sizes.features, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(inplace=True)),
        *(nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(inplace=True)),
        *(nn.Linear(width, outputs, bias=False), nn.BatchNorm1d(outputs, affine=False)),
    )
    predictor = nn.Sequential(
        *(nn.Linear(outputs, narrow, bias=False), nn.BatchNorm1d(narrow), nn.ReLU(inplace=True)),
        nn.Linear(narrow, outputs),
    )
    return Heads(projector, predictor)


def losses(p: Tensor, z: Tensor, config: Config, *, first: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean over pairs of different views of the negative cosine similarity."""
    own = range(first, first + len(p))
    pairs = [(i, j) for i in own for j in range(len(z)) if i != j]
    similarity = sum(F.cosine_similarity(p[i - first], z[j].detach(), dim=-1).mean() for i, j in pairs) / len(pairs)
    return -similarity, {"cosine": -similarity}


METHOD = Method(
    name="simsiam", losses=losses, Config=Config, heads=heads, target=StopGradient(), fixed_predictor_rate=True
)
