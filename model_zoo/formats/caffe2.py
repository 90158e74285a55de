"""Caffe2's blobs (`res2_0_branch2a_w`, `res_conv1_bn_s`), flat or under `blobs`: fair_self_supervision_benchmark's pickles.

`rm` and `riv` are running mean and variance (VISSL's extra_scripts/convert_caffe2_to_torchvision_resnet.py and
Detectron2's c2_model_loading.py take `riv` as it is). Input is BGR on the 0-255 scale; the place of the stride is not stated.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from model_zoo.architecture import Architecture
from model_zoo.formats import Extracted, tensor_dicts

_BRANCH = re.compile(
    r"^res(?P<stage>[2-5])_(?P<block>[0-9]{1,4})_branch(?P<branch>1|2[abc])_(?P<leaf>w|bn_(?:s|b|rm|riv))$"
)
_LEAVES = {"s": "weight", "b": "bias", "rm": "running_mean", "riv": "running_var"}
_DROP = re.compile(r"^(.*_momentum|lr|model_iter|pred_.*)$")
_INPUT = {"order": "bgr", "mean": (0.406, 0.456, 0.485), "std": (1 / 255, 1 / 255, 1 / 255)}


def _canonical(key: str) -> str | None:
    """Return torchvision's name of a blob."""
    if key == "conv1_w":
        return "conv1.weight"
    if key.startswith("res_conv1_bn_"):
        return f"bn1.{_LEAVES[leaf]}" if (leaf := key.removeprefix("res_conv1_bn_")) in _LEAVES else None
    if not (found := _BRANCH.match(key)):
        return None
    where = f"layer{int(found['stage']) - 1}.{found['block']}"
    leaf = found["leaf"].removeprefix("bn_")
    if found["branch"] == "1":
        return f"{where}.downsample.0.weight" if leaf == "w" else f"{where}.downsample.1.{_LEAVES[leaf]}"
    number = "abc".index(found["branch"][1]) + 1
    return f"{where}.conv{number}.weight" if leaf == "w" else f"{where}.bn{number}.{_LEAVES[leaf]}"


def _blobs(obj: Any) -> Mapping[str, Tensor]:
    for _, tensors in tensor_dicts(obj, ("blobs",)):
        if any(_BRANCH.match(key) for key in tensors):
            return tensors
    return {}


def matches(obj: Any) -> bool:
    """Return whether there are blobs of a Caffe2 ResNet."""
    return bool(_blobs(obj))


def extract(obj: Any) -> Extracted:
    """Return the tensors under torchvision's names, with unchanged channels and Caffe2's input."""
    blobs = _blobs(obj)
    state = {name: tensor for key, tensor in blobs.items() if (name := _canonical(key))}
    rest = [key for key in blobs if not _canonical(key)]
    dropped = tuple(key for key in rest if _DROP.match(key))
    return Extracted(state, dropped, tuple(key for key in rest if key not in dropped), input=_INPUT)


def example(state: Mapping[str, Tensor], arch: Architecture) -> Any:
    """Return a file of this layout (with tensors instead of arrays)."""
    leaves = {leaf: short for short, leaf in _LEAVES.items()}
    blobs = {}
    for name, tensor in state.items():
        *path, part, leaf = name.replace("downsample.0", "conv0").replace("downsample.1", "bn0").split(".")
        if leaf == "num_batches_tracked":
            continue
        branch = "1" if part[-1] == "0" else f"2{'abc'[int(part[-1]) - 1]}"
        place = f"res{int(path[0][-1]) + 1}_{path[1]}_branch{branch}" if path else ""
        if part.startswith("conv"):
            blobs[f"{place or 'conv1'}_w"] = tensor
        else:
            blobs[f"{place or 'res_conv1'}_bn_{leaves[leaf]}"] = tensor
    return {"blobs": {**blobs, "conv1_w_momentum": torch.zeros(8), "lr": torch.zeros(1), "pred_w": torch.zeros(8, 8)}}
