"""VISSL's trunks: `_feature_blocks.` deep in `classy_state_dict`, or under `model_state_dict` in converted files.

The keys are from facebookresearch/vissl, vissl/utils/checkpoint.py and configs/config/model_zoo. The heads beside the trunk
are skipped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from model_zoo.architecture import Architecture
from model_zoo.formats import Extracted, SeveralNetworks, prefixes, take, tensor_dicts

_BLOCKS = "_feature_blocks."
_PREFIXES = tuple(outer + _BLOCKS for outer in ("", "trunk.", "trunk.base_model.", "base_model."))
_TRUNK = ("classy_state_dict", "base_model", "model", "trunk")


def _trunks(obj: Any) -> list[tuple[str, Mapping[str, Tensor]]]:
    """Return (prefix, tensors) of every trunk."""
    inner = obj
    for key in _TRUNK:
        inner = inner.get(key) if isinstance(inner, Mapping) else None
    places = tensor_dicts(inner, ()) + tensor_dicts(obj, ("model_state_dict", "state_dict"))
    return [(p, tensors) for _, tensors in places for p in prefixes(tensors) if p in _PREFIXES]


def matches(obj: Any) -> bool:
    """Return whether the file has a trunk."""
    return bool(_trunks(obj))


def passed_over(obj: Any) -> tuple[str, ...]:
    """Skip a loss's momentum encoder (vissl/losses/moco_loss.py)."""
    return ("classy_state_dict.loss*",)


def extract(obj: Any) -> Extracted:
    """Return the trunk's tensors."""
    found = _trunks(obj)
    if len(found) > 1:
        raise SeveralNetworks("contains two trunks of VISSL")
    prefix, tensors = found[0]
    return take(tensors, prefix, ("heads.*",))


def example(state: Mapping[str, Tensor], arch: Architecture) -> Any:
    """Return a file of this layout, as VISSL's training writes it."""
    trunk = {_BLOCKS + name: tensor for name, tensor in state.items()}
    model = {"trunk": trunk, "heads": {"0.clf.0.weight": torch.zeros(8, 8)}}
    return {
        "phase_idx": 199,
        "classy_state_dict": {"train": True, "base_model": {"model": model}},
        "type": "consolidated",
    }
