"""One module per checkpoint layout: container, unwrapping and key scheme.

Each has `matches(obj) -> bool`, `extract(obj) -> Extracted` and `example(state, arch) -> obj` (the documented layout with
a backbone's tensors, for the contract tests). A layout is not tied to a method: several methods share one. Optional:

`passed_over(obj)`: patterns of the paths of networks that the layout's published rule skips; any other second network is
refused.
`MORE_SPECIFIC_THAN`: layouts that also fit such a file and give way to this one. Two layouts that fit, of which neither
gives way, are an error that names both.
`PICKLED`: operations for the layout's own pickled classes, by (module, class). An operation gets the arguments with which
the pickle calls the class: plain values, and references to tensors and arrays. It returns plain values and such
references, or NotImplemented. The class is never imported.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from backbench import plugins
from backbench.errors import CheckpointError
from model_zoo.architecture import Architecture
from model_zoo.reading.pickles.names import Pickled
from model_zoo.wrappers import MOST_TENSORS, tensors_of

_CANONICAL = re.compile(
    r"^(?P<prefix>.*?)(?P<name>(?:conv1(?:\.[01346])?|bn1)\.\w+"
    r"|layer[1-4]\.[0-9]{1,4}\.(?:(?:conv|bn)[123]|downsample\.[012])\.\w+)$"
)
_WITHIN = re.compile(
    r"(^|\.)layer\d+\.(\w+\.)*$"
)  # a stage of a relative: `layer5.0.conv1.weight` is not a second stem
_DEEP_STEM = re.compile(
    r"^(?P<prefix>(?:.*\.)?)stem\.(?P<place>[013467])\.(?P<leaf>\w+)$"
)  # OpenMMLab's; ours are timm's


@dataclass(frozen=True)
class Extracted:
    """The tensors that a layout extracted from a file."""

    state: Mapping[str, Tensor]  # by torchvision's names
    dropped: tuple[str, ...] = ()  # names on the layout's list
    leftover: tuple[str, ...] = ()  # neither backbone nor on the list; load() refuses them
    arch: Mapping[str, Any] = field(default_factory=dict)  # fields stated in the file
    input: Mapping[str, Any] = field(default_factory=dict)


def modules() -> dict[str, ModuleType]:
    """Return every layout, by name."""
    return dict(plugins.modules("formats", sys.modules[__name__]).found)


def pickled() -> dict[str, Pickled]:
    """Return the `PICKLED` of every layout that has one, by layout."""
    return {name: module.PICKLED for name, module in modules().items() if hasattr(module, "PICKLED")}


def matching(obj: Any) -> dict[str, ModuleType]:
    """Return the layouts that a file fits, without those that give way to a more specific one among them.

    If `matches` of a plug-in raises, a warning names it and it does not match.
    """
    fitting = {name: module for name, module in modules().items() if _fits(module, obj)}
    general = {name for module in fitting.values() for name in getattr(module, "MORE_SPECIFIC_THAN", ())}
    return {name: module for name, module in fitting.items() if name not in general} or fitting


def _fits(module: ModuleType, obj: Any) -> bool:
    if module.__name__.startswith(f"{__name__}."):
        return bool(module.matches(obj))
    try:
        return bool(module.matches(obj))
    except Exception as error:  # a plug-in can raise anything
        plugins.warn(f"{module.__file__}: matches() raised {type(error).__name__}: {error}; this layout is left out")
        return False


WRAPPERS = ("state_dict", "model")
_LONGEST = 120  # characters of a name compared with a layout's
# Prefixes of a second network beside the one that transfers: averaged, key or teacher network.
TWINS = ("momentum_backbone.", "momentum_encoder.", "backbone_momentum.", "teacher_backbone.", "student_backbone.",
         "key_backbone.", "target_backbone.")  # fmt: skip
_COPIES = ("encoder_q.0.", "encoder_k.0.", "online_net.0.", "target_net.0.", "encoder.0.", "encoder_k.module.0.",
           "target_net.module.0.", "momentum_encoder.module.0.")  # fmt: skip


def tensor_dicts(obj: Any, keys: Iterable[str] = WRAPPERS) -> list[tuple[str, Mapping[str, Tensor]]]:
    """Return (key, tensors) of the object itself, with key "", and of the dictionaries under the usual keys."""
    found: list[tuple[str, Mapping[str, Tensor]]] = []
    for key, value in (("", obj), *((k, obj.get(k)) for k in keys if isinstance(obj, Mapping))):
        if isinstance(value, Mapping) and len(value) <= MOST_TENSORS and (tensors := tensors_of(value)):
            found.append((key, tensors))
    return found


def prefixes(keys: Iterable[str]) -> dict[str, list[str]]:
    """Return the canonical ResNet names, by prefix."""
    found: dict[str, list[str]] = {}
    for key in keys:
        match = _CANONICAL.match(key)
        if match and not _WITHIN.search(match["prefix"]):
            found.setdefault(match["prefix"], []).append(match["name"])
    return found


def is_openmmlab(obj: Any) -> bool:
    """Return whether this is mmengine's container {"state_dict", "meta"} with a ResNet under `backbone.`."""
    if not isinstance(obj, Mapping) or not isinstance(obj.get("meta"), Mapping):
        return False
    return any(where == "state_dict" and "backbone." in prefixes(tensors) for where, tensors in tensor_dicts(obj))


