"""A ResNet without its head as `nn.Sequential(*list(resnet.children())[:-1])`: `0` conv1, `1` bn1, `4` to `7` the stages.

yaox12/BYOL-PyTorch has it as `online_backbone` (utils/load_and_convert.py), lightly's tutorials under `backbone.`. Momentum
twins and heads are dropped by the list of Lightning's layout.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from model_zoo.architecture import Architecture
from model_zoo.formats import TWINS, WRAPPERS, Extracted, take, tensor_dicts, the_one
from model_zoo.formats.lightning import HEADS

_KEY = "online_backbone"
_PREFIXES = ("", "module.", "backbone.", "encoder.", "module.backbone.", "module.encoder.")
_PLACES = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
_STAGE = re.compile(r"^(?P<prefix>.*?)4\.0\.conv1\.weight$")


def _prefix(tensors: Mapping[str, Tensor]) -> str | None:
    found = [m["prefix"] for m in map(_STAGE.match, tensors) if m and m["prefix"] in _PREFIXES]
    return found[0] if len(found) == 1 else None


def _has_stages(tensors: Mapping[str, Tensor]) -> bool:
    return _prefix(tensors) is not None


def matches(obj: Any) -> bool:
    """Return whether the file has a ResNet named by its children's numbers."""
    return any(_has_stages(tensors) for _, tensors in tensor_dicts(obj, (*WRAPPERS, _KEY)))


def passed_over(obj: Any) -> tuple[str, ...]:
    """Skip BYOL's target network."""
    return ("target_backbone",) if isinstance(obj, Mapping) and _KEY in obj else ()


def extract(obj: Any) -> Extracted:
    """Return the tensors under torchvision's names."""
    tensors = the_one(obj, _has_stages, (*WRAPPERS, _KEY))
    prefix = _prefix(tensors) or ""
    renamed = {}
    for key, tensor in tensors.items():
        child, dot, rest = key.removeprefix(prefix).partition(".")
        known = key.startswith(prefix) and child in _PLACES and dot
        renamed[f"{_PLACES[child]}.{rest}" if known else key] = tensor
    drop = [f"{outer}{head}.*" for outer in ("", "module.") for head in HEADS]
    return take(renamed, "", [*drop, *(f"{twin}*" for twin in TWINS)])


def example(state: Mapping[str, Tensor], arch: Architecture) -> Any:
    """Return a file of this layout, as yaox12/BYOL-PyTorch writes it."""
    numbers = {name: number for number, name in _PLACES.items()}
    tensors = {}
    for name, tensor in state.items():
        top, _, rest = name.partition(".")
        tensors[f"encoder.{numbers[top]}.{rest}"] = tensor
    return {_KEY: tensors, "online_projection": {"net.0.weight": torch.zeros(8, 8)}, "epoch": 300}
