"""DINO's run checkpoint {"student", "teacher", "optimizer", "args", ...}: the teacher's `backbone.`.

facebookresearch/dino evaluates the teacher (eval_linear.py, --checkpoint_key teacher); the student is skipped and DINO's
`head` is dropped. The published backbone files have torchvision's layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from model_zoo.architecture import Architecture
from model_zoo.formats import Extracted, prefixes, take
from model_zoo.wrappers import tensors_of

_PREFIXES = ("backbone.", "module.backbone.")


def _teacher(obj: Any) -> Mapping[str, Tensor]:
    if not isinstance(obj, Mapping) or not isinstance(obj.get("teacher"), Mapping):
        return {}
    return tensors_of(obj["teacher"])


def matches(obj: Any) -> bool:
    """Return whether a ResNet is under the teacher's `backbone.` and the student has the same shapes.

    Distillation files have these two keys as well, for networks with different shapes.
    """
    teacher = _teacher(obj)
    if not any(prefix in _PREFIXES for prefix in prefixes(teacher)):
        return False
    return _backbone(obj.get("student")) in ({}, _backbone(teacher))


def _backbone(network: Any) -> dict[str, torch.Size]:
    """Return the shapes of the backbone's tensors, by their names without the wrapper."""
    tensors = tensors_of(network) if isinstance(network, Mapping) else {}
    found = {name.removeprefix("module."): tensor.shape for name, tensor in tensors.items()}
    return {name: shape for name, shape in found.items() if name.startswith("backbone.")}


def passed_over(obj: Any) -> tuple[str, ...]:
    """Skip the student."""
    return ("student",)


def extract(obj: Any) -> Extracted:
    """Return the teacher's tensors."""
    tensors = _teacher(obj)
    prefix = next(prefix for prefix in _PREFIXES if prefix in prefixes(tensors))
    return take(tensors, prefix, (f"{prefix}fc.*", f"{prefix.removesuffix('backbone.')}head.*"))


def example(state: Mapping[str, Tensor], arch: Architecture) -> Any:
    """Return a file of this layout."""
    teacher = {f"backbone.{name}": tensor for name, tensor in state.items()}
    student = {f"module.backbone.{name}": torch.zeros_like(tensor) for name, tensor in state.items()}
    return {"student": student, "teacher": {**teacher, "head.mlp.0.weight": torch.zeros(8, 8)}, "epoch": 100}
