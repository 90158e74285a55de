"""MoCo v2: a query finds its image's key among a queue of earlier keys (He et al. 2020; Chen, Fan et al. 2020).

The loop's BatchNorm statistics are those of the global batch, which serves the purpose of MoCo's shuffled BatchNorm. MoCo's own
projector has no norm: `model.norm=none`.
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from backbench.distributed import gather_views
from pretrain.losses import mean_over_other_views
from pretrain.method import Ema, Method, MethodConfig
from pretrain.networks import Heads, HeadSizes, Memory, mlp


class Config(MethodConfig):
    """The values of MoCo v2 (facebookresearch/moco, README: --moco-t 0.2, --moco-k 65536)."""

    temperature: Annotated[float, Field(gt=0)] = 0.2
    queue: Annotated[int, Field(gt=0)] = 65536  # number of earlier keys
    symmetric: bool = False  # every view is a query and a key; otherwise view 0 is the query, the others are keys

    @model_validator(mode="after")
    def _fits(self) -> Config:
        if self.small_views and not self.symmetric:
            raise ValueError("method.small_views: small views are queries only; set method.symmetric=true with them")
        return self

    def queries(self) -> range:
        """The views that the online network sees."""
        return super().queries() if self.symmetric else range(1)

    def keys(self) -> range:
        """The views that the target sees."""
        return super().keys() if self.symmetric else range(1, self.views)


class Queue(Memory):
    """The last keys of all ranks, normalised (queue, D); random directions at first (moco/builder.py)."""

    keys: Tensor
    oldest: Tensor

    def __init__(self, length: int, outputs: int) -> None:
        super().__init__()
        self.register_buffer("keys", F.normalize(torch.randn(length, outputs), dim=1))
        self.register_buffer("oldest", torch.zeros((), dtype=torch.long))

    def end(self, p: Tensor, z: Tensor) -> None:
        """Replace the oldest keys by a step's.

        MoCo's code requires that the batch divides the queue; here the step's keys go on at the queue's start. Of a step with
        more keys than the queue has places, the last ones stay.
        """
        new = F.normalize(gather_views(z), dim=-1).flatten(0, 1)[-len(self.keys) :]
        places = (self.oldest + torch.arange(len(new), device=new.device)) % len(self.keys)
        self.keys[places] = new
        self.oldest.add_(len(new)).remainder_(len(self.keys))


def heads(sizes: HeadSizes, config: Config) -> Heads:
    """A projector of two layers (moco/builder.py, `mlp`)."""
    return Heads(mlp(sizes.features, sizes.hidden, sizes.outputs, sizes.norm), None)


def memory(sizes: HeadSizes, config: Config, heads: Heads) -> Queue:
    """The queue of keys."""
    return Queue(config.queue, sizes.outputs)


def info_nce(p: Tensor, z: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """InfoNCE (MoCo equation 1) of every query view with every key view: `-log(e^(q k+) / (e^(q k+) + sum e^(q k)))`.

    Args:
        p: (V, B, D) raw projections of the queries.
        z: (K, B, D) raw projections of the keys; detached.
        queue: (N, D) normalised keys of other images.
        temperature: divides the cosine similarities.

    Returns:
        (V, K), averaged over B.
    """
    queries, keys = F.normalize(p, dim=-1), F.normalize(z.detach(), dim=-1)
    positive_VKB = torch.einsum("vbd,kbd->vkb", queries, keys) / temperature
    negative_V1B = (queries @ queue.T / temperature).logsumexp(dim=-1)[:, None]
    return (torch.logaddexp(positive_VKB, negative_V1B) - positive_VKB).mean(dim=-1)


def losses(p: Tensor, z: Tensor, config: Config, *, first: int = 0, memory: Queue) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the mean over pairs of a query and a key of different views. See `pretrain.method.Losses`."""
    pairs_VK = info_nce(p, z, memory.keys, config.temperature)
    symmetric = config.symmetric
    contrast = mean_over_other_views(pairs_VK, first, len(config.queries())) if symmetric else pairs_VK.mean()
    return contrast, {"info_nce": contrast}


METHOD = Method(
    name="mocov2", losses=losses, Config=Config, heads=heads, memory=memory, target=Ema(base=0.999, final=0.999)
)
