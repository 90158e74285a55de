"""SimCLR v2 in Separius/SimCLRv2-Pytorch's names (`net.1.blocks.0.net.0`), flat or as {"resnet", "head"}.

SimCLR takes images in [0, 1] without normalisation (google-research/simclr, README); the layout states this input.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from model_zoo.architecture import Architecture
from model_zoo.formats import Extracted, tensor_dicts, the_one

_BLOCK = re.compile(
    r"^net\.(?P<stage>[1-4])\.blocks\.(?P<block>[0-9]{1,4})\."
    r"(?:net\.(?P<conv>[024])|net\.(?P<bn>[135])\.0|projection\.(?P<down>shortcut|bn\.0))\.(?P<leaf>\w+)$"
)
_INPUT = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def _canonical(key: str) -> str | None:
    """Return torchvision's name of a tensor."""
    if key.startswith("net.0.0."):
        return f"conv1.{key.removeprefix('net.0.0.')}"
    if key.startswith("net.0.1.0."):
        return f"bn1.{key.removeprefix('net.0.1.0.')}"
    if not (found := _BLOCK.match(key)):
        return None
    if found["down"]:
        part = f"downsample.{int(found['down'] != 'shortcut')}"
    else:
        part = f"conv{int(found['conv']) // 2 + 1}" if found["conv"] else f"bn{(int(found['bn']) + 1) // 2}"
    return f"layer{found['stage']}.{found['block']}.{part}.{found['leaf']}"


def _blocks(tensors: Mapping[str, Tensor]) -> bool:
    return any(_BLOCK.match(key) for key in tensors)


def matches(obj: Any) -> bool:
    """Return whether the file has names of that ResNet."""
    return any(_blocks(tensors) for _, tensors in tensor_dicts(obj, ("resnet",)))


def extract(obj: Any) -> Extracted:
    """Return the tensors under torchvision's names."""
    tensors = the_one(obj, _blocks, ("resnet",))
    state = {name: tensor for key, tensor in tensors.items() if (name := _canonical(key))}
    rest = [key for key in tensors if not _canonical(key)]
    dropped = tuple(key for key in rest if key.startswith("fc."))
    return Extracted(state, dropped, tuple(key for key in rest if key not in dropped), input=_INPUT)


def example(state: Mapping[str, Tensor], arch: Architecture) -> Any:
    """Return a file of this layout."""
    tensors = {}
    for name, tensor in state.items():
        *path, part, leaf = name.replace("downsample.0", "shortcut").replace("downsample.1", "bn.0").split(".")
        if not path:
            tensors[f"net.0.{'0' if part == 'conv1' else '1.0'}.{leaf}"] = tensor
            continue
        if path[-1] == "bn":  # the dot in the shortcut's norm split it
            path, part = path[:-1], "bn.0"
        inner = f"projection.{part}"
        if part[-1] in "123":
            number = int(part[-1])
            inner = f"net.{2 * number - 2}" if part.startswith("conv") else f"net.{2 * number - 1}.0"
        tensors[f"net.{path[0][-1]}.blocks.{path[1]}.{inner}.{leaf}"] = tensor
    return {"resnet": {**tensors, "fc.weight": torch.zeros(8, 8)}, "head": {"layers.0.weight": torch.zeros(8, 8)}}
