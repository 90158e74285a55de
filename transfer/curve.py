"""Learning curve of a training: mean training losses at some 100 to 300 points. No number depends on it.

A point is the mean over all images since the point before. No point spans the end of an epoch, where states are saved, so a
resumed training has the curve of an uninterrupted one.
"""

from __future__ import annotations

import math

from torch import Tensor

from backbench.distributed import all_reduce_sum

_POINTS = 100  # at least, where there are as many steps
_EPOCHS = 200  # the most whole epochs that are kept


class Curve:
    """Losses of every head by epoch.

    Args:
        steps: an epoch's.
        total: the whole training's.
    """

    def __init__(self, steps: int, total: int) -> None:
        self.points: list[list[float]] = []  # epochs done, then every head's loss
        self._steps, self._total = steps, total
        self._every = max(1, min(steps, total // _POINTS))
        self._kept = -(-total // (steps * _EPOCHS))  # of so many epochs the last is kept
        self._sum: Tensor | None = None
        self._images = 0

    def add(self, losses: Tensor, size: int) -> None:
        """Add a step's losses (H,): this rank's share of every head's mean over `size` images. Nothing is synchronised."""
        share = losses.detach() * size
        self._sum = share if self._sum is None else self._sum + share
        self._images += size

    def close(self, step: int) -> None:
        """End the point after a step (0-based) if it is due. Every rank must call it after every step."""
        done, within, is_last = step + 1, step % self._steps + 1, step + 1 == self._total
        if within % self._every and within != self._steps and not is_last:
            return
        if self._sum is not None and (is_last or -(-done // self._steps) % self._kept == 0):
            losses = (all_reduce_sum(self._sum) / self._images).tolist()
            self.points.append([done / self._steps, *losses])
        self._sum, self._images = None, 0

    def of(self, head: int) -> list[dict[str, float]]:
        """Return one head's `epoch` and `loss` at every point where it is finite, rounded."""
        pairs = ((point[0], point[1 + head]) for point in self.points)
        return [
            {"epoch": round(epoch, 4), "loss": float(f"{loss:.6g}")} for epoch, loss in pairs if math.isfinite(loss)
        ]
