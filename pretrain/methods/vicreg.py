"""VICReg: invariance, variance and covariance of the embeddings (Bardes et al. 2022, section 4.1).

With more than two views the loss is the mean over pairs of views.
"""

from __future__ import annotations

import itertools
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from pretrain.losses import covariance, off_diagonal
from pretrain.method import Method, MethodConfig, NoTarget
from pretrain.networks import Heads, HeadSizes, mlp

_EPSILON = 1e-4  # below the root of the variance (facebookresearch/vicreg, main_vicreg.py)


class Config(MethodConfig):
    """Weights of the three terms (section 4.2)."""

    invariance: Annotated[float, Field(ge=0)] = 25.0
    variance: Annotated[float, Field(ge=0)] = 25.0
    covariance: Annotated[float, Field(ge=0)] = 1.0


def heads(sizes: HeadSizes, _config: Config) -> Heads:
    """Return the expander, a projector of three layers (main_vicreg.py: `Projector`)."""
    return Heads(mlp(sizes.features, sizes.hidden, sizes.outputs, sizes.norm, layers=3), None)


def losses(p: Tensor, z: Tensor, config: Config, *, first: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the weighted sum of the three terms (eq. 6), and the terms; variances are those of the global batch.

    As in the authors' code, the variance term is the mean of a pair's two views and the covariance term their sum.

    Raises:
        ValueError: fewer than 2 images in the global batch.
    """
    invariance = torch.stack([F.mse_loss(a, b) for a, b in itertools.combinations(p, 2)]).mean()
    covariance_VDD = covariance(p)
    deviation = (covariance_VDD.diagonal(dim1=1, dim2=2) + _EPSILON).sqrt()
    variance = F.relu(1 - deviation).mean()
    off = 2 * off_diagonal(covariance_VDD).square().sum(dim=(1, 2)).mean() / p.shape[2]
    total = config.invariance * invariance + config.variance * variance + config.covariance * off
    return total, {"invariance": invariance, "variance": variance, "covariance": off}


METHOD = Method(name="vicreg", losses=losses, Config=Config, heads=heads, target=NoTarget(), couples_views=True)
