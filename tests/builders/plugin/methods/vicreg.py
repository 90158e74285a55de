"""VICReg (Bardes et al. 2022) as a user would write it: no predictor, no target, a loss that compares the views."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from backbench.distributed import all_reduce_sum, world_size
from pretrain.method import Method, MethodConfig, NoTarget
from pretrain.networks import Heads, HeadSizes, mlp


class Config(MethodConfig):
    """The weights of section 4.2."""

    invariance: float = 25.0
    variance: float = 25.0
    covariance: float = 1.0


def heads(sizes: HeadSizes, config: Config) -> Heads:
    """A projector without a predictor."""
    return Heads(mlp(sizes.features, sizes.hidden, sizes.outputs, sizes.norm), None)


def losses(p: Tensor, z: Tensor, config: Config, *, first: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    """Equations 1 to 6 over all pairs of views; the statistics are those of the global batch."""
    pairs = list(itertools.combinations(p, 2))
    invariance = torch.stack([F.mse_loss(a, b) for a, b in pairs]).mean()
    samples = p.shape[1] * world_size()
    centred = p - all_reduce_sum(p.sum(dim=1, keepdim=True)) / samples
    covariance = all_reduce_sum(centred.transpose(1, 2) @ centred) / (samples - 1)  # (V, D, D)
    diagonal = covariance.diagonal(dim1=1, dim2=2)
    variance = F.relu(1 - (diagonal + 1e-4).sqrt()).mean()
    off = (covariance.pow(2).sum(dim=(1, 2)) - diagonal.pow(2).sum(dim=1)).mean() / p.shape[2]
    total = config.invariance * invariance + config.variance * variance + config.covariance * off
    return total, {"invariance": invariance, "variance": variance, "covariance": off}


METHOD = Method(name="vicreg", losses=losses, Config=Config, heads=heads, target=NoTarget(), couples_views=True)
