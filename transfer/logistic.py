"""Logistic regressions for a list of penalties by L-BFGS on the device, from the strongest penalty to the weakest.

Each minimises sum_i loss_i + penalty / 2 |W|^2 without a penalty on the intercepts: scikit-learn's LogisticRegression with
C = 1 / penalty. Where scikit-learn takes thousands of iterations for 45 penalties, this takes some hundred, for three reasons
that leave the optimum where it is:

- Rows are centred and rotated to their principal axes. There the Hessian is nearly diagonal, and its diagonal, the mean of
  p (1 - p) times the squared length of the axis plus the penalty, starts the L-BFGS recursion (Nocedal and Wright, Numerical
  Optimization, algorithm 7.4). A rotation keeps |W|, and the intercepts take up the means.
- A penalty starts on the line through the solutions of the two before it and inherits their pairs (s, y): another penalty
  adds a multiple of s to y.
- Logits are linear in the step length, so a line search needs no matrix product; an iteration has two.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MEMORY = 10  # pairs (s, y) of the recursion
_TOLERANCE = 3e-7  # converged: the next step would lower the objective by less than this share of it,
_FLOOR = 1e-4  # or than this share of this loss per row, far below where an answer changes
_SEARCHES = 12  # at most so many step lengths are tried
_FLAT = 0.1  # a step length will do when the slope has fallen to this share
_RANK = 1e-12  # axes below this share of the largest squared length are rounding errors of float32 features
_CHUNK = 2**24  # numbers that are worked on at a time


@dataclass(frozen=True)
class Fit:
    """B regressions of one penalty, each with K classes."""

    penalty: float
    theta: Tensor  # (B, K, R + 1): weights of the projected features, the intercept last
    unfinished: int  # how many stopped before they converged

    def scores(self, z_NR: Tensor) -> Tensor:
        """Return logits (N, B, K) of projected rows."""
        return (z_NR @ self.theta.flatten(0, 1).T).unflatten(1, self.theta.shape[:2])


class Rows:
    """Rows in their principal axes, (N, R + 1) float32 with a last column of ones.

    Args:
        x_NC: float32, on any device; it is sent to `device` in parts.
    """

    def __init__(self, x_NC: Tensor, device: torch.device) -> None:
        self._chunk = max(1, _CHUNK // x_NC.shape[1])
        parts = x_NC.split(self._chunk)
        self.mean = torch.stack([part.to(device).double().sum(dim=0) for part in parts]).sum(dim=0) / len(x_NC)
        if len(x_NC) < x_NC.shape[1]:
            centred = torch.cat(list(self._centred(x_NC)))
            square, axes = _significant(centred @ centred.T)
            self.axes = centred.T @ axes / square.sqrt()  # (C, R) float64, columns of length 1
            self.z = _with_ones(axes * square.sqrt())
        else:
            products = (part.T @ part for part in self._centred(x_NC))
            square, self.axes = _significant(functools.reduce(torch.Tensor.add_, products))
            self.z = self.project(x_NC)
        self.square = torch.cat([square, square.new_full((1,), len(x_NC))]).float()  # squared length of each column
        self.penalised = torch.ones_like(self.square)
        self.penalised[-1] = 0

    def _centred(self, x_NC: Tensor) -> Iterator[Tensor]:
        return (part.to(self.mean) - self.mean for part in x_NC.split(self._chunk))

    def project(self, x_NC: Tensor) -> Tensor:
        """Return any rows in these axes, (N, R + 1) float32 with a last column of ones."""
        return torch.cat([_with_ones(part @ self.axes) for part in self._centred(x_NC)])


def _with_ones(z: Tensor) -> Tensor:
    return torch.cat([z, z.new_ones((*z.shape[:-1], 1))], dim=-1).float()


def _significant(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues of a symmetric matrix that are not rounding errors, at least one, and their vectors."""
    values, vectors = torch.linalg.eigh(matrix)
    kept = values > _RANK * values[-1]
    kept[-1] = True
    return values[kept].clamp_min(torch.finfo(torch.float32).tiny), vectors[:, kept]


def fit_path(rows: Rows, y_NB: Tensor, classes: int, penalties: Sequence[float], *, iterations: int) -> Iterator[Fit]:
    """Fit B regressions on the same rows for every penalty.

    Args:
        y_NB: int64 labels below `classes`, a column for each regression.
        penalties: in any order.
        iterations: at most so many for one penalty.

    Yields:
        the fits, from the strongest penalty to the weakest.
    """
    problem = _Problem(rows, y_NB.to(rows.z.device), classes)
    theta = before = rows.z.new_zeros((y_NB.shape[1], classes, rows.z.shape[1]))
    pairs = _Pairs()
    path = sorted(set(penalties), reverse=True)
    for place, penalty in enumerate(path):
        start = theta
        if place >= 2:
            start = theta + _ahead(path[place - 2 : place + 1]) * (theta - before)
        if place:
            pairs.move((penalty - path[place - 1]) * rows.penalised)
        before = theta
        theta, converged = _minimise(problem, penalty, start, pairs, iterations)
        yield Fit(penalty, theta, int((~converged).sum()))


