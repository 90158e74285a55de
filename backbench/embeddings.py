"""Pure functions of embeddings: kNN votes, alignment, uniformity, spread. Shapes are (N, D) unless said.

`backbench.spectra` has those of singular values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

_BLOCK = 1024  # rows compared with others at a time
_GROUP = 16  # columns that stand for each other by their largest number


def std_per_dimension(x_ND: Tensor) -> Tensor:
    """Mean over dimensions of the standard deviation of the L2-normalised rows, times sqrt(D).

    1 means spread as evenly as on a sphere, 0 means collapsed (SimSiam, section 4.1, has the same monitor as 1/sqrt(D)).
    """
    x = F.normalize(x_ND.float(), dim=1)
    return x.std(dim=0).mean() * x.shape[1] ** 0.5


def alignment(a_ND: Tensor, b_ND: Tensor) -> Tensor:
    """Mean squared distance of positive pairs, L2-normalised (Wang and Isola 2020; MSBReg Table 12)."""
    return (F.normalize(a_ND.float(), dim=1) - F.normalize(b_ND.float(), dim=1)).pow(2).sum(dim=1).mean()


def uniformity(x_ND: Tensor, t: float = 2.0) -> Tensor:
    """log mean exp(-t d^2) over pairs of different rows, L2-normalised (Wang and Isola 2020); in memory O(N).

    Raises:
        ValueError: fewer than two rows.
    """
    if len(x_ND) < 2:
        raise ValueError("uniformity needs two rows at least")
    x = F.normalize(x_ND.float(), dim=1)
    total = x.new_zeros((), dtype=torch.float64)
    parts = x.split(_BLOCK)
    for i, rows in enumerate(parts):
        for j, others in enumerate(parts[: i + 1]):  # d^2 = 2 - 2 cos on the sphere; each pair of blocks once
            potential = (rows @ others.T).clamp_(-1, 1).mul_(2 * t).sub_(2 * t).exp_()
            total += potential.sum(dtype=torch.float64) * (1 if i == j else 2)
    others = total - len(x)  # without the pairs of a row with itself
    if others < 1e-3 * len(x) or not bool(x_ND.any(dim=1).all()):  # lost in rounding; or a row of zeros, on no sphere
        return _uniformity_by_pairs(x, t)
    return (others / (len(x) * (len(x) - 1))).log().float()


def _uniformity_by_pairs(x_ND: Tensor, t: float) -> Tensor:
    """Compute the same without each row's pair with itself, in double precision and in logarithms."""
    x = x_ND.double()
    squares = x.pow(2).sum(dim=1)
    parts = []
    for start in range(0, len(x), 1024):
        rows = x[start : start + 1024]
        distance = (squares[start : start + 1024, None] + squares - 2 * rows @ x.T).clamp_min(0)
        own = torch.arange(len(rows), device=x.device)
        distance[own, start + own] = torch.inf
        parts.append((-t * distance).flatten().logsumexp(dim=0))
    return (torch.stack(parts).logsumexp(dim=0) - math.log(len(x) * (len(x) - 1))).float()


