"""BYOL: every view predicts every *other* view's target (MSBReg eq. 1), as a mean over the pairs.

It differs from MSBReg at K=2 without the extra losses, because MSBReg's centroid includes the view's own target. The Brownian
and singular value losses are added unless their weights are 0 (MSBReg Table 8, rows 2 to 4). `small_views` makes it
BYOL + multi-crop (section 4.4), `lambda_u` BYOL + L_uniform (Table 12).
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from pretrain.losses import mean_over_other_views, uniformity_loss
from pretrain.method import Ema, Method
from pretrain.methods import msbreg
from pretrain.networks import Heads, HeadSizes, two_mlps


class Config(msbreg.Config):
    """MSBReg's views and weights; `lambda_s=0` and `lambda_b=0` give BYOL itself."""

    lambda_u: Annotated[float, Field(ge=0)] = 0.0  # weight of the uniformity loss; MSBReg does not give Table 12's
    predictor_hidden: Annotated[int, Field(ge=0)] = 0  # width of the predictor's hidden layer; 0: model.hidden


def heads(sizes: HeadSizes, config: Config) -> Heads:
    """Projector and predictor of two layers each."""
    return two_mlps(sizes, predictor_hidden=config.predictor_hidden)


def cross_view_loss(p: Tensor, z: Tensor, first: int = 0, queries: int = 0) -> Tensor:
    """Mean over pairs i != j of `|| p^_i - z^_j ||^2`.

    Args:
        p: (V, B, D) raw predictions of the views from `first` on.
        z: (K, B, D) raw target projections of views 0 to K - 1.
        first: the number of the first view in `p`.
        queries: the number of views that the online network sees in a step, K or more; 0: K.
    """
    p, z = F.normalize(p, dim=-1), F.normalize(z.detach(), dim=-1)
    distance_VK = 2 - 2 * torch.einsum("vbd,kbd->vk", p, z) / p.shape[1]
    return mean_over_other_views(distance_VK, first, queries or len(z))


def losses(p: Tensor, z: Tensor, config: Config, *, first: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the cross-view loss and the weighted uniformity loss, and its parts. See `pretrain.method.Losses`."""
    attraction = cross_view_loss(p, z, first, len(config.queries()))
    if not config.lambda_u:
        return attraction, {"cross_view": attraction}
    uniformity = uniformity_loss(p)
    return attraction + config.lambda_u * uniformity, {"cross_view": attraction, "uniformity": uniformity}


METHOD = Method(name="byol", losses=losses, Config=Config, heads=heads, target=Ema(0.99))
