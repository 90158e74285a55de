"""Diagnostics: numbers that judge features (N, D) without labels. `DIAGNOSTICS` has them all, with their direction.

A diagnostic takes features on any device and returns a float. `backbench.spectra` has those of the spectrum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from backbench import embeddings
from backbench.spectra import Undefined, alpha_req, effective_rank, rankme, refuse_not_finite

_BLOCK = 1024  # rows compared with others at a time
_NEAREST = 6  # found in float32: the row itself, the two nearest of which float64 decides, and room for errors
_KEPT = 0.9  # of the ratios of distances, from the smallest; Facco et al. leave out the tenth with the largest
_ROUNDS = 100  # of k-means, at most


def uniformity(x_ND: Tensor) -> float:
    """Return log mean exp(-2 d^2) over pairs of L2-normalised rows (Wang and Isola 2020).

    Smaller is better, says the paper: 0 is one point, -4 the limit of an even spread on the sphere. Rotation and scale change
    nothing.

    Raises:
        ValueError: fewer than two rows.
        Undefined: a number is NaN or infinite.
    """
    refuse_not_finite(x_ND)
    return float(embeddings.uniformity(x_ND))


def intrinsic_dimension(x_ND: Tensor) -> float:
    """Return the dimension of the manifold that the rows lie on, from their two nearest neighbours (Facco et al. 2017).

    With mu_i the distance of row i to its second neighbour over that to its first, sorted, -log(1 - i / N) = d log(mu_i) is
    fitted by least squares without the tenth with the largest ratios. Rows that are there twice are left out. Larger is
    better: CLID's expressiveness (Lu et al. 2023). Rotation and scale change nothing.

    Raises:
        Undefined: a number is NaN or infinite, or fewer than three rows differ from all others.
    """
    refuse_not_finite(x_ND)
    first, second = _two_nearest(x_ND) if len(x_ND) > 2 else torch.zeros(2, 1)
    distinct = first > 0
    ratios = (second[distinct] / first[distinct]).log().sort().values
    log_ratios = ratios[: int(_KEPT * len(ratios))]
    if len(ratios) < 3 or not float(log_ratios[-1]) > 0:
        raise Undefined(f"{len(ratios)} of {len(x_ND)} images differ from all others: too few for a dimension")
    share = torch.arange(1, len(log_ratios) + 1, dtype=torch.float64, device=x_ND.device) / len(ratios)
    return float(-(log_ratios @ torch.log1p(-share)) / (log_ratios @ log_ratios))


def _two_nearest(x_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Return (N,) the distances to the nearest and the second nearest other row, float64."""
    _, index = embeddings.neighbours(x_ND, x_ND, min(_NEAREST, len(x_ND)), metric="euclidean")
    found = []
    for start in range(0, len(x_ND), _BLOCK):
        near = index[start : start + _BLOCK]
        own = torch.arange(start, start + len(near), device=x_ND.device)[:, None]
        distance = (x_ND[near].double() - x_ND[own].double()).norm(dim=2)
        found.append(distance.masked_fill(near == own, torch.inf).topk(2, dim=1, largest=False).values)
    first, second = torch.cat(found).unbind(dim=1)
    return first, second


def cluster_learnability(x_ND: Tensor) -> float:
    """Return how well nearest neighbours find k-means clusters, in percent (Lu et al. 2023).

    The L2-normalised rows are put into sqrt(N) clusters; each half of the rows then gets the cluster of its nearest neighbour
    (cosine) in the other half. Larger is better, says the paper: groups have clear borders. Rotation and scale change
    nothing but the draw of the first centres.

    Raises:
        Undefined: a number is NaN or infinite, there are fewer than four rows, or all are in one cluster.
    """
    refuse_not_finite(x_ND)
    rows = len(x_ND)
    if rows < 4:
        raise Undefined(f"{rows} images are too few for clusters: give four at least")
    x = F.normalize(x_ND.float(), dim=1)
    clusters = round(rows**0.5)
    labels = kmeans(x, clusters)
    if bool((labels == labels[0]).all()):
        raise Undefined("all images are in one cluster: their features have one direction")
    halves = torch.randperm(rows, generator=torch.Generator().manual_seed(0)).to(x.device).chunk(2)
    right = 0.0
    for query, bank in (halves, halves[::-1]):
        found = embeddings.knn_accuracy(x[query], labels[query], x[bank], labels[bank], ks=[1], classes=clusters)
        right += found[1] * len(query)
    return right / rows


