"""OBoW's {"network": ...}: its own names, or torchvision's in its converted file.

The student is `feature_extractor._feature_blocks.` in the whole model, and `_feature_blocks.` in its solver's file of the
feature extractor; the stem's convolution is `0.Conv` (valeoai/obow, obow/feature_extractor.py). The teacher, the word
extractor and predictor and the classifier are dropped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from model_zoo.architecture import Architecture
from model_zoo.formats import Extracted, prefixes, take
from model_zoo.wrappers import tensors_of

_OWN = re.compile(r"^(module\.)?(feature_extractor\.)?_feature_blocks\.(?P<block>[0-4])\.(?P<rest>.+)$")
_DROP = ("fc.*", *(f"{start}{name}.*" for start in ("", "module.") for name in
                   ("feature_extractor_teacher", "bow_extractor", "bow_predictor", "linear_classifier")))  # fmt: skip


def _network(obj: Any) -> dict[str, Tensor]:
    """Return the tensors under `network`, with OBoW's names changed to torchvision's."""
    if not isinstance(obj, Mapping) or not isinstance(obj.get("network"), Mapping):
        return {}
    return {_canonical(key): value for key, value in tensors_of(obj["network"]).items()}


def _canonical(key: str) -> str:
    found = _OWN.match(key)
    if not found:
        return key
    rest = found["rest"]
    return (
        rest.replace("Conv", "conv1").replace("bn", "bn1") if found["block"] == "0" else f"layer{found['block']}.{rest}"
    )


def has_blocks(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether OBoW's own names are among the tensors' names."""
    return any(_OWN.match(name) for name in tensors)


def matches(obj: Any) -> bool:
    """Return whether a ResNet is under `network`."""
    return "" in prefixes(_network(obj))


def extract(obj: Any) -> Extracted:
    """Return the student's tensors."""
    return take(_network(obj), "", _DROP)


def example(state: Mapping[str, Tensor], arch: Architecture) -> Any:
    """Return a file of the whole model."""
    stem = {"conv1": "0.Conv", "bn1": "0.bn", **{f"layer{i}": str(i) for i in range(1, 5)}}
    tensors = {}
    for name, tensor in state.items():
        top, _, rest = name.partition(".")
        tensors[f"feature_extractor._feature_blocks.{stem[top]}.{rest}"] = tensor
        tensors[f"feature_extractor_teacher._feature_blocks.{stem[top]}.{rest}"] = torch.zeros_like(tensor)
    return {"epoch": 200, "network": {**tensors, "bow_predictor.kappa": torch.zeros(1)}, "meters": None}
