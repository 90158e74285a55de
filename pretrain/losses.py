"""MSBReg's three losses as pure functions of tensors (paper section 3.2).

Legend: K views, B images (of this rank), D dimensions. `p` are the online network's predictions, `z` the target
network's projections, both raw: the functions normalise. With known targets each loss is a sum over views, so gradients may
be accumulated over views, but not over samples (the singular value loss couples all samples).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from backbench.distributed import all_reduce_sum, gather_views, world_size
from pretrain.method import MethodConfig


def centroid_loss(p: Tensor, z: Tensor) -> Tensor:
    """Multiview centroid loss (eq. 3): mean over views of `|| p^_j - (1/K) sum_l z^_l ||^2`.

    The centroid is not re-normalised and includes the view's own target. The gradient equals that of the mean over all
    K x K pairs. `z` is detached.

    Args:
        p: (V, B, D) raw predictions of V of the K views.
        z: (K, B, D) raw target projections of all views.

    Returns:
        Scalar, averaged over V and B; between 0 and 4.
    """
    centroid_BD = F.normalize(z.detach(), dim=-1).mean(dim=0)
    return (F.normalize(p, dim=-1) - centroid_BD).pow(2).sum(dim=-1).mean()


def brownian_loss(p: Tensor, noise: Tensor) -> Tensor:
    """Brownian diffusive loss (eq. 4): `(1/K) sum_j <n^, p^_j>`, one noise vector per image, shared by its views.

    Args:
        p: (V, B, D) raw predictions.
        noise: (B, D) standard normal, drawn for every step; this function normalises it.

    Returns:
        Scalar, averaged over V and B; between -1 and 1.
    """
    return (F.normalize(p, dim=-1) * F.normalize(noise, dim=-1)).sum(dim=-1).mean()


def singular_value_loss(p: Tensor, normalize: bool = False) -> Tensor:
    """Singular value loss (eq. 5-7): mean over views of `|| S_j - I ||_F^2`, S_j the covariance over the global batch.

    It needs no SVD: the squared Frobenius norm is the sum over singular values of `(sigma - 1)^2`. With several ranks, the
    mean and then the centred scatter are summed over all ranks, in the backward pass too. It computes in at least float32,
    and centres first: raw second moments lose precision when the embeddings collapse.

    Args:
        p: (V, B, D) raw predictions; eq. 5 prints them un-normalised.
        normalize: L2-normalise first, as one place in the paper's text says.

    Returns:
        Scalar, averaged over V.

    Raises:
        ValueError: fewer than 2 samples in the global batch.
    """
    with torch.autocast(p.device.type, enabled=False):
        p = p if p.dtype == torch.float64 else p.float()
        if normalize:
            p = F.normalize(p, dim=-1)
        identity = torch.eye(p.shape[2], dtype=p.dtype, device=p.device)
        return (covariance(p) - identity).pow(2).sum(dim=(1, 2)).mean()


def covariance(p: Tensor) -> Tensor:
    """Return the covariances (V, D, D) of V views' embeddings (V, B, D) over the global batch.

    Raises:
        ValueError: fewer than 2 samples in the global batch.
    """
    p, n = centred(p)
    return all_reduce_sum(p.transpose(1, 2) @ p) / (n - 1)


def centred(p: Tensor) -> tuple[Tensor, int]:
    """Return embeddings (V, B, D) minus their means over the global batch, and the number of images in that batch.

    Raises:
        ValueError: fewer than 2 samples in the global batch.
    """
    n = p.shape[1] * world_size()  # all ranks have equally many
    if n < 2:
        raise ValueError("the loss needs a batch of at least 2 images")
    return p - all_reduce_sum(p.sum(dim=1, keepdim=True)) / n, n


def off_diagonal(matrices: Tensor) -> Tensor:
    """Return square matrices (..., D, D) with zeros on their diagonals."""
    return matrices - torch.diag_embed(matrices.diagonal(dim1=-2, dim2=-1))


def mean_over_other_views(values_VK: Tensor, first: int, queries: int) -> Tensor:
    """Return the mean over pairs of different views, as a share of a step's mean that group after group of views adds up to.

    Args:
        values_VK: a value for each of V query views, from number `first` on, with each of K key views, from number 0 on.
        queries: the number of query views Q in a step, K or more. The mean over groups of views is that over all pairs,
            although a query view beyond the key views has one pair more than the others.
    """
    views, keys = values_VK.shape
    query, key = (torch.arange(n, device=values_VK.device) for n in (views, keys))
    other = (first + query[:, None] != key).to(values_VK.dtype)
    return (values_VK * other).sum() / (views * keys * (queries - 1) / queries)


def dispersive_losses(p: Tensor, noise: Tensor, config: MethodConfig) -> tuple[Tensor | float, dict[str, Tensor]]:
    """Return `lambda_s L_s + lambda_b L_b` (eq. 2), and each term with a nonzero weight, unweighted."""
    total: Tensor | float = 0.0
    parts = {}
    if config.lambda_s:
        parts["singular"] = singular_value_loss(p, normalize=config.normalize)
        total = total + config.lambda_s * parts["singular"]
    if config.lambda_b:
        parts["brownian"] = brownian_loss(p, noise)
        total = total + config.lambda_b * parts["brownian"]
    return total, parts


def uniformity_loss(p: Tensor, t: float = 2.0) -> Tensor:
    """Uniformity (Wang and Isola 2020, section 4.1): `log mean exp(-t || p^_a - p^_b ||^2)` over all pairs of different images.

    The pairs are those of the global batch.

    Args:
        p: (V, B, D) raw predictions.
        t: the kernel's width.

    Returns:
        Scalar, averaged over V; between -4t and 0.

    Raises:
        ValueError: fewer than 2 samples in the global batch.
    """
    p = gather_views(F.normalize(p, dim=-1))
    if p.shape[1] < 2:
        raise ValueError("the uniformity loss needs a batch of at least 2 images")
    rows, columns = torch.triu_indices(p.shape[1], p.shape[1], offset=1, device=p.device)
    distance = 2 - 2 * (p @ p.transpose(1, 2))[:, rows, columns]  # (V, pairs)
    return ((-t * distance).logsumexp(dim=1) - math.log(len(rows))).mean()