def kmeans(x_ND: Tensor, clusters: int, *, seed: int = 0) -> Tensor:
    """Return (N,) the cluster of each row: Lloyd's algorithm from k-means++ centres (Arthur and Vassilvitskii 2007).

    A cluster that loses all its rows keeps its centre. It ends when no row changes its cluster, or after 100 rounds.
    """
    centres = _first_centres(x_ND, clusters, torch.Generator().manual_seed(seed))
    labels = _nearest_centre(x_ND, centres)
    for _ in range(_ROUNDS):
        sums, counts = torch.zeros_like(centres), centres.new_zeros(clusters, 1)
        for rows, own in zip(x_ND.split(_BLOCK), labels.split(_BLOCK), strict=True):
            members = F.one_hot(own, clusters).to(rows.dtype)  # a product, because index_add_ has no order on a GPU
            sums.addmm_(members.T, rows)
            counts += members.sum(dim=0)[:, None]
        centres = torch.where(counts > 0, sums / counts.clamp_min(1), centres)
        before, labels = labels, _nearest_centre(x_ND, centres)
        if torch.equal(before, labels):
            break
    return labels


def _first_centres(x_ND: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """Draw rows as centres, each with a probability that grows with its squared distance to those before it."""
    chosen = [int(torch.randint(len(x_ND), (), generator=generator))]
    distance = x_ND.new_full((len(x_ND),), torch.inf)
    for _ in range(clusters - 1):
        distance = torch.minimum(distance, (x_ND - x_ND[chosen[-1]]).square().sum(dim=1))
        sums = distance.double().cumsum(dim=0)
        place = sums[-1] * torch.rand((), generator=generator, dtype=torch.float64).to(sums.device)
        chosen.append(int(torch.searchsorted(sums, place, right=True).clamp_max(len(x_ND) - 1)))
    return x_ND[chosen].clone()


def _nearest_centre(x_ND: Tensor, centres_KD: Tensor) -> Tensor:
    half = centres_KD.square().sum(dim=1) / 2
    return torch.cat([(rows @ centres_KD.T - half).argmax(dim=1) for rows in x_ND.split(_BLOCK)])


@dataclass(frozen=True)
class Diagnostic:
    """A number of features, and its direction as the paper claims it."""

    of: Callable[[Tensor], float]
    higher_is_better: bool
    unit: str = ""


DIAGNOSTICS: Mapping[str, Diagnostic] = {
    "rankme": Diagnostic(rankme, higher_is_better=True),
    "effective_rank": Diagnostic(effective_rank, higher_is_better=True),
    "alpha_req": Diagnostic(alpha_req, higher_is_better=False),  # towards 1, from above
    "uniformity": Diagnostic(uniformity, higher_is_better=False),
    "intrinsic_dimension": Diagnostic(intrinsic_dimension, higher_is_better=True),
    "cluster_learnability": Diagnostic(cluster_learnability, higher_is_better=True, unit="%"),
}


def measure(x_ND: Tensor) -> tuple[dict[str, float], dict[str, str]]:
    """Return every diagnostic that the features define, by name, and the reasons of the others.

    Raises:
        ValueError: fewer than two rows.
    """
    values, reasons = {}, {}
    for name, diagnostic in DIAGNOSTICS.items():
        try:
            values[name] = diagnostic.of(x_ND)
        except Undefined as reason:
            reasons[name] = str(reason)
    return values, reasons
