"""Number types of a recipe: of the weights and of autocast."""

from __future__ import annotations

from typing import Any

import torch

from pretrain.config import PretrainConfig


def dtype(config: PretrainConfig) -> torch.dtype:
    """The type of weights and losses."""
    return torch.float64 if config.run.float64 else torch.float32


def autocast_fields(config: PretrainConfig) -> dict[str, Any]:
    """Arguments of `torch.autocast` for the recipe."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.run.amp)
    return {"dtype": dtype or torch.bfloat16, "enabled": dtype is not None}
