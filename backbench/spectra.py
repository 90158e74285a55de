"""Numbers of embeddings' spectra, in float64: effective rank, RankMe, alpha-ReQ, LiDAR. Shapes are (N, D) unless said."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

_BLOCK = 4096  # rows that are held in float64 at a time
_EPS = torch.finfo(torch.float64).eps
FIRST, LAST = 4, 100  # eigenvalues between which alpha-ReQ fits (kumarkrishna/fastssl, scripts/train_model.py)


class Undefined(ValueError):
    """These embeddings do not have the number that was asked for; the text says why."""


def refuse_not_finite(x: Tensor) -> None:
    """Raise Undefined if a number is NaN or infinite."""
    if not bool(torch.isfinite(x).all()):
        raise Undefined("the features contain NaN or infinite values")


def singular_values(x_ND: Tensor, *, centred: bool) -> Tensor:
    """Return the min(N, D) singular values of the rows, or of the rows minus their mean; float64, largest first.

    They are the square roots of the eigenvalues of the smaller Gram matrix, which is summed over blocks of rows. What is
    lost in the rounding of that sum (about 1e-7 of the largest singular value) is exactly 0.

    Raises:
        Undefined: a number is NaN or infinite.
    """
    refuse_not_finite(x_ND)
    rows, width = x_ND.shape
    if rows < width:
        whole = torch.cat(list(_blocks(x_ND, centred=centred)))
        gram = whole @ whole.T
    else:
        gram = x_ND.new_zeros(width, width, dtype=torch.float64)
        for part in _blocks(x_ND, centred=centred):
            gram.addmm_(part.T, part)
    squares = torch.linalg.eigvalsh(gram).flip(0)
    of_sums = 4 * max(rows, width) ** 0.5 * _EPS * squares[0]
    of_centring = rows * width * (2 * _EPS * x_ND.abs().max().double()) ** 2 if centred else 0.0
    return torch.where(squares > of_sums + of_centring, squares, 0.0).sqrt()


def _blocks(x_ND: Tensor, *, centred: bool) -> Iterator[Tensor]:
    """Yield blocks of rows in float64, minus the mean row if `centred`."""
    parts = x_ND.split(_BLOCK)
    mean = sum(part.sum(dim=0, dtype=torch.float64) for part in parts) / len(x_ND) if centred else 0.0
    for part in parts:
        yield part.double() - mean


def entropy_rank(weights_K: Tensor, epsilon: float = 0.0) -> float:
    """Return exp(-sum p log p) with p = weights / sum(weights) + epsilon: how many weights count. 1 if all are zero."""
    p = weights_K / weights_K.sum().clamp_min(torch.finfo(weights_K.dtype).tiny) + epsilon
    return float(torch.special.entr(p).sum().exp())


def effective_rank(x_ND: Tensor) -> float:
    """Return exp(entropy of the normalised singular values) of the centred rows (Roy and Vetterli 2007).

    Larger: more directions are used, and more evenly; between 1 (a line, or one point) and min(N - 1, D). Rotation and
    scale change nothing.
    """
    return entropy_rank(singular_values(x_ND, centred=True))


def rankme(x_ND: Tensor, epsilon: float = 1e-7) -> float:
    """Return exp(-sum p_k log p_k), p_k = sigma_k / sum(sigma) + epsilon, of the rows as they are (Garrido et al. 2023).

    Larger is better, says the paper: between 1 and min(N, D). It differs from the effective rank in the mean, which stays,
    and in epsilon. Rotation and scale change nothing.
    """
    return entropy_rank(singular_values(x_ND, centred=False), epsilon)


def alpha_req(x_ND: Tensor) -> float:
    """Return alpha of lambda_j ~ j^-alpha, the decay of the covariance's eigenvalues (Agrawal et al. 2022).

    log lambda_j is fitted by a line in log j for j from 4 to 100, with weights 1 / j (kumarkrishna/fastssl,
    fastssl/utils/powerlaw.py, from Stringer et al. 2019). Larger: less is spread over many directions. The paper finds the
    best backbones near 1; those of today lie above it. Rotation and scale change nothing.

    Raises:
        Undefined: fewer than 100 eigenvalues are above rounding.
    """
    eigenvalues = singular_values(x_ND, centred=True)[:LAST].square()
    if (positive := int((eigenvalues > 0).sum())) < LAST:
        raise Undefined(f"{positive} eigenvalues are above rounding, and alpha is fitted to {LAST}: give more images")
    ranks = torch.arange(FIRST, LAST + 1, dtype=torch.float64, device=x_ND.device)
    log_rank, log_value = ranks.log(), eigenvalues[FIRST - 1 :].log()
    weights = (1 / ranks) / (1 / ranks).sum()
    deviation = log_rank - weights @ log_rank
    return float(-(weights * deviation) @ log_value / ((weights * deviation) @ deviation))


def lidar(x_NQD: Tensor, delta: float = 1e-4, epsilon: float = 1e-8) -> float:
    """Return the rank of the linear discriminants between images, each seen in Q augmented views (Thilak et al. 2023).

    With the mean view m_i of an image, the mean m of these, S_b = sum_i (m_i - m)(m_i - m)^T / (N - 1) and
    S_w = sum_iq (x_iq - m_i)(x_iq - m_i)^T / (N (Q - 1)) + delta I, it is exp(-sum p_k log p_k) of the D eigenvalues of
    S_w^-1/2 S_b S_w^-1/2, p_k = lambda_k / sum(lambda) + epsilon. Larger is better, says the paper: more directions tell
    images apart whatever the view; between 1 and min(N - 1, D). Rotation changes nothing; scale does, through delta.

    Raises:
        ValueError: fewer than two images or views.
        Undefined: a number is NaN or infinite, or delta is too small to invert S_w.
    """
    images, views, width = x_NQD.shape
    if images < 2 or views < 2:
        raise ValueError(f"LiDAR compares images and their views: two of each at least, not {images} and {views}")
    refuse_not_finite(x_NQD)
    means = x_NQD.mean(dim=1, dtype=torch.float64)
    within = delta * torch.eye(width, dtype=torch.float64, device=x_NQD.device)
    for part, mean in zip(x_NQD.split(_BLOCK // views + 1), means.split(_BLOCK // views + 1), strict=True):
        deviations = (part.double() - mean[:, None]).flatten(0, 1)
        within.addmm_(deviations.T, deviations, alpha=1 / (images * (views - 1)))
    # With S_w = L L^T, the eigenvalues are the squared singular values of the centred means times L^-T.
    centred = (means - means.mean(dim=0)) / (images - 1) ** 0.5
    factor, failed = torch.linalg.cholesky_ex(within)
    if bool(failed):
        raise Undefined(f"the views spread so far that delta {delta:g} is lost in rounding: set delta higher")
    whitened = torch.linalg.solve_triangular(factor.T, centred, upper=True, left=False)
    eigenvalues = singular_values(whitened, centred=False).square()
    return entropy_rank(F.pad(eigenvalues, (0, width - len(eigenvalues))), epsilon)
