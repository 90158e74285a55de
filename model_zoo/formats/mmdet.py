"""OpenMMLab's container {"state_dict", "meta"} with the ResNet under `backbone.`: mmdet, mmpretrain, mmselfsup, ours.

Necks and heads of a pretraining are dropped by the list below. A whole detector's checkpoint is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from backbench.errors import CheckpointError
from model_zoo.architecture import Architecture
from model_zoo.export.mmdet import PREFIX, key_table
from model_zoo.formats import Extracted, is_openmmlab, take
from model_zoo.wrappers import tensors_of

MORE_SPECIFIC_THAN = ("prefixed", "lightning")  # mmengine's `meta` is beside the tensors
_DROP = ("neck.*", "head.*", "data_preprocessor.*", f"{PREFIX}fc.*")
_DETECTOR = ("rpn_head.", "roi_head.", "bbox_head.", "mask_head.")


def matches(obj: Any) -> bool:
    """Return whether a ResNet is under `backbone.` in mmengine's container."""
    return is_openmmlab(obj)


def extract(obj: Any) -> Extracted:
    """Return the backbone's tensors."""
    tensors = tensors_of(obj["state_dict"])
    heads = [key for key in tensors if key.startswith(_DETECTOR)]
    if heads:
        raise CheckpointError(
            f"a whole detector ({heads[0]} and more beside '{PREFIX}'), whose backbone was trained for detection; "
            f"if you want it, save the tensors under '{PREFIX}' alone"
        )
    return take(tensors, PREFIX, _DROP)


def example(state: Mapping[str, Tensor], arch: Architecture) -> Any:
    """Return a file of this layout, as mmselfsup's runner writes it."""
    table = key_table(arch)
    tensors = {table[name]: tensor for name, tensor in state.items()}
    return {"state_dict": {**tensors, "neck.fc0.weight": torch.zeros(8, 8)}, "meta": {"epoch": 200}}
