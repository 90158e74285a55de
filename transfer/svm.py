"""Fit one linear SVM per class, cost and fold (VISSL vissl/utils/svm_utils/svm_trainer.py).

Labels are 1 (positive), -1 (negative) and 0 (the image is left out). There are two solvers. `liblinear`: the numbers equal
those of a plain loop over scikit-learn's LinearSVC and cross_val_score, for any number of processes. `newton`: all machines
at once (`newton.py`), at the optimum that liblinear stops short of at its tolerance of 1e-4, where it depends on a seed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    import torch
    from sklearn.svm import LinearSVC

MAX_ITER = 2000
_SEED = 0  # liblinear visits the images in random order; the references do not fix it


Solver = Literal["newton", "liblinear"]
POSITIVE_WEIGHT = 2  # a positive image costs twice what a negative one does


@dataclass(frozen=True)
class Fits:
    """Machines fitted by liblinear, in the order of the request."""

    machines: list[LinearSVC]
    unfinished: int  # how many stopped at MAX_ITER

    def scores(self, x_NC: np.ndarray) -> np.ndarray:
        """Return signed distances (N, machines), float64."""
        x = x_NC.astype(np.float64)  # once for all machines
        return np.stack([machine.decision_function(x) for machine in self.machines], axis=1)


@dataclass(frozen=True)
class Planes:
    """Machines fitted by Newton's method, in the order of the request."""

    weights: np.ndarray  # (machines, C) float64
    intercepts: np.ndarray  # (machines,)
    unfinished: int  # how many stopped at newton.MAX_STEPS

    def scores(self, x_NC: np.ndarray) -> np.ndarray:
        """Return signed distances (N, machines), float64."""
        return x_NC.astype(np.float64) @ self.weights.T + self.intercepts


def machine(cost: float) -> LinearSVC:
    """Return the SVM of VISSL and FAIR (svm_trainer.py, train_svm_kfold.py), but with a fixed random state."""
    from sklearn.svm import LinearSVC

    return LinearSVC(
        C=cost,
        class_weight={1: POSITIVE_WEIGHT, -1: 1},
        intercept_scaling=1.0,
        penalty="l2",
        loss="squared_hinge",
        tol=1e-4,
        dual=True,
        max_iter=MAX_ITER,
        random_state=_SEED,
    )


def unit_rows(x_NC: np.ndarray) -> np.ndarray:
    """Return x / (||x|| + 1e-5) for every row (VISSL svm_trainer.py)."""
    return x_NC / (np.linalg.norm(x_NC, axis=1, keepdims=True) + 1e-5)


def cross_validate(
    x_NC: np.ndarray,
    labels_NK: np.ndarray,
    costs: Sequence[float],
    *,
    folds: int,
    jobs: int | None = None,
    solver: Solver = "liblinear",
    device: torch.device | None = None,
) -> tuple[np.ndarray, int]:
    """Compute scikit-learn's average precision for every class, cost and held-out fold (stratified, not shuffled).

    Args:
        jobs: processes of liblinear.
        device: of newton.

    Returns:
        (classes, costs, folds) float64, 0 to 1; the number of fits that stopped before they converged.
    """
    if solver == "newton":
        from transfer import newton_fits

        return newton_fits.cross_validate(x_NC, labels_NK, costs, folds, device)
    found = np.full((labels_NK.shape[1], len(costs), folds), np.nan)
    places = list(np.ndindex(found.shape))
    calls = ((labels_NK[:, k], costs[c], folds, fold) for k, c, fold in places)
    unfinished = 0
    for i, (precision, finished) in _spread(_fit_fold, x_NC, calls, len(places), jobs):
        found[places[i]] = precision
        unfinished += not finished
    return found, unfinished


def fit_all(
    x_NC: np.ndarray,
    labels: Sequence[np.ndarray],
    costs: Sequence[float],
    *,
    jobs: int | None = None,
    solver: Solver = "liblinear",
    device: torch.device | None = None,
) -> Fits | Planes:
    """Fit one machine for each pair of labels (N,) and cost."""
    if solver == "newton":
        from transfer import newton_fits

        return Planes(*newton_fits.fit_all(x_NC, labels, costs, device))
    calls = zip(labels, costs, strict=True)
    by_place = dict(_spread(_fit, x_NC, calls, len(labels), jobs))
    pairs = [by_place[i] for i in range(len(labels))]
    return Fits([fitted for fitted, _ in pairs], sum(not finished for _, finished in pairs))


def _spread(
    function: Callable[..., Any], x_NC: np.ndarray, calls: Iterable[tuple], total: int, jobs: int | None
) -> Iterator[tuple[int, Any]]:
    """Yield (place, function(x, *call)) for every call as it ends.

    It uses processes, not threads: liblinear has one random generator per process. joblib maps the features into each.
    """
    import joblib

    from backbench.progress import track  # here: it imports torch, which the worker processes do not need

    jobs = min(jobs or joblib.cpu_count(), total)
    numbered = enumerate(calls)
    if jobs == 1:
        results: Iterable = (_numbered(function, i, x_NC, *call) for i, call in numbered)
    else:
        parallel = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered")
        results = parallel(joblib.delayed(_numbered)(function, i, x_NC, *call) for i, call in numbered)
    yield from track(results, total=total, label="SVM fits")


def _numbered(function: Callable[..., Any], place: int, *args: Any) -> tuple[int, Any]:
    return place, function(*args)


def split(labels_N: np.ndarray, folds: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the (kept, held-out) rows of every fold."""
    from sklearn.model_selection import StratifiedKFold

    rows = np.flatnonzero(labels_N)
    return [(rows[kept], rows[held_out]) for kept, held_out in StratifiedKFold(folds).split(rows, labels_N[rows])]


def _fit_fold(x_NC: np.ndarray, labels_N: np.ndarray, cost: float, folds: int, fold: int) -> tuple[float, bool]:
    """Return the average precision on one held-out fold, and True if the fit converged."""
    from sklearn.metrics import average_precision_score

    kept, held_out = split(labels_N, folds)[fold]
    fitted, finished = _fit_rows(x_NC[kept], labels_N[kept], cost)
    return average_precision_score(labels_N[held_out], fitted.decision_function(x_NC[held_out])), finished


def _fit(x_NC: np.ndarray, labels_N: np.ndarray, cost: float) -> tuple[LinearSVC, bool]:
    """Fit a machine on the images with labels other than 0. Return it, and True if it converged."""
    rows = np.flatnonzero(labels_N)
    return _fit_rows(x_NC[rows], labels_N[rows], cost)


def _fit_rows(x_NC: np.ndarray, labels_N: np.ndarray, cost: float) -> tuple[LinearSVC, bool]:
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the caller counts it
        fitted = machine(cost).fit(x_NC, labels_N)
    return fitted, bool(fitted.n_iter_ < MAX_ITER)
