"""A network and its course from a configuration of MMEngine. MMDetection and MMSegmentation use it."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import pprint
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from backbench.errors import BackbenchError
from transfer.detection.adapt import (
    detectron2_v06,
    mmcv_lite,
    mmengine_resume,
    mmengine_warnings,
    notices,
    text_models,
)
from transfer.detection.training.course import Course


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


def prepare(parts: str, scope: str) -> None:
    """Apply the adaptations, import the module that registers missing parts, and make the scope's registries the default."""
    notices.apply()
    if importlib.util.find_spec("detectron2") is not None:
        detectron2_v06.apply()  # an installed mmdet imports it, and mmseg imports an installed mmdet
    mmcv_lite.apply()
    mmengine_resume.apply()
    with text_models.left_out():
        from mmengine.registry import init_default_scope

        importlib.import_module(parts)
    init_default_scope(scope)


def built(cfg: Any, models: Any) -> nn.Module:
    """Build `cfg.model` from an engine's registry, with the backbone's exported weights.

    Raises:
        BackbenchError: the exported file has no tensor of the backbone.
    """
    mmengine_warnings.quiet()
    with contextlib.redirect_stdout(io.StringIO()):
        model: nn.Module = models.build(cfg.model)
        try:
            model.init_weights()  # type: ignore[operator]
        except AssertionError as error:  # mmengine found no tensor below the prefix
            raise BackbenchError(f"{cfg.model.backbone.init_cfg.checkpoint}: {error}") from None
    return model


def native_text(cfg: Any) -> str:
    """Return the configuration as Python that MMEngine reads. Its own `pretty_text` takes a second for the layout."""
    values = cfg.to_dict().items()
    return "".join(f"{key} = {pprint.pformat(value, width=120, sort_dicts=False)}\n" for key, value in values)


def new(
    label: str,
    cfg: Any,
    build: Callable[[], nn.Module],
    losses: Callable[[Any, Any, nn.Module | None], dict[str, Tensor]],
    loader: Callable[[int], Iterator[Any]],
    seed: int,
) -> Course:
    """Build a network with its optimiser and schedule.

    Args:
        build: makes the network, after the random numbers are seeded.
        losses: (network, batch, forward) -> losses.
        loader: batches from an iteration on.
    """
    from mmengine.optim import build_optim_wrapper
    from mmengine.runner import set_random_seed

    set_random_seed(seed)
    model = build()
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    schedulers = schedules(cfg, optimizer)
    return Course(
        label=label,
        model=model,
        optimizer=optimizer,
        parts={"state_dict": model, "optimizer": optimizer, "param_schedulers": schedulers},
        advance=schedulers.step,
        losses=lambda forward, batch: losses(model, batch, forward),
        loader=loader,
        seed=lambda start: set_random_seed((seed + 7919 * start) % 2**31, diff_rank_seed=True),
    )


def schedules(cfg: Any, optimizer: torch.optim.Optimizer) -> Schedules:
    """Build the schedulers in `cfg.param_scheduler`."""
    from mmengine.registry import PARAM_SCHEDULERS

    return Schedules(
        PARAM_SCHEDULERS.build(dict(fields), default_args={"optimizer": optimizer}) for fields in cfg.param_scheduler
    )
