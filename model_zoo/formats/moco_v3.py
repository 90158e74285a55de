"""MoCo v3's ResNet: `state_dict` with `module.base_encoder.`, its twin `momentum_encoder` and a predictor.

The base encoder transfers (facebookresearch/moco-v3, main_lincls.py); its `fc` is the projector.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from model_zoo.architecture import Architecture
from model_zoo.formats import Extracted, prefixes, take, tensor_dicts, the_one

_PREFIXES = ("module.base_encoder.", "base_encoder.")


def _base(tensors: Mapping[str, Tensor]) -> str | None:
    found = [prefix for prefix in prefixes(tensors) if prefix in _PREFIXES]
    return found[0] if len(found) == 1 else None


def matches(obj: Any) -> bool:
    """Return whether the file has a base encoder."""
    return any(_base(tensors) for _, tensors in tensor_dicts(obj))


def extract(obj: Any) -> Extracted:
    """Return the base encoder's tensors."""
    tensors = the_one(obj, _base)
    prefix = _base(tensors) or ""
    outer = prefix.removesuffix("base_encoder.")
    return take(tensors, prefix, (f"{prefix}fc.*", f"{outer}momentum_encoder.*", f"{outer}predictor.*"))


def example(state: Mapping[str, Tensor], arch: Architecture) -> Any:
    """Return a file of this layout."""
    tensors = {f"module.base_encoder.{name}": tensor for name, tensor in state.items()}
    twin = {f"module.momentum_encoder.{name}": torch.zeros_like(tensor) for name, tensor in state.items()}
    heads = {f"module.{name}.0.weight": torch.zeros(8, 8) for name in ("base_encoder.fc", "predictor")}
    return {"epoch": 300, "arch": arch.name, "state_dict": {**tensors, **twin, **heads}, "scaler": {"scale": 1.0}}
