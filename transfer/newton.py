"""Many linear SVMs at once by Newton's method in float64: the optimum that liblinear's LinearSVC approaches.

Each machine minimises |w|^2 / 2 + sum_i c_i max(0, 1 - y_i w.x_i)^2. Every row x_i ends in a 1 whose weight is the
intercept: liblinear regularises it too. While the active rows A, those with y_i w.x_i < 1, stay the same, the objective is
quadratic, and its minimum is w = X_A^T b with (X_A X_A^T + diag(1 / 2c)) b = y_A (Chapelle 2007, "Training a support vector
machine in the primal"). Steps go to these minima until the active rows repeat, which makes w exact (Keerthi and DeCoste
2005, modified finite Newton), or until the gradient is 1e-7 of what it was at w = 0.

A step is solved by Cholesky for one machine, or by conjugate gradients for all machines together, preconditioned by the
Hessian for all rows, which the machines share: at small costs nearly all rows are active, and a few iterations suffice. These
only shrink the gradient to a share of it, for which float32 is enough; the gradient and the weights are in float64. Machines
are the rows of every matrix: the product of few machines with X runs several times as fast as that of X^T with them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

MAX_STEPS = 100
_TOLERANCE = 1e-7  # of the gradient, relative to that of the weights 0
_FORCING = 0.03  # conjugate gradients reduce the gradient to this share: the active rows change before more would count
_MOST_ITERATIONS = 200  # of conjugate gradients in a step
_KERNEL_BYTES = 2**30  # up to this size the inner products of all rows are kept: 11,500 rows
_BLOCKS, _LEAST = 8, 256  # of rows whose inner products are computed at a time: how many, of how many rows at least


class Rows:
    """The rows of all machines (N, D) in float64, a last column of ones included, and what is computed of them once."""

    def __init__(self, x_NC: Tensor) -> None:
        self.x = torch.cat([x_NC.double(), x_NC.new_ones((len(x_NC), 1), dtype=torch.float64)], dim=1)
        self.square = float(self.x.pow(2).sum(dim=1).mean())

    @functools.cached_property
    def single(self) -> Tensor:
        """The rows in float32."""
        return self.x.float()

    @functools.cached_property
    def kernel(self) -> Tensor | None:
        """Inner products (N, N) of the rows; None if they would be too many."""
        return _products(self.x) if 8 * len(self.x) ** 2 <= _KERNEL_BYTES else None

    @functools.cached_property
    def gram(self) -> Tensor:
        """Inner products (D, D) of the columns."""
        return _products(self.x.T)

    def products(self, rows: Tensor) -> Tensor:
        """Inner products (n, n) of some rows."""
        if self.kernel is None:
            return self.x[rows] @ self.x[rows].T
        return self.kernel[rows[:, None], rows]


def minimise(
    rows: Rows, y_PN: Tensor, weight_PN: Tensor, cost: float, start_PD: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Fit P machines.

    Args:
        y_PN: 1 or -1; any number where the weight is 0.
        weight_PN: the cost of a row is `cost` times its weight; 0 leaves the row out.
        start_PD: weights to start from, such as those of a smaller cost.

    Returns:
        the weights (P, D), the intercept last, and for each machine whether it converged within MAX_STEPS.
    """
    x, count = rows.x, len(y_PN)
    w = x.new_zeros((count, x.shape[1])) if start_PD is None else start_PD.clone()
    f = w @ x.T
    enough = _TOLERANCE * (2 * cost * (weight_PN * y_PN) @ x).norm(dim=1)
    solver = _Solver(rows, cost)
    todo = torch.arange(count, device=x.device)
    converged = torch.zeros(count, dtype=torch.bool, device=x.device)
    for _ in range(MAX_STEPS):
        todo = todo[~converged[todo]]
        y, c = y_PN[todo], cost * weight_PN[todo]
        active = (y * f[todo] < 1) & (c > 0)
        gradient = w[todo] - 2 * (active * c * (y - f[todo])) @ x
        small = gradient.norm(dim=1) <= enough[todo]
        converged[todo] = small
        if bool(small.all()):
            break
        keep = ~small
        todo, y, c, active, gradient = todo[keep], y[keep], c[keep], active[keep], gradient[keep]
        step, exact = solver.step(y, c, active, w[todo], gradient, enough[todo])
        f_step = step @ x.T
        length = _line_search(w[todo], f[todo], step, f_step, y, c)
        w[todo] += length[:, None] * step
        f[todo] += length[:, None] * f_step
        same = (((y * f[todo] < 1) & (c > 0)) == active).all(dim=1)
        converged[todo] = exact & (length == 1) & same
    return w, converged


