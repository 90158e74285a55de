"""VOC07's SVMs beside VISSL's loop: scikit-learn's LinearSVC and cross_val_score, class by class and cost by cost.

Both sides choose a cost for each class by 3-fold cross-validation and refit. Features are made: non-negative, of unit length,
with a decaying spectrum and classes that overlap, as VOC07's are. The loop takes minutes, so it fits some of the classes.
Wall time counts: Newton's method uses every core, liblinear one.
"""

from __future__ import annotations

import dataclasses
import warnings
from typing import TYPE_CHECKING, Any

from benchmarks.speed import Comparison, Row, Setup, seconds

if TYPE_CHECKING:
    import numpy as np

COSTS = (0.01, 0.1, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 50.0, 100.0, 1000.0)
FOLDS = 3


def svm(setup: Setup) -> Comparison:
    """Fits a second of `solver=newton` and of the loop; how often both choose the same cost, how far apart they are."""
    import numpy as np

    images, features, classes, some = (300, 40, 4, 1) if setup.quick else (5011, 2048, 20, 2)
    x, labels = made(images, features, classes)
    setup = dataclasses.replace(setup, rounds=min(setup.rounds, 3))  # a round takes a minute
    newton(x[:300], labels[:300], setup.device), loop(x[:300], labels[:300, :1])  # warm-up
    pairs, gaps, same = [], [], []
    for r in range(2 if setup.quick else setup.rounds):
        mine = [(r * some + k) % classes for k in range(some)]
        ours_s, ours = newton(x, labels, setup.device)
        theirs_s, theirs = loop(x, labels[:, mine])
        fits = len(COSTS) * FOLDS + 1
        pairs.append((classes * fits / ours_s, some * fits / theirs_s))
        gaps.append(float(np.abs(ours[mine] - theirs).mean(axis=2).max()))
        same += (ours[mine].mean(axis=2).argmax(axis=1) == theirs.mean(axis=2).argmax(axis=1)).tolist()
    setting = (
        f"{images:,} x {features}, {classes} classes x {len(COSTS)} costs x {FOLDS} folds, {setup.device}; the loop fits "
        f"{some} classes a round; of its {len(same)} classes {sum(same)} have the same cost, AP (percent) at most "
        f"{100 * max(gaps):.3f} apart"
    )
    return Comparison("fits a second", setting, "newton", "VISSL's loop", pairs, "times as many")


def newton(x: np.ndarray, labels: np.ndarray, device: str) -> tuple[float, np.ndarray]:
    """(seconds, average precision (classes, costs, folds)) of our cross-validation and refits."""
    import torch

    from transfer import svm as ours

    how: dict[str, Any] = {"solver": "newton", "device": torch.device(device)}
    found = []

    def run() -> None:
        found.append(ours.cross_validate(x, labels, COSTS, folds=FOLDS, **how)[0])
        ours.fit_all(x, list(labels.T), [COSTS[i] for i in found[0].mean(axis=2).argmax(axis=1)], **how)

    return seconds(run, device), found[0]


def loop(x: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """The same of the loop."""
    import numpy as np
    from sklearn.model_selection import cross_val_score

    from transfer.svm import machine

    found = []

    def run() -> None:
        for y in labels.T:
            found.append(
                [cross_val_score(machine(cost), x, y, cv=FOLDS, scoring="average_precision") for cost in COSTS]
            )
            machine(COSTS[np.mean(found[-1], axis=1).argmax()]).fit(x, y)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return seconds(run, "cpu"), np.array(found)


def made(images: int, features: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, C) float32 and labels (N, K) of 1 and -1."""
    import numpy as np

    from transfer.svm import unit_rows

    rng = np.random.default_rng(0)
    share = np.clip(1.6 * rng.dirichlet(np.full(classes, 2.0)), 0.02 if images > 1000 else 0.1, 0.4)
    present = rng.random((images, classes)) < share
    hidden = min(256, features)
    scale = np.arange(1, hidden + 1) ** -0.5
    towards = 0.16 * rng.normal(size=(classes, hidden)) * scale**0.7
    z = rng.normal(size=(images, hidden)) * scale + present @ towards
    x = 0.8 * z @ rng.normal(size=(hidden, features)) + 0.9 * rng.normal(size=(images, features)) - 0.5
    return unit_rows(np.maximum(x, 0) ** 1.3).astype(np.float32), np.where(present, 1, -1).astype(np.int8)


ROWS = (Row("svm", "VOC07's SVMs, fits a second against VISSL's loop", svm, at_least=5),)
