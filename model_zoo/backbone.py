"""A backbone is data: architecture, input convention, tensors. `build()` returns a new module each time."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from backbench.files.atomic import atomic_save
from backbench.files.hashes import tensors_sha256
from model_zoo.anatomy import feature_dim
from model_zoo.architecture import Architecture, InputSpec
from model_zoo.resnet import Trunk

FORMAT = "backbench-1"


@dataclass(frozen=True)
class Backbone:
    """A backbone as data.

    `state` has every tensor of the architecture under torchvision's names, without a head, float32, on the CPU.
    """

    name: str
    arch: Architecture
    state: Mapping[str, Tensor]
    input: InputSpec
    source: str  # file or zoo name it came from
    format: str  # the layout of that file
    notes: tuple[str, ...] = ()  # assumptions, and dropped tensors
    named: bool = False  # whether the user gave the name; only such a name joins several backbones in one row

    @functools.cached_property
    def weights_sha256(self) -> str:
        """Identity of the weights, independent of the container (num_batches_tracked does not count)."""
        return tensors_sha256(identity_tensors(self.state))

    @property
    def is_resnet(self) -> bool:
        """Whether it is a ResNet with stages; `model_zoo.external` has other networks."""
        return True

    @property
    def feature_dim(self) -> int:
        """C of the pooled features."""
        return feature_dim(self.arch)

    def build(self) -> nn.Module:
        """Return a new module: `module(x)` -> pooled features (N, C), `module.stages(x)` -> (C2, C3, C4, C5)."""
        with torch.device("meta"):  # skips an initialisation that would be overwritten
            module = Trunk(self.arch)
        module.load_state_dict({name: tensor.clone() for name, tensor in self.state.items()}, strict=True, assign=True)
        return module

    def record(self) -> dict[str, Any]:
        """Return the fields of a result's `backbone`."""
        return {
            "name": self.name,
            "weights_sha256": self.weights_sha256,
            "format": self.format,
            "arch": self.arch.model_dump(mode="json"),
            "input": self.input.model_dump(mode="json"),
        }


def identity_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors that determine what a network computes."""
    return {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


def save(path: Path, module_state: Mapping[str, Tensor], arch: Architecture, spec: InputSpec) -> None:
    """Write `model.pth`: {"format", "arch", "input", "state_dict"}, torchvision names, no head, float32."""
    state = {
        name: tensor.detach().cpu().contiguous().to(torch.float32 if tensor.is_floating_point() else tensor.dtype)
        for name, tensor in module_state.items()
    }
    payload = {
        "format": FORMAT,
        "arch": arch.model_dump(mode="json"),
        "input": spec.model_dump(mode="json"),
        "state_dict": state,
    }
    atomic_save(path, payload)
