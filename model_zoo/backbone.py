"""A backbone is data: architecture, input convention, tensors. `build()` gives a fresh module each time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from core.artifacts import atomic_save, tensors_sha256
from core.config import Config

FORMAT = "backbench-1"

Stem = Literal["7x7", "3x3", "3x3-nopool"]


class Architecture(Config):
    """What weights alone do not fix is a field here, and part of a record's identity."""

    name: Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
    width: Annotated[float, Field(gt=0, le=8)] = 1.0  # multiplies the planes of all four stages, not the stem
    stem: Stem = "7x7"  # 3x3: stride 1, max-pool kept (htdt/self-supervised on STL-10); 3x3-nopool: CIFAR's
    stride_in_1x1: bool = False  # Caffe2 and MSRA put a block's stride into its first 1x1 convolution
    pool_padding: Literal["symmetric", "end"] = "symmetric"  # end: TensorFlow's SAME, (0, 1) on both axes


class InputSpec(Config):
    """What the backbone wants to see: RGB or BGR in [0, 1], then mean and std, at this size."""

    size: Annotated[int, Field(ge=16, le=1024)] = 224
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    order: Literal["rgb", "bgr"] = "rgb"


@dataclass(frozen=True)
class Backbone:
    """A backbone as data.

    `state` holds every tensor of the architecture under torchvision's names, without a head, float32, on the CPU.
    """

    name: str
    arch: Architecture
    state: Mapping[str, Tensor]
    input: InputSpec
    source: str  # file or zoo name it came from
    format: str  # the layout it was read as
    notes: tuple[str, ...] = ()  # what the weights could not tell, what was dropped
    _cache: dict[str, str] = field(default_factory=dict, repr=False, compare=False)

    @property
    def weights_sha256(self) -> str:
        """Identity of the weights, whatever container they came in (num_batches_tracked does not count)."""
        if "sha" not in self._cache:
            self._cache["sha"] = tensors_sha256(identity_tensors(self.state))
        return self._cache["sha"]

    def build(self) -> nn.Module:
        """A fresh module: `module(x)` -> pooled features (N, C), `module.stages(x)` -> (C2, C3, C4, C5)."""
        from model_zoo.resnet import Trunk

        with torch.device("meta"):  # nothing is initialised only to be overwritten
            module = Trunk(self.arch)
        module.load_state_dict({name: tensor.clone() for name, tensor in self.state.items()}, strict=True, assign=True)
        return module

    def record(self) -> dict[str, Any]:
        """The fields of a result's `backbone`."""
        return {
            "name": self.name,
            "weights_sha256": self.weights_sha256,
            "format": self.format,
            "arch": self.arch.model_dump(mode="json"),
            "input": self.input.model_dump(mode="json"),
        }


def identity_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that decide what a network computes."""
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


def architecture_fields(arch: Architecture) -> str:
    """`resnet50`, or with what differs from the usual: `resnet50 (width=0.5, stride_in_1x1=True)`."""
    usual = Architecture(name=arch.name)
    other = {k: v for k, v in arch.model_dump(mode="json").items() if v != getattr(usual, k)}
    return arch.name + (f" ({', '.join(f'{k}={v}' for k, v in other.items())})" if other else "")
