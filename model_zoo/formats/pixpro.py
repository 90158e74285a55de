"""PixPro and SoCo: `model` with `module.encoder.` and its momentum twin `module.encoder_k.`.

`encoder` transfers (zdaxie/PixPro, transfer/detection/convert_pretrain_to_d2.py); twin, projectors and the
pixel-to-propagation module's `value_transform` are dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from model_zoo.architecture import Architecture
from model_zoo.formats import Extracted, prefixes, take, tensor_dicts, the_one

_DROP = ("encoder.fc.*", "encoder_k.*", "projector.*", "projector_k.*", "projector_instance*", "predictor.*",
         "value_transform.*", "queue*")  # fmt: skip


def _outer(tensors: Mapping[str, Tensor]) -> str | None:
    found = prefixes(tensors)
    return next((o for o in ("module.", "") if f"{o}encoder." in found and f"{o}encoder_k." in found), None)


def _has_both(tensors: Mapping[str, Tensor]) -> bool:
    return _outer(tensors) is not None


def matches(obj: Any) -> bool:
    """Return whether the file has an encoder and its twin."""
    return any(_has_both(tensors) for _, tensors in tensor_dicts(obj))


def extract(obj: Any) -> Extracted:
    """Return the encoder's tensors."""
    tensors = the_one(obj, _has_both)
    outer = _outer(tensors) or ""
    return take(tensors, f"{outer}encoder.", [outer + name for name in _DROP])


def example(state: Mapping[str, Tensor], arch: Architecture) -> Any:
    """Return a file of this layout."""
    tensors = {f"module.encoder.{name}": tensor for name, tensor in state.items()}
    twin = {f"module.encoder_k.{name}": torch.zeros_like(tensor) for name, tensor in state.items()}
    return {"model": {**tensors, **twin, "module.value_transform.weight": torch.zeros(8, 8)}, "epoch": 400}
