"""SimCLR: a view finds the other views of its image among all views of the global batch (Chen et al. 2020)."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from backbench.distributed import gather_views, rank
from pretrain.method import Method, MethodConfig, NoTarget
from pretrain.networks import Heads, HeadSizes, mlp


class Config(MethodConfig):
    """Two views; the temperature is the code's default (google-research/simclr, run.py)."""

    temperature: Annotated[float, Field(gt=0)] = 0.1
    layers: Annotated[int, Field(ge=1)] = 2  # of the projector; 3 in SimCLR v2 and the code's default


def heads(sizes: HeadSizes, config: Config) -> Heads:
    """Projector with a norm after every layer, the last one without a shift (model_util.py, `projection_head`)."""
    shape = sizes.features, sizes.hidden, sizes.outputs, sizes.norm
    return Heads(mlp(*shape, layers=config.layers, bias=False, last="scaled"), None)


def nt_xent(p: Tensor, temperature: float) -> Tensor:
    """NT-Xent (equation 1): cross-entropy of finding an image's other view among the other 2N - 1 views, over 2N views.

    With more than two views every other view of the image is a positive in turn, against all other views
    (Khosla et al. 2020, equation 2). The authors' code sums over the two views instead of averaging.

    Args:
        p: (V, B, D) raw projections.
        temperature: divides the cosine similarities.

    Returns:
        Scalar, averaged over this rank's views and images, which are compared with those of all ranks.
    """
    queries = F.normalize(p, dim=-1)
    keys = gather_views(queries)
    (views, images, _), first = queries.shape, rank() * p.shape[1]  # of this rank's images in the global batch
    similarity_VBVN = torch.einsum("vbd,wnd->vbwn", queries, keys) / temperature
    same_view = torch.eye(views, dtype=torch.bool, device=p.device)
    same_image = torch.arange(first, first + images, device=p.device)[:, None] == torch.arange(
        keys.shape[1], device=p.device
    )
    itself = same_view[:, None, :, None] & same_image[None, :, None, :]
    others = similarity_VBVN.masked_fill(itself, -torch.inf).flatten(2)
    log_share = others.log_softmax(dim=2).view_as(similarity_VBVN)
    positives = log_share.diagonal(offset=first, dim1=1, dim2=3)  # (V, V, B)
    return -positives[~same_view].mean()


def losses(p: Tensor, z: Tensor, config: Config, *, first: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the NT-Xent loss of all views. See `pretrain.method.Losses`."""
    contrast = nt_xent(p, config.temperature)
    return contrast, {"nt_xent": contrast}


METHOD = Method(name="simclr", losses=losses, Config=Config, heads=heads, target=NoTarget(), couples_views=True)
