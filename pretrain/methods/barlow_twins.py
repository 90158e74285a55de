"""Barlow Twins: the cross-correlation of two views is drawn to the identity (Zbontar et al. 2021, section 2.1).

With more than two views the loss is the mean over pairs of views.
"""

from __future__ import annotations

import itertools
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from backbench.distributed import all_reduce_sum
from pretrain.losses import centred, off_diagonal
from pretrain.method import Method, MethodConfig, NoTarget
from pretrain.networks import Heads, HeadSizes, mlp

_EPSILON = 1e-5  # of the BatchNorm that standardises (facebookresearch/barlowtwins, main.py: self.bn)


class Config(MethodConfig):
    """Weights of the loss (facebookresearch/barlowtwins, main.py)."""

    lambda_off: Annotated[float, Field(ge=0)] = 0.0051  # weight of the correlations between different dimensions
    scale: Annotated[float, Field(gt=0)] = 1.0  # of the whole loss


def heads(sizes: HeadSizes, _config: Config) -> Heads:
    """Return a projector of three layers without biases (main.py: `projector`)."""
    return Heads(mlp(sizes.features, sizes.hidden, sizes.outputs, sizes.norm, layers=3, bias=False), None)


def losses(p: Tensor, z: Tensor, config: Config, *, first: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    """Return `scale x (sum_i (1 - C_ii)^2 + lambda sum_{i != j} C_ij^2)` as a mean over pairs of views, and its two sums.

    C is the correlation over the global batch; a dimension is standardised with its biased variance plus 1e-5.

    Raises:
        ValueError: fewer than 2 images in the global batch.
    """
    correlations = [correlation(a, b) for a, b in itertools.combinations(p, 2)]
    invariance = torch.stack([(c.diagonal() - 1).square().sum() for c in correlations]).mean()
    redundancy = torch.stack([off_diagonal(c).square().sum() for c in correlations]).mean()
    total = config.scale * (invariance + config.lambda_off * redundancy)
    return total, {"invariance": invariance, "redundancy": redundancy}


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Return the cross-correlation (D, D) of two views, each (B, D), over the global batch."""
    x, n = centred(torch.stack([a, b]))
    variance = all_reduce_sum(x.square().sum(dim=1, keepdim=True)) / n
    x = x / (variance + _EPSILON).sqrt()
    return all_reduce_sum(x[0].T @ x[1]) / n


METHOD = Method(name="barlow_twins", losses=losses, Config=Config, heads=heads, target=NoTarget(), couples_views=True)
