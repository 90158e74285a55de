"""Cross-validation and fits of `svm.py` by Newton's method: all classes and folds as one batch, cost after cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch

from backbench.progress import track
from transfer import newton, svm

T = TypeVar("T")
_BYTES = 2**25  # of one number for every row and machine: so many machines at a time


def cross_validate(
    x_NC: np.ndarray, labels_NK: np.ndarray, costs: Sequence[float], folds: int, device: torch.device | None = None
) -> tuple[np.ndarray, int]:
    """Compute what `svm.cross_validate` does."""
    from sklearn.metrics import average_precision_score

    found = np.full((labels_NK.shape[1], len(costs), folds), np.nan)
    rows = newton.Rows(torch.as_tensor(x_NC, device=device))
    machines = [(k, fold, *pair) for k, y in enumerate(labels_NK.T) for fold, pair in enumerate(svm.split(y, folds))]
    unfinished = 0

    def fitted() -> Iterator[int]:
        nonlocal unfinished
        for part in _parts(machines, len(x_NC)):
            y, weight = _problems([(labels_NK[:, k], kept) for k, _, kept, _ in part], rows.x.device)
            w = None
            for cost in newton.steps_to(sorted(set(costs)), rows.square):
                w, converged = newton.minimise(rows, y, weight, cost, w)
                places = [c for c, each in enumerate(costs) if each == cost]
                if not places:
                    continue
                scores = (w @ rows.x.T).cpu().numpy()
                for i, (k, fold, _, held_out) in enumerate(part):
                    found[k, places, fold] = average_precision_score(labels_NK[held_out, k], scores[i, held_out])
                unfinished += len(places) * int((~converged).sum())
                yield len(part) * len(places)

    for _ in track(fitted(), total=found.size, label="SVM fits", size=int):
        pass
    return found, unfinished


def fit_all(
    x_NC: np.ndarray, labels: Sequence[np.ndarray], costs: Sequence[float], device: torch.device | None = None
) -> tuple[np.ndarray, np.ndarray, int]:
    """Return weights (machines, C), intercepts (machines,) and the number of machines that did not converge."""
    rows = newton.Rows(torch.as_tensor(x_NC, device=device))
    weights = np.empty((len(labels), rows.x.shape[1]))
    unfinished = 0

    def fitted() -> Iterator[int]:
        nonlocal unfinished
        for part in _parts(range(len(labels)), len(x_NC)):
            y, weight = _problems([(labels[i], np.flatnonzero(labels[i])) for i in part], rows.x.device)
            for _, which, w, converged in newton.fit_path(rows, y, weight, [costs[i] for i in part]):
                weights[[part[i] for i in which.tolist()]] = w.cpu().numpy()
                unfinished += int((~converged).sum())
                yield len(which)

    for _ in track(fitted(), total=len(labels), label="SVM fits", size=int):
        pass
    return weights[:, :-1], weights[:, -1], unfinished


def _parts(machines: Sequence[T], rows: int) -> Iterator[Sequence[T]]:
    size = max(1, _BYTES // (8 * max(rows, 1)))
    for start in range(0, len(machines), size):
        yield machines[start : start + size]


def _problems(
    wanted: Sequence[tuple[np.ndarray, np.ndarray]], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels and weights (P, N) for pairs of labels (N,) and the rows to fit on."""
    y = np.stack([labels.astype(np.float64) for labels, _ in wanted])
    weight = np.zeros_like(y)
    for i, (labels, kept) in enumerate(wanted):
        weight[i, kept] = np.where(labels[kept] == 1, svm.POSITIVE_WEIGHT, 1)
    return torch.as_tensor(y, device=device), torch.as_tensor(weight, device=device)
