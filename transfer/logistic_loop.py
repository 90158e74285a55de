"""The loop of ssl-transfer's linear.py: scikit-learn's LogisticRegression, each penalty from the weights of the weaker one.

The same interface as `logistic.py`, on the features as they are. The number of iterations matters: at weak penalties the loop
stops long before the optimum. The source ran scikit-learn 0.22, which compared the gradient of the *sum* of the losses with
1e-4, and penalised both classes of a binary problem; newer versions get the same limits here.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from transfer.logistic import Fit

_TOLERANCE = 1e-4  # scikit-learn's default


class Rows:
    """Rows as they are, (N, C + 1) float64 with a last column of ones."""

    def __init__(self, x_NC: Tensor) -> None:
        self.z = self.project(x_NC)

    def project(self, x_NC: Tensor) -> Tensor:
        """Return any rows in this form."""
        return torch.cat([x_NC.double().cpu(), torch.ones((len(x_NC), 1), dtype=torch.float64)], dim=1)


def fit_path(rows: Rows, y_NB: Tensor, classes: int, penalties: Sequence[float], *, iterations: int) -> Iterator[Fit]:
    """Fit as `logistic.fit_path`, but from the weakest penalty to the strongest.

    A class without a row never wins: its weights are zero and its intercept is minus infinity.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    x, labels = rows.z[:, :-1].numpy(), y_NB.cpu().numpy()
    tolerance = _TOLERANCE / len(x)
    loops = [LogisticRegression(tol=tolerance, max_iter=iterations, warm_start=True) for _ in labels.T]
    for penalty in sorted(set(penalties)):
        theta = torch.zeros((len(loops), classes, x.shape[1] + 1), dtype=torch.float64)
        theta[:, :, -1] = -torch.inf
        unfinished = 0
        for one, loop, y in zip(theta, loops, labels.T, strict=True):
            binary = len(np.unique(y)) == 2
            loop.set_params(C=(2 if binary else 1) / penalty)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # the caller counts it
                loop.fit(x, y)
            unfinished += int(loop.n_iter_[0] >= iterations)
            plane = torch.from_numpy(np.column_stack([loop.coef_, loop.intercept_]))
            one[torch.from_numpy(loop.classes_)] = torch.cat([-plane, plane]) / 2 if binary else plane
        yield Fit(penalty, theta, unfinished)
