"""Backbones for tests."""

import functools

import torch

from model_zoo.architecture import Architecture, InputSpec
from model_zoo.backbone import Backbone
from model_zoo.resnet import build


@functools.cache
def _state(name, width, seed, **fields):
    generator = torch.Generator().manual_seed(seed)
    state = build(Architecture(name=name, width=width, **fields), seed=seed).state_dict()
    for key in state:
        if key.endswith("num_batches_tracked"):
            state[key].fill_(7)
        elif state[key].ndim == 1:
            state[key].uniform_(0.5, 1.0, generator=generator)
    return state


def make_backbone(name="resnet50", width=0.125, spec=None, seed=0, **fields):
    """A backbone with norms that differ from a fresh network's."""
    arch = Architecture(name=name, width=width, **fields)
    tensors = {k: v for k, v in fields.items() if k in ("groups", "base_width", "avg_down", "stem", "stem_width")}
    return Backbone("tiny", arch, dict(_state(name, width, seed, **tensors)), spec or InputSpec(), "test", "backbench")
