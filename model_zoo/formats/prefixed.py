"""A ResNet under one wrapper's prefix: DistributedDataParallel's `module.`, a trainer's `backbone.` or `encoder.`.

Flat, or under `state_dict` or `model`; heads beside the backbone are dropped by the list below. Sources: the code of SwAV
(`module.`), Barlow Twins and VICReg (`module.backbone.`), solo-learn (`backbone.`), SimSiam and PixPro
(`module.encoder.`), CompRess (`module.`), PyContrast (`module.encoder.`), htdt/self-supervised (`model.module.`).
Files with a momentum twin (`momentum_backbone.`, `encoder_k.`, ...) have another layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from model_zoo.architecture import Architecture
from model_zoo.formats import Extracted, prefixes, take, tensor_dicts, the_one

PREFIXES = ("module.", "backbone.", "encoder.", "module.backbone.", "module.encoder.", "model.module.")
_HEADS = ("fc", "head", "heads", "neck", "projector", "projection_head", "predictor", "prototypes", "classifier", "bn",
          "head_jig", "jigsaw", "linear")  # fmt: skip


def _only_prefix(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the one prefix of ResNet names; a head may have layers with such names, too (`neck.bn1`)."""
    found = [p for p in prefixes(tensors) if not any(part in _HEADS for part in p.split("."))]
    return found[0] if len(found) == 1 and found[0] in PREFIXES else None


def matches(obj: Any) -> bool:
    """Return whether all ResNet names have one known prefix."""
    return any(_only_prefix(tensors) for _, tensors in tensor_dicts(obj))


def passed_over(obj: Any) -> tuple[str, ...]:
    """Skip PyContrast's momentum encoder: its linear evaluation takes `model` (pycontrast/learning/linear_trainer.py)."""
    return ("model_ema",) if isinstance(obj, Mapping) and {"model", "contrast"} <= set(obj) else ()


def extract(obj: Any) -> Extracted:
    """Return the tensors under the prefix."""
    tensors = the_one(obj, _only_prefix)
    prefix = _only_prefix(tensors) or ""
    outer = "module." if prefix.startswith("module.") else ""
    drop = [f"{start}{head}{end}" for start in {outer, prefix} for head in _HEADS for end in (".*", "[0-9].*")]
    return take(tensors, prefix, drop)


def example(state: Mapping[str, Tensor], arch: Architecture) -> Any:
    """Return a file of this layout, as Barlow Twins writes it."""
    tensors = {f"module.backbone.{name}": tensor for name, tensor in state.items()}
    return {"epoch": 1, "model": {**tensors, "module.projector.0.weight": torch.zeros(8, 8)}}
