"""MMEngine's schedules of a configuration as one part of a course. MMDetection and MMSegmentation use it."""

from __future__ import annotations

from typing import Any

import torch


class Schedules(list[Any]):
    """Several schedulers with the interface of one."""

    def step(self) -> None:
        """Advance all by one iteration."""
        for scheduler in self:
            scheduler.step()

    def state_dict(self) -> list[dict[str, Any]]:
        """Return the list of states, as in mmengine's own checkpoints."""
        return [scheduler.state_dict() for scheduler in self]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Load the list of states."""
        for scheduler, state in zip(self, states, strict=True):
            scheduler.load_state_dict(state)


def schedules(cfg: Any, optimizer: torch.optim.Optimizer) -> Schedules:
    """Build the schedulers in `cfg.param_scheduler`."""
    from mmengine.registry import PARAM_SCHEDULERS

    return Schedules(
        PARAM_SCHEDULERS.build(dict(fields), default_args={"optimizer": optimizer}) for fields in cfg.param_scheduler
    )