def fit_path(
    rows: Rows, y_PN: Tensor, weight_PN: Tensor, costs: Sequence[float]
) -> Iterator[tuple[float, Tensor, Tensor, Tensor]]:
    """Fit P machines, each for one cost and for smaller ones before it, which make the start.

    Yields:
        (cost, machines of that cost, their weights (n, D), whether each converged), costs ascending.
    """
    target = torch.tensor(costs, dtype=torch.float64, device=rows.x.device)
    w = rows.x.new_zeros((len(target), rows.x.shape[1]))
    for cost in steps_to(sorted(set(costs)), rows.square):
        going = (target >= cost).nonzero().squeeze(1)
        w[going], converged = minimise(rows, y_PN[going], weight_PN[going], cost, w[going])
        at_end = target[going] == cost
        if bool(at_end.any()):
            yield cost, going[at_end], w[going[at_end]], converged[at_end]


def steps_to(costs: Sequence[float], square: float) -> list[float]:
    """The costs, ascending, and others between and before them: no step is above tenfold, and the first is small.

    Args:
        square: mean squared length of the rows.
    """
    path = [min(costs[0], 0.02 / square)]
    for cost in costs:
        while cost > 10.5 * path[-1]:
            path.append(10 * path[-1])
        if cost > path[-1]:
            path.append(cost)
    return path