def is_lightning(obj: Any) -> bool:
    """Return whether this is Lightning's container, or its `state_dict` with a twin, with `backbone.` or `encoder.`."""
    if not isinstance(obj, Mapping):
        return False
    for where, tensors in tensor_dicts(obj):
        found = prefixes(tensors)
        if where == "state_dict" and ("backbone." in found or "encoder." in found):
            return "pytorch-lightning_version" in obj or any(twin in found for twin in TWINS)
    return False


def mmselfsup_copies(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the prefixes of mmselfsup 0.x, OpenSelfSup and DenseCL for copies of the network under `backbone.`."""
    found = prefixes(tensors)
    return [copy for copy in _COPIES if copy in found] if "backbone." in found else []


def nearest(obj: Any, count: int = 3) -> list[str]:
    """Return the layouts with the most similar names, for a file that fits none."""
    keys = [key[:_LONGEST] for _, tensors in tensor_dicts(obj) for key in tensors]
    seen = sorted({_shape_of(key) for key in keys if key.endswith("weight")})[:8]
    sample = {"conv1.weight": torch.zeros(2, 3, 7, 7), "bn1.running_mean": torch.zeros(2)}
    sample |= {f"layer1.0.conv{i}.weight": torch.zeros(2, 2, 1, 1) for i in (1, 2)}
    scores = {}
    for name, module in modules().items():
        theirs = {_shape_of(key) for key in _keys_below(module.example(sample, Architecture(name="resnet18")))}
        best = [max(difflib.SequenceMatcher(None, key, other).ratio() for other in theirs) for key in seen]
        scores[name] = sum(best) / max(1, len(best))
    likely = sorted((name for name, score in scores.items() if score > 0.7), key=lambda name: -scores[name])
    return likely[:count]


def _keys_below(obj: Any) -> list[str]:
    """Return the names of all tensors, at any depth."""
    found = []
    for key, value in obj.items() if isinstance(obj, Mapping) else ():
        found += [str(key)] if isinstance(value, Tensor) else _keys_below(value)
    return found


def _shape_of(key: str) -> str:
    return re.sub(r"\d+", "0", key)


class SeveralNetworks(CheckpointError):
    """A file has several networks of a layout; `model_zoo.recognise` names them and how to choose."""


def the_one(
    obj: Any, wanted: Callable[[Mapping[str, Tensor]], object], keys: Iterable[str] = WRAPPERS
) -> Mapping[str, Tensor]:
    """Return the `wanted` dictionary of tensors, the object or one under `keys`. Raises SeveralNetworks: not exactly one."""
    found = [(where, tensors) for where, tensors in tensor_dicts(obj, keys) if wanted(tensors)]
    if len(found) != 1:
        places = " and ".join(f"'{where}'" if where else "the top" for where, _ in found)
        raise SeveralNetworks(f"contains {len(found)} networks of this layout, under {places}")
    return found[0][1]


def _as_timm(match: re.Match[str]) -> str:
    """Rename `stem.0.weight` to `conv1.0.weight`, `stem.7.bias` to `bn1.bias`."""
    place = "bn1" if match["place"] == "7" else f"conv1.{match['place']}"
    return f"{match['prefix']}{place}.{match['leaf']}"


def take(tensors: Mapping[str, Tensor], prefix: str, drop: Iterable[str]) -> Extracted:
    """Extract the canonical names under `prefix`; other names are dropped if they fit a pattern, else left over."""
    state: dict[str, Tensor] = {}
    dropped, leftover = [], []
    patterns = tuple(drop)
    for key, tensor in tensors.items():
        match = _CANONICAL.match(_DEEP_STEM.sub(_as_timm, key))
        if match and match["prefix"] == prefix:
            state[match["name"]] = tensor
        elif any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns):
            dropped.append(key)
        else:
            leftover.append(key)
    return Extracted(state, tuple(dropped), tuple(leftover))
