"""The network's name in a checkpoint (`arch: resnetaa50`), which can contradict tensors that look like a ResNet's.

Anti-aliasing, another activation or a dilation has no tensors: names and shapes are a ResNet's, the function is not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from backbench.errors import CheckpointError
from backbench.printable import printable
from model_zoo.architecture import Architecture, named
from model_zoo.resnet import Trunk

_KEYS = ("arch", "architecture", "model_name", "model")  # timm's saver, MoCo and others, at the top of the file
_WORD = re.compile(r"[a-z0-9_]{3,60}")
_PIXELS = 64


def words(obj: Any) -> list[str]:
    """Return the names of the network at the top of a file."""
    found = [obj.get(key) for key in _KEYS] if isinstance(obj, Mapping) else []
    return [word for word in found if isinstance(word, str)]


def refuse_another_function(said: list[str], arch: Architecture, state: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError if timm's network of a stated name has these tensors and computes something else.

    Args:
        said: names; those unknown to timm, or with other tensors, are ignored.
        state: all tensors by torchvision's names.
    """
    for word in said:
        name = word.rpartition("/")[2].partition(".")[0]  # `timm/resnetaa50.a1h_in1k`
        if (
            "res" in name
            and _WORD.fullmatch(name)
            and named(name) is None
            and not _computes_the_same(name, arch, state)
        ):
            raise CheckpointError(
                f"says that it is a {printable(name)}, which has the tensors of {arch.name} but computes something else "
                "(for example, with anti-aliasing); `--ckpt module:function` takes any network for the "
                "frozen and fine-tuning protocols"
            )


@torch.no_grad()
def _computes_the_same(name: str, arch: Architecture, state: Mapping[str, Tensor]) -> bool:
    """Return whether timm's network of this name computes our features; True if it has other tensors."""
    import timm

    if not timm.is_model(name):
        return True
    with torch.device("meta"):
        theirs = timm.create_model(name, pretrained=False, num_classes=0).state_dict()
    if {key: tensor.shape for key, tensor in theirs.items()} != {key: tensor.shape for key, tensor in state.items()}:
        return True
    with torch.random.fork_rng(devices=[]):
        model = timm.create_model(name, pretrained=False, num_classes=0).eval()
    model.load_state_dict(dict(state))
    with torch.device("meta"):
        ours = Trunk(arch)
    ours.load_state_dict(dict(state), assign=True)
    x = torch.randn(2, 3, _PIXELS, _PIXELS, generator=torch.Generator().manual_seed(0))
    one, other = ours.eval()(x), model(x)
    return one.shape == other.shape and torch.allclose(one, other, rtol=1e-3, atol=1e-4 * float(one.abs().max()))