def _products(rows: Tensor) -> Tensor:
    """Inner products (n, n) of rows; those of two blocks of rows are computed once."""
    found = rows.new_empty((len(rows), len(rows)))
    size = max(_LEAST, -(-len(rows) // _BLOCKS))
    for start in range(0, len(rows), size):
        block = slice(start, start + size)
        found[block, :start] = found[:start, block].T
        torch.mm(rows[block], rows[start:].T, out=found[block, start:])
    return found


class _Solver:
    """Newton steps for machines of one cost."""

    def __init__(self, rows: Rows, cost: float) -> None:
        self.rows, self.cost = rows, cost
        self.iterations = 2 + 6.0 * (cost * rows.square) ** 0.5  # expected; then as many as the last step took
        self.inverse: Tensor | None = None  # of the preconditioner (D, D), float32

    def step(
        self, y: Tensor, c: Tensor, active: Tensor, w: Tensor, gradient: Tensor, enough: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the steps (P, D) to the minima for these active rows, and whether each leads there exactly."""
        n, d = self.rows.x.shape
        count = active.sum(dim=1).double()
        # Operations. Cholesky runs at half the speed of the products for all machines; its matrix is gathered first.
        dual = 2 * count**3 / 3 + 200 * count**2 + (0 if self.rows.kernel is not None else 2 * count**2 * d)
        primal = 2 * count * d**2 + 2 * d**3 / 3
        once = 0.0 if self.inverse is not None else d**3 + (0 if "gram" in vars(self.rows) else 1.0 * n * d**2)
        conjugate = self.iterations * (2.0 * n * d + d * d) + once / len(w)  # float32: at twice the speed
        together = conjugate < torch.minimum(dual, primal)
        step = torch.empty_like(w)
        if bool(together.any()):
            some = together.nonzero().squeeze(1)
            step[some] = self._together((2 * c * active)[some], gradient[some], enough[some])
        apart = (~together).nonzero().squeeze(1)
        b = w.new_zeros((len(apart), n))
        for i, p in enumerate(apart.tolist()):
            chosen = active[p].nonzero().squeeze(1)
            solve = _dual if dual[p] <= primal[p] else _primal
            b[i, chosen] = solve(self.rows, chosen, y[p, chosen], c[p, chosen])
        step[apart] = b @ self.rows.x - w[apart]
        return step, ~together

    def _together(self, curvature: Tensor, gradient: Tensor, enough: Tensor) -> Tensor:
        """Solve (1 + X^T diag(curvature) X) step = -gradient by conjugate gradients, up to a share of the gradient."""
        x = self.rows.single
        if self.inverse is None:
            matrix = float(curvature.sum(dim=1).mean()) / len(x) * self.rows.gram
            matrix.diagonal().add_(1)
            self.inverse = torch.cholesky_inverse(torch.linalg.cholesky(matrix)).float()
        scale = gradient.norm(dim=1, keepdim=True)  # a gradient of any length is in float32's range
        bound = torch.maximum(_FORCING * scale, enough[:, None] / 3) / scale
        curvature, residual = curvature.float(), (-gradient / scale).float()
        step = torch.zeros_like(residual)
        direction = towards = residual @ self.inverse
        square = (residual * towards).sum(dim=1, keepdim=True)
        done = 0
        while bool((going := residual.norm(dim=1, keepdim=True) > bound).any()) and done < _MOST_ITERATIONS:
            product = direction + (curvature * (direction @ x.T)) @ x
            length = torch.where(going, square / (direction * product).sum(dim=1, keepdim=True), 0.0)
            step += length * direction
            residual = residual - length * product
            towards = residual @ self.inverse
            before, square = square, (residual * towards).sum(dim=1, keepdim=True)
            direction = towards + torch.where(going, square / before, 0.0) * direction
            done += 1
        self.iterations = float(done)
        return scale * step.double()


def _dual(rows: Rows, chosen: Tensor, y: Tensor, c: Tensor) -> Tensor:
    """The b (n,) of the active rows, by a system as large as their number."""
    matrix = rows.products(chosen)
    matrix.diagonal().add_(1 / (2 * c))
    return torch.cholesky_solve(y[:, None], torch.linalg.cholesky(matrix))[:, 0]


def _primal(rows: Rows, chosen: Tensor, y: Tensor, c: Tensor) -> Tensor:
    """The same, by a system as large as the number of features."""
    x = rows.x[chosen]
    matrix = x.T @ (2 * c[:, None] * x)
    matrix.diagonal().add_(1)
    w = torch.cholesky_solve(x.T @ (2 * c * y)[:, None], torch.linalg.cholesky(matrix))[:, 0]
    return 2 * c * (y - x @ w)


def _line_search(w: Tensor, f: Tensor, dw: Tensor, df: Tensor, y: Tensor, c: Tensor) -> Tensor:
    """Step lengths (P,): 1, halved until the objective falls by a share of what its slope promises (Armijo)."""
    length = w.new_ones(len(w))
    start = _objective(w, f, y, c)
    slope = (w * dw).sum(dim=1) - 2 * (c * y * (1 - y * f).clamp_min(0) * df).sum(dim=1)
    for _ in range(40):
        along = length[:, None]
        above = _objective(w + along * dw, f + along * df, y, c) > start * (1 + 1e-12) + 1e-4 * length * slope
        if not bool(above.any()):
            break
        length = torch.where(above, length / 2, length)
    return length


def _objective(w: Tensor, f: Tensor, y: Tensor, c: Tensor) -> Tensor:
    return w.pow(2).sum(dim=1) / 2 + (c * (1 - y * f).clamp_min(0).pow(2)).sum(dim=1)
