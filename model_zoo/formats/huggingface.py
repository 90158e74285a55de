"""HuggingFace transformers' ResNet: `embedder.embedder`, `encoder.stages.0.layers.0.layer.0`, optionally under `resnet.`.

`save_pretrained` writes it as safetensors or torch files (transformers, models/resnet/modeling_resnet.py). The classifier
is dropped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from model_zoo.architecture import Architecture
from model_zoo.formats import Extracted, tensor_dicts, the_one

_STEM = re.compile(r"^(resnet\.)?embedder\.embedder\.(?P<kind>convolution|normalization)\.(?P<leaf>\w+)$")
_BLOCK = re.compile(
    r"^(resnet\.)?encoder\.stages\.(?P<stage>[0-3])\.layers\.(?P<block>[0-9]{1,4})\."
    r"(?:layer\.(?P<conv>[012])|shortcut)\.(?P<kind>convolution|normalization)\.(?P<leaf>\w+)$"
)


def _canonical(key: str) -> str | None:
    """Return torchvision's name of a tensor."""
    if found := _STEM.match(key):
        return f"{'conv1' if found['kind'] == 'convolution' else 'bn1'}.{found['leaf']}"
    if not (found := _BLOCK.match(key)):
        return None
    is_conv = found["kind"] == "convolution"
    part = f"downsample.{0 if is_conv else 1}"
    if found["conv"] is not None:
        part = f"{'conv' if is_conv else 'bn'}{int(found['conv']) + 1}"
    return f"layer{int(found['stage']) + 1}.{found['block']}.{part}.{found['leaf']}"


def _blocks(tensors: Mapping[str, Tensor]) -> bool:
    return any(_BLOCK.match(key) for key in tensors)


def matches(obj: Any) -> bool:
    """Return whether the file has names of transformers' ResNet."""
    return any(_blocks(tensors) for _, tensors in tensor_dicts(obj))


def extract(obj: Any) -> Extracted:
    """Return the tensors under torchvision's names."""
    tensors = the_one(obj, _blocks)
    state = {name: tensor for key, tensor in tensors.items() if (name := _canonical(key))}
    rest = [key for key in tensors if not _canonical(key)]
    dropped = tuple(key for key in rest if key.startswith("classifier."))
    return Extracted(state, dropped, tuple(key for key in rest if key not in dropped))


def example(state: Mapping[str, Tensor], arch: Architecture) -> Any:
    """Return a file of this layout with a classifier."""
    tensors = {}
    for name, tensor in state.items():
        *path, part, leaf = name.replace("downsample.0", "shortcut0").replace("downsample.1", "shortcut1").split(".")
        kind = "convolution" if part.startswith("conv") or part == "shortcut0" else "normalization"
        place = "embedder.embedder"
        if path:
            layer = "shortcut" if part.startswith("shortcut") else f"layer.{int(part[-1]) - 1}"
            place = f"encoder.stages.{int(path[0][-1]) - 1}.layers.{path[1]}.{layer}"
        tensors[f"resnet.{place}.{kind}.{leaf}"] = tensor
    return {**tensors, "classifier.1.weight": torch.zeros(8, 8), "classifier.1.bias": torch.zeros(8)}
