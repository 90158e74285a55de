"""torchvision's and timm's ResNet: bare names, a classifier `fc`; flat, or under `state_dict` or `model`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from model_zoo.architecture import Architecture
from model_zoo.formats import Extracted, prefixes, take, tensor_dicts, the_one

_DROP = ("fc.weight", "fc.bias")


def _bare(tensors: Mapping[str, Tensor]) -> bool:
    return list(prefixes(tensors)) == [""]


def matches(obj: Any) -> bool:
    """Return whether bare ResNet names are the only ones."""
    return any(_bare(tensors) for _, tensors in tensor_dicts(obj))


def extract(obj: Any) -> Extracted:
    """Return the tensors without the classifier."""
    return take(the_one(obj, _bare), "", _DROP)


def example(state: Mapping[str, Tensor], arch: Architecture) -> Any:
    """Return a file of this layout."""
    channels = next(reversed([t for n, t in state.items() if n.endswith("running_mean")])).shape[0]
    return {**state, "fc.weight": torch.zeros(1000, channels), "fc.bias": torch.zeros(1000)}