def _ahead(penalties: Sequence[float]) -> float:
    """Return how far the third of three penalties is from the second, in steps from the first to the second (logarithms)."""
    first, second, third = map(math.log, penalties)
    return min(2.0, (third - second) / (second - first))


class _Problem:
    """Loss of B softmax classifiers with K classes on all rows; logits are (N, B, K)."""

    def __init__(self, rows: Rows | _RowsApart, y_NB: Tensor, classes: int) -> None:
        self.rows, self.y, self.classes = rows, y_NB[:, :, None], classes
        self._chunk = max(1, _CHUNK // (y_NB.shape[1] * classes))

    def logits(self, theta_BKR: Tensor) -> Tensor:
        return (self.rows.z @ theta_BKR.flatten(0, 1).T).unflatten(1, (-1, self.classes))

    def loss(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return losses (B,), gradients (B, K, R + 1), and the means of p (1 - p), (B, K)."""
        losses = logits.new_zeros(logits.shape[1])
        gradient = logits.new_zeros((*logits.shape[1:], self.rows.z.shape[-1]))
        spread = logits.new_zeros(logits.shape[1:])
        for part, y, z in zip(*(each.split(self._chunk) for each in (logits, self.y, self.rows.z)), strict=True):
            p = part.log_softmax(dim=2)
            losses -= p.gather(2, y).sum(dim=(0, 2))
            p.exp_()
            spread += (p - p * p).sum(dim=0)
            p.scatter_add_(2, y, p.new_full((1, 1, 1), -1.0).expand(y.shape))
            gradient += self._products(p, z)
        return losses, gradient, spread / len(logits)

    def _products(self, p_NBK: Tensor, z: Tensor) -> Tensor:
        """Return the sums over rows of p z^T, (B, K, R + 1)."""
        return (p_NBK.flatten(1).T @ z).unflatten(0, p_NBK.shape[1:])

    def along(self, logits: Tensor, change: Tensor, length_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return first and second derivatives (B,) of the losses by the step length."""
        first, second = torch.zeros_like(length_B), torch.zeros_like(length_B)
        for part, d, y in zip(*(each.split(self._chunk) for each in (logits, change, self.y)), strict=True):
            pd = torch.addcmul(part, d, length_B[:, None]).softmax(dim=2).mul_(d)
            mean = pd.sum(dim=2)
            first += (mean - d.gather(2, y).squeeze(2)).sum(dim=0)
            second += pd.mul_(d).sum(dim=(0, 2)) - (mean * mean).sum(dim=0)
        return first, second


class _RowsApart:
    """Rows of B problems, each in its own principal axes, (N, B, R + 1); few rows, so R = N."""

    def __init__(self, x_BNC: Tensor) -> None:
        self.mean = x_BNC.double().mean(dim=1, keepdim=True)
        centred = x_BNC.double() - self.mean
        square, axes = torch.linalg.eigh(centred @ centred.mT)
        square = square * (square > _RANK * square[:, -1:])
        length = square.sqrt()[:, None]
        self.axes = centred.mT @ torch.where(length > 0, axes / length, 0.0)  # (B, C, R)
        self.z = _with_ones(axes * length).transpose(0, 1)
        self.square = torch.cat([square, torch.full_like(square[:, :1], x_BNC.shape[1])], dim=1).float()[:, None]
        self.penalised = torch.ones_like(self.square[0, 0])
        self.penalised[-1] = 0

    def project(self, x_BMC: Tensor) -> Tensor:
        return _with_ones((x_BMC.double() - self.mean) @ self.axes).transpose(0, 1)


class _ProblemApart(_Problem):
    """The same losses, each classifier on rows of its own."""

    def logits(self, theta_BKR: Tensor) -> Tensor:
        return _logits_apart(self.rows.z, theta_BKR)

    def _products(self, p_NBK: Tensor, z: Tensor) -> Tensor:
        return p_NBK.permute(1, 2, 0) @ z.transpose(0, 1)


def _logits_apart(z_NBR: Tensor, theta_BKR: Tensor) -> Tensor:
    return (z_NBR.transpose(0, 1) @ theta_BKR.mT).transpose(0, 1)


def scores_apart(
    x_BNC: Tensor, y_BN: Tensor, other_BMC: Tensor, classes: int, penalty: float, *, iterations: int
) -> tuple[Tensor, int]:
    """Fit B regressions, each on its own N rows, few beside the C features; all on the device of the features.

    Returns:
        logits (M, B, K) of M other rows of each, and how many fits stopped before they converged.
    """
    rows = _RowsApart(x_BNC)
    problem = _ProblemApart(rows, y_BN.T, classes)
    start = rows.z.new_zeros((len(x_BNC), classes, rows.z.shape[2]))
    theta, converged = _minimise(problem, penalty, start, _Pairs(), iterations)
    return _logits_apart(rows.project(other_BMC), theta), int((~converged).sum())


class _Pairs:
    """The last steps s and changes of the gradient y, each (B, K, R + 1)."""

    def __init__(self) -> None:
        self._kept: list[tuple[Tensor, Tensor, Tensor]] = []  # s, y, 1 / s.y; 0 where s.y is not positive

    def add(self, s: Tensor, y: Tensor) -> None:
        curvature = _dot(s, y)
        self._kept.append((s, y, torch.where(curvature > 0, 1 / curvature, 0.0)))
        del self._kept[:-MEMORY]

    def move(self, penalty_R: Tensor) -> None:
        """Add a penalty to the Hessian that the pairs describe."""
        before, self._kept = self._kept, []
        for s, y, _ in before:
            self.add(s, y + penalty_R * s)

    def step(self, gradient: Tensor, diagonal: Tensor) -> Tensor:
        """Return minus the inverse Hessian times the gradient; `diagonal` is the Hessian to start from, up to a factor."""
        q, shares = gradient.clone(), []
        for s, y, inverse in reversed(self._kept):
            shares.append(inverse * _dot(s, q))
            q -= shares[-1][:, None, None] * y
        q /= diagonal
        if self._kept:
            s, y, inverse = self._kept[-1]
            q *= torch.where(inverse > 0, _dot(s, y) / _dot(y, y / diagonal), 1.0)[:, None, None]
        for (s, y, inverse), share in zip(self._kept, reversed(shares), strict=True):
            q += (share - inverse * _dot(y, q))[:, None, None] * s
        return -q


def _minimise(
    problem: _Problem, penalty: float, theta: Tensor, pairs: _Pairs, iterations: int
) -> tuple[Tensor, Tensor]:
    """Return the parameters (B, K, R + 1) and which regressions converged, (B,) bool. Adds to the pairs."""
    rows, weighed = problem.rows, penalty * problem.rows.penalised
    logits = problem.logits(theta)
    losses, slope, spread = problem.loss(logits)
    gradient = slope + weighed * theta
    for done in itertools.count():
        diagonal = spread.clamp_min(1e-12)[:, :, None] * rows.square + weighed
        step = pairs.step(gradient, diagonal)
        descent = -_dot(gradient, step)  # twice what the step is expected to gain
        objective = losses + _dot(theta, weighed * theta) / 2
        going = descent > 2 * _TOLERANCE * objective.clamp_min(_FLOOR * len(logits))
        if done == iterations or not bool(going.any()):
            return theta, ~going
        step *= going[:, None, None]
        change = problem.logits(step)
        length = going * _length(
            problem, logits, change, descent, going, _dot(theta, weighed * step), _dot(step, weighed * step)
        )
        step *= length[:, None, None]
        theta = theta + step
        logits.addcmul_(change, length[:, None])
        losses, slope, spread = problem.loss(logits)
        before, gradient = gradient, slope + weighed * theta
        pairs.add(step, gradient - before)
    raise AssertionError("unreachable")


def _length(
    problem: _Problem, logits: Tensor, change: Tensor, descent: Tensor, going: Tensor, first: Tensor, second: Tensor
) -> Tensor:
    """Return step lengths (B,) where the slope along the step has nearly vanished, by Newton's method between bounds.

    Args:
        first: the penalty's derivative at length 0.
        second: its second derivative.
    """
    length, low, high = torch.ones_like(descent), torch.zeros_like(descent), torch.full_like(descent, torch.inf)
    for _ in range(_SEARCHES):
        slope, curvature = problem.along(logits, change, length)
        slope, curvature = slope + first + length * second, curvature + second
        found = (slope.abs() <= _FLAT * descent) | ~going
        if bool(found.all()):
            break
        low, high = torch.where(slope < 0, length, low), torch.where(slope > 0, length, high)
        newton = torch.minimum(length - slope / curvature, 10 * length)
        middle = torch.where(high.isinf(), 2 * length, (low + high) / 2)
        length = torch.where(found, length, torch.where((newton > low) & (newton < high), newton, middle))
    return length


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of each regression's parameters, (B,)."""
    return (a * b).sum(dim=(1, 2))
