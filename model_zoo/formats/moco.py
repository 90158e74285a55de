"""MoCo v1 and v2, PCL, AdCo, ReSim, MoCHi, MSF: `module.encoder_q.`, its momentum twin `encoder_k` and a queue.

The query encoder transfers (facebookresearch/moco, main_lincls.py); the twin, the queue and the head
`fc` are dropped. ReSSL has the network one level deeper (`encoder_q.net.`); MSF names the twin `encoder_t`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from model_zoo.architecture import Architecture
from model_zoo.formats import Extracted, prefixes, take, tensor_dicts, the_one

_PREFIXES = ("module.encoder_q.", "encoder_q.", "module.encoder_q.net.")
_DROP = ("encoder_q.fc.*", "encoder_q.head.*", "encoder_q.fpn*", "encoder_k.*", "encoder_t.*", "predict_q.*", "queue*")


def _query(tensors: Mapping[str, Tensor]) -> str | None:
    found = [prefix for prefix in prefixes(tensors) if prefix in _PREFIXES]
    return found[0] if len(found) == 1 else None


def matches(obj: Any) -> bool:
    """Return whether the file has a query encoder."""
    return any(_query(tensors) for _, tensors in tensor_dicts(obj))


def extract(obj: Any) -> Extracted:
    """Return the query encoder's tensors."""
    tensors = the_one(obj, _query)
    prefix = _query(tensors) or ""
    outer = prefix.partition("encoder_q.")[0]
    return take(tensors, prefix, [outer + name for name in _DROP])


def example(state: Mapping[str, Tensor], arch: Architecture) -> Any:
    """Return a file of this layout."""
    tensors = {f"module.encoder_q.{name}": tensor for name, tensor in state.items()}
    twin = {f"module.encoder_k.{name}": torch.zeros_like(tensor) for name, tensor in state.items()}
    extra = {"module.encoder_q.fc.0.weight": torch.zeros(8, 8), "module.queue": torch.zeros(8, 16)}
    return {"epoch": 200, "arch": arch.name, "state_dict": {**tensors, **twin, **extra}}
