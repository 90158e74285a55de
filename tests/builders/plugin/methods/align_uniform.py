"""Alignment and uniformity (Wang and Isola 2020) as a user would write it: no predictor, no target, a loss on the views."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.losses import uniformity_loss
from pretrain.method import Method, MethodConfig, NoTarget
from pretrain.networks import Heads, HeadSizes, mlp


class Config(MethodConfig):
    """The weights of the code of section 4.1."""

    alignment: float = 1.0
    uniformity: float = 1.0


def heads(sizes: HeadSizes, config: Config) -> Heads:
    """A projector without a predictor."""
    return Heads(mlp(sizes.features, sizes.hidden, sizes.outputs, sizes.norm), None)


def losses(p: Tensor, z: Tensor, config: Config, *, first: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean squared distance over pairs of views, and the uniformity of each view over the global batch."""
    pairs = itertools.combinations(F.normalize(p, dim=-1), 2)
    alignment = torch.stack([(a - b).square().sum(-1).mean() for a, b in pairs]).mean()
    uniformity = uniformity_loss(p)
    total = config.alignment * alignment + config.uniformity * uniformity
    return total, {"alignment": alignment, "uniformity": uniformity}


METHOD = Method(name="align_uniform", losses=losses, Config=Config, heads=heads, target=NoTarget(), couples_views=True)
