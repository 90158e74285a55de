"""45 logistic regressions beside ssl-transfer's loop: scikit-learn's LogisticRegression, 100 iterations for each penalty.

Features are made, of DTD's size: non-negative, with a decaying spectrum and classes that overlap. The loop takes minutes, so a
round of it fits some of the penalties. Both sides use every core; scores on held-out rows are part of both.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from benchmarks.speed import Comparison, Row, Setup, seconds

if TYPE_CHECKING:
    from torch import Tensor

PENALTIES = 45
_APART = 9  # a round of the loop fits every ninth penalty


def logistic(setup: Setup) -> Comparison:
    """Fits a second of both solvers, and how far the accuracies on held-out rows are apart at the loop's best penalty."""
    import numpy as np

    rows, features, classes = (240, 40, 4) if setup.quick else (1880, 2048, 47)
    fit_on, held_out = made(2 * rows, features, classes)
    penalties = np.geomspace(1e-6, 1e5, PENALTIES).tolist()
    setup = dataclasses.replace(setup, rounds=min(setup.rounds, 3))  # a round takes minutes
    pairs, gaps = [], []
    for r in range(2 if setup.quick else setup.rounds):
        ours_s, ours = path(fit_on, held_out, penalties, setup.device)
        theirs_s, theirs = loop(fit_on, held_out, penalties[r::_APART])
        pairs.append((len(ours) / ours_s, len(theirs) / theirs_s))
        best = max(theirs, key=lambda penalty: theirs[penalty])
        gaps.append(abs(theirs[best] - ours[best]))
    setting = (
        f"{rows:,} x {features}, {classes} classes, {PENALTIES} penalties, {setup.device}; the loop fits "
        f"{PENALTIES // _APART} penalties a round; top-1 at its best one at most {max(gaps):.2f} apart on {rows:,} rows"
    )
    return Comparison("fits a second", setting, "lbfgs", "ssl-transfer's loop", pairs, "times as many")


def path(
    fit_on: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor], penalties: list[float], device: str
) -> tuple[float, dict[float, float]]:
    """(seconds, top-1 on the held-out rows by penalty) of our solver."""
    import torch

    from transfer import logistic as ours

    found: dict[float, float] = {}

    def run() -> None:
        rows = ours.Rows(fit_on[0], torch.device(device))
        z, y = rows.project(held_out[0]), held_out[1].to(device)
        classes = int(fit_on[1].max()) + 1
        for fit in ours.fit_path(rows, fit_on[1][:, None], classes, penalties, iterations=100):
            found[fit.penalty] = top1(fit.scores(z), y)

    return seconds(run, device), found


def loop(
    fit_on: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor], penalties: list[float]
) -> tuple[float, dict[float, float]]:
    """The same of the loop."""
    from transfer import logistic_loop

    found: dict[float, float] = {}

    def run() -> None:
        rows = logistic_loop.Rows(fit_on[0])
        z, classes = rows.project(held_out[0]), int(fit_on[1].max()) + 1
        for fit in logistic_loop.fit_path(rows, fit_on[1][:, None], classes, penalties, iterations=100):
            found[fit.penalty] = top1(fit.scores(z), held_out[1])

    return seconds(run, "cpu"), found


def top1(scores: Tensor, y: Tensor) -> float:
    """Percent of the rows (N, 1, K) with the highest score at their class."""
    return float(100 * (scores[:, 0].argmax(dim=1) == y).double().mean())


def made(rows: int, features: int, classes: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Two halves of features (N, C) float32 with labels (N,)."""
    import numpy as np
    import torch

    rng = np.random.default_rng(0)
    hidden = min(256, features)
    scale = np.arange(1, hidden + 1) ** -0.5
    towards = 0.1 * rng.normal(size=(classes, hidden)) * scale**0.7
    labels = rng.permutation(np.arange(rows) % classes)
    z = rng.normal(size=(rows, hidden)) * scale + towards[labels]
    x = 0.1 * z @ rng.normal(size=(hidden, features)) + 0.2 * rng.normal(size=(rows, features)) - 0.1
    both = torch.from_numpy(np.maximum(x, 0).astype(np.float32)), torch.from_numpy(labels)
    return (both[0][: rows // 2], both[1][: rows // 2]), (both[0][rows // 2 :], both[1][rows // 2 :])


ROWS = (Row("logistic", "45 logistic regressions, fits a second against ssl-transfer's loop", logistic, at_least=10),)
