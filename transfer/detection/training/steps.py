"""Shared by all engines: log of losses, error for losses that are not finite, PreciseBN."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from backbench import distributed, jsonl, trackers
from backbench.errors import BackbenchError, writing


def log(file: Path, iteration: int, losses: dict[str, float], rate: float) -> None:
    """Write one line of `losses.jsonl` with means over the ranks. Every rank must call it."""
    shares = distributed.gather(losses)
    if distributed.is_main():
        means = {name: sum(share.get(name, 0.0) for share in shares) / len(shares) for name in losses}
        values = {"iteration": iteration, "total": sum(means.values()), **means, "lr": rate}
        with writing(file), file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(values) + "\n")
        trackers.log({name: value for name, value in values.items() if name != "iteration"}, iteration)


def cut(file: Path, start: int) -> None:
    """Drop lines of iterations that a resumed run repeats, and an incomplete last line of a killed run."""
    if distributed.is_main():
        jsonl.cut(file, "iteration", start)


def refuse_not_finite(total: Tensor, losses: dict[str, float], iteration: int, rate: float, saved: Path | None) -> None:
    """Stop all ranks at the same iteration if the loss of any rank is NaN or infinite.

    Raises:
        BackbenchError: a loss is not finite; names iteration, rate, losses and the last good checkpoint.
    """
    if bool(distributed.any_rank(~torch.isfinite(total.detach()).reshape(1))):
        raise diverged(losses, iteration, rate, saved)


def diverged(losses: dict[str, float], iteration: int, rate: float, saved: Path | None) -> BackbenchError:
    """Return the error for a loss that is not finite. It uses no collective, because it may concern one rank only."""
    last = f"the last good checkpoint is {saved}" if saved is not None else "no checkpoint yet"
    return BackbenchError(f"a loss is not finite at iteration {iteration}, rate {rate:g}: {losses}; {last}")


def rate(optimizer: torch.optim.Optimizer) -> float:
    """Return the largest learning rate of the parameter groups."""
    return max(group["lr"] for group in optimizer.param_groups)


def parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """Return the model in train mode; with several processes, its gradients are averaged over them."""
    return distributed.wrapped(model.train(), device, unused=True)


class _Moments:
    """Mean and mean square of a BatchNorm's input over several batches, weighted by values per channel."""

    def __init__(self, norm: _BatchNorm) -> None:
        self.norm, self.momentum, self.values = norm, norm.momentum, 0
        self.count = 0.0
        self.mean = torch.zeros(norm.num_features, dtype=torch.float64, device=self.running[0].device)
        self.square = torch.zeros_like(self.mean)
        norm.momentum = 1.0  # the running statistics become those of the last batch
        self.hook = norm.register_forward_pre_hook(self._count)

    @property
    def running(self) -> tuple[Tensor, Tensor]:
        """Running mean and variance of the norm."""
        mean, var = self.norm.running_mean, self.norm.running_var
        assert mean is not None and var is not None, "only norms with running statistics are used"
        return mean, var

    def _count(self, _norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.values = inputs[0].numel() // inputs[0].shape[1]

    def add(self, values: float) -> None:
        """Add the last batch, whose statistics the norm holds. torch stores the unbiased variance."""
        if values:
            mean, var = (statistic.double() for statistic in self.running)
            self.count += values
            self.mean = self.mean + (mean - self.mean) * (values / self.count)
            square = mean.square() + var * ((values - 1) / values)
            self.square = self.square + (square - self.square) * (values / self.count)

    def finish(self) -> None:
        """Restore the momentum, and write the moments to the norm if it was used."""
        self.hook.remove()
        self.norm.momentum = self.momentum
        if self.count:
            mean, var = self.running
            mean.copy_(self.mean)
            var.copy_(self.square - self.mean.square())


@torch.no_grad()
def precise_statistics(model: nn.Module, forward: Callable[[Any], object], batches: Iterable[Any], count: int) -> None:
    """Recompute BatchNorm's statistics over `count` batches with fixed weights (Wu & Johnson 2021, section 3).

    It computes the population variance, as fvcore/nn/precise_bn.py, for every norm in train mode. Batches are weighted by
    their values over all ranks; otherwise ranks with images of other sizes would get other statistics.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    moments = [_Moments(m) for m in norms if m.training and m.track_running_stats]
    if not moments:
        return
    device = moments[0].mean.device
    try:
        for batch in islice(batches, count):
            for one in moments:
                one.values = 0
            forward(batch)
            values = torch.tensor([one.values for one in moments], dtype=torch.float64, device=device)
            for one, total in zip(moments, distributed.all_reduce_sum(values).tolist(), strict=True):
                one.add(total)
    finally:
        for one in moments:
            one.finish()


def rle(mask: np.ndarray) -> dict[str, Any]:
    """Return COCO's run-length encoding of an (H, W) bool mask, as plain JSON values."""
    from pycocotools import mask as coco_mask

    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(n) for n in encoded["size"]], "counts": encoded["counts"].decode("ascii")}
