"""The linear rule for another batch: rate x k, iterations and milestones / k (Goyal et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Protocol


class Schedule(Protocol):
    """The fields of a spec that the rule scales."""

    @property
    def batch(self) -> int: ...
    @property
    def lr(self) -> float: ...
    @property
    def iterations(self) -> int: ...
    @property
    def milestones(self) -> tuple[int, ...]: ...


def refuse_unsorted(milestones: Sequence[int]) -> None:
    """Raise ValueError if the iterations do not rise."""
    if any(later <= earlier for earlier, later in pairwise(milestones)):
        raise ValueError(f"milestones={list(milestones)} do not rise; give each iteration once, in order")


def scaled_fields(spec: Schedule, batch: int) -> dict[str, Any]:
    """Return batch, rate, iterations and milestones for another batch: the number of images seen stays."""
    k, milestones = batch / spec.batch, [0]
    for m in spec.milestones:  # if rounding makes two equal, the second moves by one: every drop stays
        milestones.append(max(milestones[-1] + 1, round(m / k)))
    return {
        "batch": batch,
        "lr": spec.lr * k,
        "iterations": max(1, round(spec.iterations / k)),
        "milestones": tuple(milestones[1:]),
    }
