"""Backbones for tests."""

import functools
import math

import torch

from model_zoo.architecture import Architecture, InputSpec
from model_zoo.backbone import Backbone
from model_zoo.resnet import Trunk


def initial(arch, seed=0):
    """Tensors of a fresh network: {name: tensor}.

    `model_zoo.resnet.build` draws other numbers, torchvision's, and ten times as many for a narrow network.
    """
    return {name: tensor.clone() for name, tensor in _drawn(arch, seed).items()}


@functools.lru_cache(maxsize=32)
def _drawn(arch, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        state = Trunk(arch).state_dict()
    for name, tensor in state.items():
        shape = tensor.shape
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(0)
        elif len(shape) > 1:
            fan_out = shape[0] * math.prod(shape[2:])
            state[name] = torch.randn(shape, generator=generator) * math.sqrt(2 / fan_out)
        else:
            state[name] = torch.full(shape, float(name.endswith(("weight", "running_var"))))
    return state


def make_backbone(name="resnet50", width=0.125, spec=None, seed=0, **fields):
    """A backbone with norms that differ from a fresh network's."""
    tensors = {k: v for k, v in fields.items() if k in ("groups", "base_width", "avg_down", "stem", "stem_width")}
    state = initial(Architecture(name=name, width=width, **tensors), seed)
    generator = torch.Generator().manual_seed(seed)
    for key, tensor in state.items():
        if key.endswith("num_batches_tracked"):
            tensor.fill_(7)
        elif tensor.ndim == 1:
            tensor.uniform_(0.5, 1.0, generator=generator)
    arch = Architecture(name=name, width=width, **fields)
    return Backbone("tiny", arch, state, spec or InputSpec(), "test", "backbench")


def tiny(arch, seed=0, size=32):
    """A fresh network as a backbone for images of `size` pixels."""
    return Backbone("tiny", arch, initial(arch, seed), InputSpec(size=size), "test", "backbench")
