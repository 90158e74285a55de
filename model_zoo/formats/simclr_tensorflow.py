"""TensorFlow's variables of SimCLR v1 and v2 (`base_model/conv2d_3/kernel`), saved as .npz or as a pickle of arrays.

TensorFlow numbers layers in the order of their creation; a block's projection is created before its first convolution
(google-research/simclr resnet.py, tonylins/simclr-converter convert.py). Kernels are HWIO. Heads, optimizer and v2's
averaged copy are dropped. Strided convolutions have padding on both sides, the max-pool has TensorFlow's SAME, images are
in [0, 1] without mean and std. v2's selective kernels and ResNet-D have other numbers of layers.

To convert a TensorFlow checkpoint: `r = tf.train.load_checkpoint(path)`, then
`numpy.savez(file, **{n: r.get_tensor(n) for n in r.get_variable_to_shape_map()})`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from backbench.errors import CheckpointError
from model_zoo.architecture import Architecture
from model_zoo.formats import Extracted, tensor_dicts
from model_zoo.resnet import LAYERS

ARCH = {"pool_padding": "same"}
_INPUT = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
_VARIABLE = re.compile(
    r"^base_model/(?P<kind>conv2d|batch_normalization)(?:_(?P<index>[0-9]{1,4}))?/(?P<leaf>kernel|gamma|beta|moving_mean|moving_variance)$"
)
_LEAVES = {"kernel": "weight", "gamma": "weight", "beta": "bias", "moving_mean": "running_mean",
           "moving_variance": "running_var"}  # fmt: skip
_DROP = re.compile(r"(.*/Momentum(_\d+)?|global_step|(ema_model/)?head_.*|ema_model/.*)$")


def _order(name: str, projected: bool) -> Iterator[tuple[str, str]]:
    """Yield (convolution, norm) by torchvision's names, in TensorFlow's order; `projected`: the first stage has one, too."""
    block, layers = LAYERS[name]
    yield "conv1", "bn1"
    for stage, count in enumerate(layers, start=1):
        for number in range(count):
            here = f"layer{stage}.{number}"
            if number == 0 and (stage > 1 or projected):
                yield f"{here}.downsample.0", f"{here}.downsample.1"
            for index in range(1, 4 if block.expansion == 4 else 3):
                yield f"{here}.conv{index}", f"{here}.bn{index}"


def _variables(obj: Any) -> Mapping[str, Tensor]:
    for _, tensors in tensor_dicts(obj):
        if any(_VARIABLE.match(name) for name in tensors):
            return tensors
    return {}


def matches(obj: Any) -> bool:
    """Return whether the file has TensorFlow's variables under `base_model`."""
    return bool(_variables(obj))


def extract(obj: Any) -> Extracted:
    """Return the tensors, OIHW, under torchvision's names; the number of convolutions determines the ResNet.

    Raises:
        CheckpointError: no ResNet has this number.
    """
    variables = _variables(obj)
    found = {name: match for name in variables if (match := _VARIABLE.match(name))}
    count = len({match["index"] for match in found.values() if match["kind"] == "conv2d"})
    orders = [list(_order(name, projected)) for name in LAYERS for projected in (True, False)]
    order = next((each for each in orders if len(each) == count), None)
    if order is None:
        raise CheckpointError(
            f"{count} convolutions under base_model: not a known ResNet (selective kernels, ResNet-D?)"
        )
    state, leftover = {}, [name for name in variables if name not in found and not _DROP.match(name)]
    for name, match in found.items():
        index = int(match["index"] or 0)
        if index >= count:
            leftover.append(name)
            continue
        module = order[index][0 if match["kind"] == "conv2d" else 1]
        tensor = variables[name]
        state[f"{module}.{_LEAVES[match['leaf']]}"] = tensor.permute(3, 2, 0, 1) if tensor.ndim == 4 else tensor
    dropped = tuple(name for name in variables if name not in found and _DROP.match(name))
    return Extracted(state, dropped, tuple(leftover), arch=ARCH, input=_INPUT)


def example(state: Mapping[str, Tensor], arch: Architecture) -> Any:
    """Return a file of this layout (with tensors instead of arrays)."""
    projected = "layer1.0.downsample.0.weight" in state
    variables = {"global_step": torch.tensor(1), "head_supervised/linear_layer/dense/kernel": torch.zeros(8, 8)}
    leaves = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
    for index, (conv, norm) in enumerate(_order(arch.name, projected)):
        suffix = f"_{index}" if index else ""
        if f"{conv}.weight" in state:
            kernel = f"base_model/conv2d{suffix}/kernel"
            variables[kernel] = state[f"{conv}.weight"].permute(2, 3, 1, 0).contiguous()
            variables[f"{kernel}/Momentum"] = variables[f"ema_model/{kernel}"] = torch.zeros(1)
        for leaf, theirs in leaves.items():
            if f"{norm}.{leaf}" in state:
                variables[f"base_model/batch_normalization{suffix}/{theirs}"] = state[f"{norm}.{leaf}"]
    return variables
