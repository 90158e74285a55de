"""Lightning's {"state_dict", "pytorch-lightning_version", ...} of solo-learn, lightly and bolts: `backbone.` or `encoder.`.

A twin network is dropped. `backbone.` is the teacher in lightly's DINO, elsewhere the student (lightly,
benchmarks/imagenet/resnet50/dino.py); old versions of solo-learn use `encoder.` (solo-learn, main_linear.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from model_zoo.architecture import Architecture
from model_zoo.formats import TWINS, Extracted, SeveralNetworks, is_lightning, prefixes, take
from model_zoo.wrappers import tensors_of

MORE_SPECIFIC_THAN = ("prefixed",)
HEADS = ("projector", "predictor", "classifier", "prototypes", "projection_head", "prediction_head", "online_classifier",
         "criterion", "projection", "momentum_projector", "momentum_predictor", "momentum_classifier", "queue",
         "student_projection_head", "teacher_projection_head", "student_head", "teacher_head", "head",
         "projection_head_momentum", "key_projection_head", "query_prediction_head", "non_linear_layer")  # fmt: skip


def matches(obj: Any) -> bool:
    """Return whether a ResNet is under `backbone.` or `encoder.` in Lightning's container."""
    return is_lightning(obj)


def extract(obj: Any) -> Extracted:
    """Return the network without its twin."""
    tensors = tensors_of(obj["state_dict"])
    found = [prefix for prefix in ("backbone.", "encoder.") if prefix in prefixes(tensors)]
    if len(found) > 1:
        raise SeveralNetworks("contains two networks, under 'backbone.' and 'encoder.'")
    drop = [f"{head}{end}" for head in HEADS for end in ("", ".*", "_*", "[0-9].*")]
    return take(tensors, found[0], [f"{found[0]}fc.*", *(f"{twin}*" for twin in TWINS), *drop])


def example(state: Mapping[str, Tensor], arch: Architecture) -> Any:
    """Return a file of this layout, as solo-learn writes it."""
    tensors = {f"backbone.{name}": tensor for name, tensor in state.items()}
    twin = {f"momentum_backbone.{name}": torch.zeros_like(tensor) for name, tensor in state.items()}
    heads = {"projector.0.weight": torch.zeros(8, 8), "classifier.weight": torch.zeros(8, 8)}
    return {"epoch": 100, "pytorch-lightning_version": "2.1.0", "state_dict": {**tensors, **twin, **heads}}
