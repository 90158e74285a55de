"""DeepMind's BYOL and ReLICv2: Haiku's arrays by module, in `experiment_state` as `online_params` and `online_state`.

Convolutions are HWIO, statistics the `average` of a moving average (ajtejankar/byol-convert, convert.py). The online
network transfers; projector, predictor and classifier are dropped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from model_zoo.architecture import Architecture
from model_zoo.formats import Extracted
from model_zoo.reading.pickles.operations import mapping
from model_zoo.wrappers import word

_BLOCK = re.compile(
    r"block_group_(?P<group>[0-3])/~/block_(?P<block>[0-9]{1,4})/~/(?P<part>conv_[012]|batchnorm_[012]|shortcut_conv|shortcut_batchnorm)$"
)
_STEM = {"initial_conv": "conv1", "initial_batchnorm": "bn1"}
ARCH = {"pool_padding": "same", "conv_padding": "same"}  # byol/utils/networks.py: every padding is "SAME"
_LEAVES = {"w": "weight", "scale": "weight", "offset": "bias"}
_EMA = {"mean_ema": "running_mean", "var_ema": "running_var"}
_HEADS = ("projector", "predictor", "classifier")


def _byol_state(arguments: tuple[Any, ...]) -> dict[str, Any]:
    """Return the fields of BYOL's NamedTuple (deepmind-research, byol/byol_experiment.py)."""
    names = ("online_params", "target_params", "online_state", "target_state", "opt_state")
    return dict(zip(names, arguments, strict=False))


_MAPPING = mapping(dict)  # Haiku pickles its mappings as the class and a dictionary
PICKLED = {
    **{("haiku._src.data_structures", name): _MAPPING for name in ("FlatMapping", "FlatMap", "frozendict")},
    ("byol.byol_experiment", "_ByolExperimentState"): _byol_state,
}


def _canonical(module: str) -> str | None:
    """Return torchvision's name of a module."""
    if module.rpartition("/")[2] in _STEM:
        return _STEM[module.rpartition("/")[2]]
    if not (found := _BLOCK.search(module)):
        return None
    part = {"shortcut_conv": "downsample.0", "shortcut_batchnorm": "downsample.1"}.get(found["part"])
    if part is None:
        kind, _, number = found["part"].partition("_")
        part = f"{'conv' if kind == 'conv' else 'bn'}{int(number) + 1}"
    return f"layer{int(found['group']) + 1}.{found['block']}.{part}"


def _online(obj: Any) -> tuple[Mapping[str, Any], Mapping[str, Any]] | None:
    """Return the online network's parameters and state."""
    state = obj.get("experiment_state") if isinstance(obj, Mapping) else None
    if not isinstance(state, Mapping):
        return None
    found = state.get("online_params"), state.get("online_state")
    return found if all(isinstance(part, Mapping) and part for part in found) else None  # type: ignore[return-value]


def _leaves(arrays: Mapping[str, Any]) -> Iterator[tuple[str, str, Tensor]]:
    """Yield (module, leaf, tensor) of a nested mapping."""
    for module, values in arrays.items():
        for leaf, value in values.items() if isinstance(values, Mapping) else ():
            if isinstance(value, Tensor):
                yield word(module), word(leaf), value


def matches(obj: Any) -> bool:
    """Return whether the file has a ResNet's Haiku parameters."""
    found = _online(obj)
    return found is not None and has_blocks(found[0])


def has_blocks(params: Mapping[Any, Any]) -> bool:
    """Return whether these are the parameters of a ResNet."""
    return any(isinstance(module, str) and _BLOCK.search(module) for module in params)


def parameters(params: Mapping[str, Any]) -> tuple[dict[str, Tensor], list[str]]:
    """Return a network's parameters under torchvision's names, OIHW, and the names of all others, `module:leaf`."""
    state, others = {}, []
    for module, leaf, tensor in _leaves(params):
        name = _canonical(module)
        if name and leaf in _LEAVES and not any(head in module for head in _HEADS):
            state[f"{name}.{_LEAVES[leaf]}"] = (
                tensor.permute(3, 2, 0, 1) if tensor.ndim == 4 and leaf == "w" else tensor.flatten()
            )
        else:
            others.append(f"{module}:{leaf}")
    return state, others


def passed_over(obj: Any) -> tuple[str, ...]:
    """Skip the target network."""
    return ("experiment_state.target_params",)


def extract(obj: Any) -> Extracted:
    """Return the online network's tensors, OIHW, under torchvision's names."""
    found = _online(obj)
    assert found is not None
    state, others = parameters(found[0])
    dropped = [name for name in others if any(head in name for head in _HEADS)]
    leftover = [name for name in others if name not in dropped]
    for module, leaf, tensor in _leaves(found[1]):
        owner, _, ema = module.rpartition("/~/")
        name = _canonical(owner)
        if name and ema in _EMA and leaf == "average":
            state[f"{name}.{_EMA[ema]}"] = tensor.flatten()
        elif any(head in module for head in _HEADS) or leaf in ("hidden", "counter"):
            dropped.append(f"{module}:{leaf}")
        else:
            leftover.append(f"{module}:{leaf}")
    return Extracted(state, tuple(dropped), tuple(leftover), arch=ARCH)


def example(state: Mapping[str, Tensor], arch: Architecture) -> Any:
    """Return a file of this layout (with tensors instead of arrays)."""
    params: dict[str, dict[str, Tensor]] = {"projector/linear": {"w": torch.zeros(8, 8)}}
    averages: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        *path, part, leaf = (
            name.replace("downsample.0", "shortcut_conv").replace("downsample.1", "shortcut_batchnorm").split(".")
        )
        if leaf == "num_batches_tracked":
            continue
        module = f"initial_{'conv' if part == 'conv1' else 'batchnorm'}"
        if path:
            inner = (
                part if part.startswith("shortcut") else f"{part[:-1].replace('bn', 'batchnorm')}_{int(part[-1]) - 1}"
            )
            module = f"block_group_{int(path[0][-1]) - 1}/~/block_{path[1]}/~/{inner}"
        module = f"res_net50/~/{module}"
        if leaf.startswith("running"):
            shaped = tensor.reshape(1, 1, 1, -1)
            ema = "mean_ema" if leaf == "running_mean" else "var_ema"
            averages[f"{module}/~/{ema}"] = {"average": shaped, "hidden": shaped, "counter": torch.tensor(9)}
        elif tensor.ndim == 4:
            params[module] = {"w": tensor.permute(2, 3, 1, 0)}
        else:
            leaf = "scale" if leaf == "weight" else "offset"
            params.setdefault(module, {})[leaf] = tensor.reshape(1, 1, 1, -1)
    return {"experiment_state": {"online_params": params, "online_state": averages}, "step": 1}