def neighbours(
    query_ND: Tensor,
    bank_MD: Tensor,
    k: int,
    *,
    metric: Literal["cosine", "euclidean"],
    chunk: int = 4096,
    watch: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> tuple[Tensor, Tensor]:
    """The `k` nearest bank rows of every query, nearest first.

    The queries' device needs memory for (1024, chunk) similarities and (chunk, D) rows of the bank; the bank may be on
    another device, and each of its rows goes over once.

    Args:
        watch: iterates over the first rows of the chunks; a bar of progress.

    Returns:
        similarity (N, k): cosine, or minus the squared Euclidean distance; index (N, k) into the bank.
    """
    if not 1 <= k <= len(bank_MD):
        raise ValueError(f"k must be between 1 and the bank's {len(bank_MD)} rows, not {k}")
    query = query_ND.float()
    centre = _mean(bank_MD, chunk).to(query.device) if metric == "euclidean" else None
    query = F.normalize(query, dim=1) if centre is None else query - centre
    blocks = query.split(_BLOCK)
    best = [rows.new_empty((len(rows), 0)) for rows in blocks]
    index = [torch.empty((len(rows), 0), dtype=torch.long, device=query.device) for rows in blocks]
    room = query.new_empty(
        min(_BLOCK, len(query)) * min(chunk, len(bank_MD))
    )  # new memory for each block costs 5% on a CPU
    for start in watch(range(0, len(bank_MD), chunk)):
        part = bank_MD[start : start + chunk].to(query.device).float()
        # Centring changes no distance and makes the squares below cancel less.
        part = F.normalize(part, dim=1) if centre is None else part - centre
        for i, rows in enumerate(blocks):
            similarity = room[: len(rows) * len(part)].view(len(rows), len(part))
            torch.mm(rows, part.T, out=similarity)
            if metric == "euclidean":
                similarity.mul_(2).sub_(rows.pow(2).sum(1, keepdim=True)).sub_(part.pow(2).sum(1))
            found, columns = _largest(similarity, k, best[i][:, -1:] if best[i].shape[1] == k else None)
            merged, columns = torch.cat([best[i], found], dim=1), torch.cat([index[i], columns + start], dim=1)
            best[i], order = merged.topk(min(k, merged.shape[1]), dim=1)
            index[i] = columns.gather(1, order)
    return torch.cat(best), torch.cat(index)


def _largest(x_NM: Tensor, k: int, floor_N1: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The k largest numbers of every row, or all if there are fewer, in no order, and their columns.

    The k largest lie in the k groups of columns with the largest maxima: most columns take part in a maximum only.

    Args:
        floor_N1: numbers that are not above it are of no use; fewer than k may then be returned.
    """
    columns = x_NM.shape[1]
    groups = columns // _GROUP
    if groups < 2 * k:
        return x_NM.topk(min(k, columns), dim=1, sorted=False)
    grouped = x_NM[:, : groups * _GROUP].unflatten(1, (_GROUP, groups))
    maxima = grouped.amax(dim=1)
    if floor_N1 is not None:
        k = min(k, int((maxima > floor_N1).sum(dim=1).max()))
    chosen = maxima.topk(k, dim=1, sorted=False).indices
    within = torch.arange(_GROUP, device=x_NM.device)[:, None] * groups
    rest = torch.arange(groups * _GROUP, columns, device=x_NM.device).expand(len(x_NM), -1)
    candidates = torch.cat([(chosen[:, None] + within).flatten(1), rest], dim=1)
    if floor_N1 is not None:  # the few are merged with the best so far, which drops what is too much
        return x_NM.gather(1, candidates), candidates
    found, order = x_NM.gather(1, candidates).topk(k, dim=1, sorted=False)
    return found, candidates.gather(1, order)


def _mean(x_ND: Tensor, chunk: int) -> Tensor:
    """Return the mean row without copying all rows."""
    return sum(part.sum(dim=0, dtype=torch.float64) for part in x_ND.split(chunk)).div(len(x_ND)).float()


def knn_scores(
    similarity_NK: Tensor,
    labels_NK: Tensor,
    *,
    k: int,
    classes: int,
    temperature: float | None,
    ties: Literal["nearest", "first"] = "nearest",
) -> Tensor:
    """Class scores (N, classes) from sorted neighbours.

    `temperature` T: every neighbour votes exp(similarity / T) (NPID, lemniscate test.py); None: one vote each.

    `ties` decides between classes with equal votes. `nearest` prefers the class of the nearest neighbour, so that the
    answer does not depend on the order of class names. `first` adds nothing: an argmax takes the smallest index (W-MSE).
    """
    votes = torch.ones_like(similarity_NK[:, :k])
    if temperature is not None:
        # Relative to the nearest neighbour: the same argmax, and exp cannot overflow at a small T.
        votes = ((similarity_NK[:, :k] - similarity_NK[:, :1]) / temperature).exp()
    votes = votes.double()
    nearest_first = torch.arange(k, 0, -1, device=votes.device, dtype=votes.dtype) * 1e-9
    scores = torch.zeros(len(votes), classes, dtype=votes.dtype, device=votes.device)
    scores.scatter_add_(1, labels_NK[:, :k], votes)
    if ties == "first":
        return scores
    bonus = torch.zeros_like(scores).scatter_reduce_(
        1, labels_NK[:, :k], nearest_first.expand_as(votes), reduce="amax", include_self=True
    )
    return scores + bonus


def knn_accuracy(
    query_ND: Tensor,
    query_labels: Tensor,
    bank_MD: Tensor,
    bank_labels: Tensor,
    *,
    ks: Sequence[int],
    classes: int,
    temperature: float | None = 0.07,
    metric: Literal["cosine", "euclidean"] = "cosine",
) -> dict[int, float]:
    """Top-1 accuracy in percent for every k; all queries are counted once."""
    correct = dict.fromkeys(ks, 0)
    similarity, index = neighbours(query_ND, bank_MD, max(ks), metric=metric)
    for rows in torch.arange(len(query_ND)).split(_BLOCK):
        near, labels = similarity[rows], bank_labels[index[rows]]
        for k in ks:
            scores = knn_scores(near, labels, k=k, classes=classes, temperature=temperature)
            correct[k] += int((scores.argmax(dim=1) == query_labels[rows]).sum())
    return {k: 100.0 * n / len(query_ND) for k, n in correct.items()}
