"""SwAV: every view predicts the codes of every other view (Caron et al. 2020).

A code is an assignment to prototypes that all share the batch equally. Only large views have codes; small views
(`method.small_views`) predict them. The predictor is the prototypes, the predictions are their scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from backbench.distributed import gather_rows, gather_views, rank, world_size
from pretrain.losses import mean_over_other_views
from pretrain.method import Method, MethodConfig, StopGradient
from pretrain.networks import Heads, HeadSizes, Memory, mlp


class Config(MethodConfig):
    """Defaults of facebookresearch/swav, main_swav.py; it counts the frozen prototypes' steps, one epoch of ImageNet."""

    prototypes: Annotated[int, Field(ge=2)] = 3000
    temperature: Annotated[float, Field(gt=0)] = 0.1
    epsilon: Annotated[float, Field(gt=0)] = 0.05  # temperature of the codes
    iterations: Annotated[int, Field(gt=0)] = 3  # of Sinkhorn's algorithm
    queue: Annotated[int, Field(ge=0)] = 0  # earlier images that share the prototypes with the batch
    queue_from: Annotated[float, Field(ge=0)] = 15.0  # the epoch from which on the queue is filled, and used once full
    freeze_epochs: Annotated[float, Field(ge=0)] = 1.0  # in which the prototypes do not learn


class Prototypes(nn.Linear):
    """Scores (N, P) of projections (N, D): the cosine similarity to P prototypes, while these have length 1."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores of raw projections, in at least float32: under bf16 they would have two digits."""
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(F.normalize(x.to(self.weight.dtype), dim=-1))


class Queue(Memory):
    """The normalised projections of each large view in the last steps, newest first; and the prototypes' upkeep."""

    queue: Tensor

    def __init__(self, config: Config, prototypes: Prototypes) -> None:
        super().__init__()
        self.config = config
        self._prototypes = (
            prototypes,
        )  # within a tuple: they are parameters of the online network, not of this module
        self._epoch, self._full = 0.0, False
        self.register_buffer("queue", torch.zeros(len(config.keys()), config.queue, prototypes.in_features))

    @torch.no_grad()
    def begin(self, step: int, epoch: float) -> None:
        """Give the prototypes length 1 again."""
        self._epoch = epoch
        (prototypes,) = self._prototypes
        prototypes.weight.copy_(F.normalize(prototypes.weight, dim=1))

    def frozen(self) -> Sequence[nn.Parameter]:
        """Return the prototypes in the first epochs (main_swav.py: --freeze_prototypes_niters)."""
        return list(self._prototypes[0].parameters()) if self._epoch < self.config.freeze_epochs else []

    @torch.no_grad()
    def end(self, p: Tensor, z: Tensor) -> None:
        """Take in the projections of the large views."""
        if self._fills():
            newest = F.normalize(gather_views(z), dim=-1)
            self.queue.copy_(torch.cat((newest, self.queue), dim=1)[:, : self.config.queue])

    def scores(self, view: int, z: Tensor) -> Tensor:
        """Return the scores (B + n, P) of a view's projections (B, D), and then of this rank's part of a full queue."""
        (prototypes,) = self._prototypes
        if self._is_full():
            z = torch.cat((z, self.queue[view, rank() :: world_size()]))
        return prototypes(z)

    def _fills(self) -> bool:
        return bool(self.config.queue) and self._epoch >= self.config.queue_from

    def _is_full(self) -> bool:
        if self._fills() and not self._full:  # waits for a GPU in the few steps that fill the queue
            self._full = bool(self.queue[:, -1].any())
        return self._full


def heads(sizes: HeadSizes, config: Config) -> Heads:
    """Return a projector of two layers and the prototypes (facebookresearch/swav, src/resnet50.py)."""
    projector = mlp(sizes.features, sizes.hidden, sizes.outputs, sizes.norm)
    return Heads(projector, Prototypes(sizes.outputs, config.prototypes, bias=False))


def memory(_sizes: HeadSizes, config: Config, heads: Heads) -> Queue:
    """Return the queue, which also keeps the prototypes normalised and frozen."""
    assert isinstance(heads.predictor, Prototypes)
    return Queue(config, heads.predictor)


def losses(p: Tensor, z: Tensor, config: Config, *, first: int = 0, memory: Queue) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the cross-entropy of the predicted with the computed codes, as a mean over pairs of different views (eq. 1).

    Raises:
        ValueError: fewer than 2 images in the global batch.
    """
    images = p.shape[1]
    with torch.no_grad():
        scores = (memory.scores(view, projections) for view, projections in enumerate(z))
        codes_KBP = torch.stack([sinkhorn(s, config.epsilon, config.iterations)[:images] for s in scores])
    entropy_VK = -torch.einsum("vbp,kbp->vk", F.log_softmax(p / config.temperature, dim=-1), codes_KBP) / images
    swapped = mean_over_other_views(entropy_VK, first, len(config.queries()))
    return swapped, {"swapped": swapped}


def sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Return the codes (B, P) of scores (B, P): each sums to 1, and the prototypes' sums over all ranks are near each other.

    Sinkhorn's algorithm on `exp(scores / epsilon)` (eq. 3 to 5; main_swav.py: `distributed_sinkhorn`), with logarithms, so
    that nothing overflows.

    Raises:
        ValueError: fewer than 2 rows over all ranks.
    """
    if len(scores) * world_size() < 2:
        raise ValueError("SwAV's codes need a batch of at least 2 images")
    log_codes = scores / epsilon
    for _ in range(iterations):
        of_ranks = gather_rows(log_codes.logsumexp(dim=0, keepdim=True))
        log_codes = log_codes - of_ranks.logsumexp(dim=0)
        log_codes = log_codes - log_codes.logsumexp(dim=1, keepdim=True)
    return log_codes.exp()


METHOD = Method(
    name="swav",
    losses=losses,
    Config=Config,
    heads=heads,
    target=StopGradient(),
    memory=memory,
    disperses="projections",
)
