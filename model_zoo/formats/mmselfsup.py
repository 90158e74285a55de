"""OpenSelfSup, mmselfsup 0.x and DenseCL: `backbone.`, and a copy under `encoder_q.0.` or a similar prefix.

The copy is the same module, so all its tensors must equal those under `backbone.`; momentum twins
(`encoder_k`, `target_net`), necks, heads and queues are dropped (WXinlong/DenseCL,
tools/extract_backbone_weights.py takes `backbone.`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from backbench.errors import CheckpointError
from model_zoo.architecture import Architecture
from model_zoo.backbone import identity_tensors
from model_zoo.formats import Extracted, mmselfsup_copies, take, tensor_dicts, the_one

MORE_SPECIFIC_THAN = ("mmdet", "prefixed", "lightning")  # the file has the network twice
_SAME = ("encoder_q.0.", "online_net.0.", "encoder.0.")  # the others are momentum twins
_DROP = ("backbone.fc.*", "encoder_q.*", "encoder_k.*", "online_net.*", "target_net.*", "encoder.*", "momentum_encoder.*",
         "neck.*", "head.*", "queue*", "data_preprocessor.*")  # fmt: skip


def matches(obj: Any) -> bool:
    """Return whether the file has the network under two names."""
    return any(mmselfsup_copies(tensors) for _, tensors in tensor_dicts(obj))


def extract(obj: Any) -> Extracted:
    """Return the tensors under `backbone.`, after checking that the copy is equal."""
    tensors = the_one(obj, mmselfsup_copies)
    found = take(tensors, "backbone.", _DROP)
    for copy in (copy for copy in mmselfsup_copies(tensors) if copy in _SAME):
        counted, second = identity_tensors(found.state), take(tensors, copy, ()).state
        other = [name for name, tensor in counted.items() if not _equal(tensor, second.get(name))]
        if other:
            raise CheckpointError(
                f"'backbone.{other[0]}' and '{copy}{other[0]}' differ; save the one you want in a separate file"
            )
    return found


def _equal(one: Tensor, other: Tensor | None) -> bool:
    return other is not None and torch.equal(one, other)


def example(state: Mapping[str, Tensor], arch: Architecture) -> Any:
    """Return a file of this layout, as DenseCL's runner writes it."""
    tensors = {f"backbone.{name}": tensor for name, tensor in state.items()}
    copy = {f"encoder_q.0.{name}": tensor for name, tensor in state.items()}
    twin = {f"encoder_k.0.{name}": torch.zeros_like(tensor) for name, tensor in state.items()}
    neck = {"encoder_q.1.mlp.0.weight": torch.zeros(8, 8), "queue": torch.zeros(8, 16)}
    return {"meta": {"epoch": 200}, "state_dict": {**tensors, **copy, **twin, **neck}}
