"""Detectron2's ResNet names (`stem.conv1.norm`, `res2.0.shortcut`), flat or under `model`: its converters' pickles, .pth.

The names have no prefix, as in files of tools/convert-torchvision-to-d2.py, of MoCo's converter and of ours; these write a
classifier or projector as `stem.fc`. A whole detector's checkpoint is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from backbench.errors import CheckpointError
from model_zoo.architecture import Architecture
from model_zoo.export.detectron2 import key_table
from model_zoo.formats import Extracted, tensor_dicts, the_one
from model_zoo.resnet import LAYERS

_NAME = re.compile(r"^(?P<prefix>.*?)res[2-5]\.[0-9]{1,4}\.conv[123]\.norm\.\w+$")
_FC = "stem.fc."


def _prefixes(tensors: Mapping[str, Tensor]) -> set[str]:
    return {match["prefix"] for match in map(_NAME.match, tensors) if match}


def matches(obj: Any) -> bool:
    """Return whether there are names of Detectron2's ResNet, bare or in a detector."""
    return any(_prefixes(tensors) for _, tensors in tensor_dicts(obj))


def extract(obj: Any) -> Extracted:
    """Return the tensors under torchvision's names; the tables of all depths agree."""
    tensors = the_one(obj, _prefixes)
    wrapped = _prefixes(tensors) - {""}
    if wrapped:
        raise CheckpointError(
            f"a whole Detectron2 detector (ResNet under '{min(wrapped)}'), whose backbone was trained for detection; "
            "if you want it, save the tensors of its ResNet alone, without prefix"
        )
    stem = "deep" if "stem.conv2.weight" in tensors else "7x7"  # DeepLabStem (projects/DeepLab/deeplab/resnet.py)
    archs = [Architecture(name=name, stem=stem) for name in LAYERS]  # type: ignore[arg-type]
    table = {theirs: ours for arch in archs for ours, theirs in key_table(arch).items()}
    known = {table[key]: tensor for key, tensor in tensors.items() if key in table}
    dropped = tuple(key for key in tensors if key.startswith(_FC))
    leftover = tuple(key for key in tensors if key not in table and not key.startswith(_FC))
    return Extracted(known, dropped, leftover)


def example(state: Mapping[str, Tensor], arch: Architecture) -> Any:
    """Return a file of this layout, as MoCo's converter writes it (with tensors instead of arrays)."""
    table = key_table(arch)
    tensors = {table[name]: tensor for name, tensor in state.items()}
    return {
        "model": {**tensors, "stem.fc.0.weight": torch.zeros(8, 8)},
        "__author__": "MOCO",
        "matching_heuristics": True,
    }
