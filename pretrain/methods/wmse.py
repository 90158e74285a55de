"""W-MSE: the views' whitened embeddings are drawn together (Ermolov et al. 2021, section 4).

An image has `views` samples, 2 and 4 in the paper. Sub-batches are parts of the global batch.
"""

from __future__ import annotations

import itertools
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from backbench.distributed import gather_views
from backbench.errors import BackbenchError, ConfigError
from pretrain.method import Method, MethodConfig, NoTarget
from pretrain.networks import Heads, HeadSizes, Memory, mlp


class Config(MethodConfig):
    """Whitening (section 4.1; htdt/self-supervised, cfg.py: --w_size, --w_iter, --w_eps)."""

    whitening_size: Annotated[int, Field(ge=0)] = 0  # images that are whitened together; 0: the whole batch
    iterations: Annotated[int, Field(gt=0)] = 1  # random divisions of a batch, whose losses are averaged
    epsilon: Annotated[float, Field(ge=0, lt=1)] = 0.0  # the covariance becomes (1 - epsilon) C + epsilon I


class Divisions(Memory):
    """Random divisions of a batch, the same on all ranks. They depend only on the run's seed and the step."""

    def __init__(self) -> None:
        super().__init__()
        self._seed = int(torch.randint(2**31, ()))  # drawn after the weights, from the run's seed
        self._step = 0

    def begin(self, step: int, epoch: float) -> None:
        """Note the step."""
        self._step = step

    def draw(self, images: int, size: int, count: int) -> Tensor:
        """Return `count` divisions of `images` rows into sub-batches: (count, images / size, size) row numbers."""
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self._step)
        orders = [torch.randperm(images, generator=generator) for _ in range(count)]
        return torch.stack(orders).view(count, -1, size)


def heads(sizes: HeadSizes, _config: Config) -> Heads:
    """Return a projector of two layers (htdt/self-supervised, model.py: `get_head`)."""
    return Heads(mlp(sizes.features, sizes.hidden, sizes.outputs, sizes.norm), None)


def memory(_sizes: HeadSizes, _config: Config, _heads: Heads) -> Divisions:
    """Return what draws the sub-batches of each step."""
    return Divisions()


def losses(
    p: Tensor, z: Tensor, config: Config, *, first: int = 0, memory: Divisions
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the squared distance of the normalised whitened embeddings, as a mean over pairs of views (eq. 6).

    Raises:
        ConfigError: sub-batches that do not divide the global batch, or that have too few images for the dimensions.
        BackbenchError: a covariance that has no inverse.
    """
    p = gather_views(p)
    _, images, dimensions = p.shape
    size = config.whitening_size or images
    if images % size:
        raise ConfigError(f"optim.batch {images} is not a multiple of method.whitening_size {size}; change one of them")
    if size <= dimensions and not config.epsilon:
        raise ConfigError(
            f"wmse cannot whiten {dimensions} dimensions with {size} images: set method.whitening_size (optim.batch, where it "
            f"is 0) above model.outputs, best to {2 * dimensions} or more"
        )
    rows = memory.draw(images, size, config.iterations).to(p.device)
    whitened = F.normalize(whiten(p[:, rows], config.epsilon), dim=-1)  # (K, iterations, sub-batches, size, D)
    distances = [(a - b).square().sum(dim=-1).mean() for a, b in itertools.combinations(whitened, 2)]
    distance = torch.stack(distances).mean()
    return distance, {"distance": distance}


def whiten(x: Tensor, epsilon: float = 0.0) -> Tensor:
    """Return (..., N, D) with mean 0 and covariance I over N, by the inverse Cholesky factor of the covariance.

    Args:
        x: (..., N, D), float32 or float64.
        epsilon: the covariance C becomes `(1 - epsilon) C + epsilon I` first.

    Raises:
        BackbenchError: the covariance has no inverse.
    """
    x = x - x.mean(dim=-2, keepdim=True)
    covariance = x.mT @ x / (x.shape[-2] - 1)
    identity = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    try:
        factor = torch.linalg.cholesky((1 - epsilon) * covariance + epsilon * identity)
    except torch.linalg.LinAlgError:
        raise BackbenchError(
            "wmse cannot whiten: the embeddings' covariance has no inverse, since they have collapsed or are not finite; lower "
            "optim.base_lr, raise method.whitening_size or set method.epsilon=0.01"
        ) from None
    return torch.linalg.solve_triangular(factor, x.mT, upper=False).mT


METHOD = Method(
    name="wmse", losses=losses, Config=Config, heads=heads, target=NoTarget(), couples_views=True, memory=memory
)
