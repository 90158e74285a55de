"""Find every network in a file, at any depth, so that a second one beside the backbone is never ignored."""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from backbench.errors import CheckpointError
from model_zoo import formats
from model_zoo.formats import haiku
from model_zoo.reading import Inert
from model_zoo.wrappers import MOST_TENSORS, tensors_of, word

_FEWEST = 20  # tensors in the smallest ResNet, without BatchNorm
_MOST_PLACES = 1_000_000  # dictionaries and lists to inspect
_STAGE = re.compile(r"layer([1-4])\.[0-9]{1,4}\.conv1\.weight$")
# Not a network, although by parameter name: the state of optimizers.
_NO_NETWORK = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum", "momentum_buffer", "velocity", "grad", "grads",
               "gradients", "mu", "nu"}  # fmt: skip
# An optimizer's average of each parameter (torch's ASGD: `ax`).
_AVERAGE = re.compile(r"(?i)(^|_)(ema|swa|shadow|slow|averaged?)(_|$)|^ax$|^param_avg$")

_NETWORK_CLASS = re.compile(r"(?i)ema|averag|swa|teacher|model|net")
_VALUES = (int, float, str, bytes, type(None))

Keys = tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class Network:
    """Tensors with a ResNet's names, in one dictionary."""

    path: Keys  # to the dictionary
    prefix: str  # of its names; "" for a layout's own names
    state: Mapping[str, Tensor]  # torchvision's names
    place: Any  # the dictionary itself

    @property
    def names(self) -> set[str]:
        """The names in the dictionary, without the parts that wrappers add."""
        return {self.prefix + name for name in self.state}


def walk(obj: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (linked path, container) of every dictionary and list, breadth first, each once.

    Raises:
        CheckpointError: there are too many.
    """
    seen = {id(obj)}
    waiting: deque[tuple[Any, Any]] = deque([(None, obj)])
    while waiting:
        path, value = waiting.popleft()
        yield path, value
        for key, child in value.items() if isinstance(value, Mapping) else enumerate(value):
            if isinstance(child, _VALUES):  # the most common case
                continue
            if isinstance(child, Mapping | list | tuple) and id(child) not in seen:
                if len(seen) > _MOST_PLACES:
                    raise CheckpointError(
                        f"more than {_MOST_PLACES:,} nested dictionaries and lists, too many to search for networks: "
                        "add --key with the place of the one you want"
                    )
                seen.add(id(child))
                waiting.append(((path, key), child))


def keys_of(path: Any) -> Keys:
    """Return the keys of a linked path, outermost first."""
    keys = []
    while path is not None:
        path, key = path
        keys.append(key)
    return tuple(reversed(keys))


def survey(obj: Any) -> list[Network]:
    """Return every network below `obj`, breadth first."""
    found: list[Network] = []
    if not isinstance(obj, Mapping | list | tuple):
        return found
    for path, value in walk(obj):
        if isinstance(value, Mapping) and _FEWEST <= len(value) <= MOST_TENSORS:
            found += _in_dictionary(path, value)
    return found


def _in_dictionary(path: Any, value: Mapping[Any, Any]) -> Iterator[Network]:
    tensors = tensors_of(value)
    if len(tensors) < _FEWEST:
        if haiku.has_blocks(value):
            yield Network(keys_of(path), "", haiku.parameters(value)[0], value)
        return
    groups = {
        prefix: names
        for prefix, names in formats.prefixes(tensors).items()
        if len({found[1] for found in map(_STAGE.match, names) if found}) >= 2
    }
    keys = keys_of(path)
    state: Mapping[str, Tensor]
    for prefix, names in groups.items():
        state = {name: tensors[prefix + name] for name in names}
        if not _of_an_optimizer(keys, state):
            yield Network(keys, prefix, state, value)
    if not groups and (state := _by_another_scheme(tensors)) and not _of_an_optimizer(keys, state):
        yield Network(keys, "", state, value)


def _by_another_scheme(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the state that a layout with other names extracts; empty unless exactly one layout matches."""
    for obj in (tensors, {"network": tensors}):  # this key identifies OBoW's names
        fitting = list(formats.matching(obj).values())
        if len(fitting) == 1:
            try:
                return fitting[0].extract(obj).state
            except CheckpointError:  # a detector or an incomplete network, which is still another network
                return tensors
    return {}


def _of_an_optimizer(keys: Keys, state: Mapping[str, Tensor]) -> bool:
    """Return whether these are momenta or gradients: no BatchNorm statistics, and under an optimizer or such a name."""
    if not keys or any(name.endswith("running_var") for name in state):
        return False
    last = word(keys[-1]).lower()
    under = any("optim" in word(key).lower() for key in keys[:-1])
    return last in _NO_NETWORK or (under and not _AVERAGE.search(last))


def distinct(networks: list[Network]) -> list[Network]:
    """Return the networks without bitwise equal copies."""
    found: list[Network] = []
    for network in networks:
        if not any(same(network.state, other.state) or same(other.state, network.state) for other in found):
            found.append(network)
    return found


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Return whether `other` has an equal tensor for each one that determines what `one` computes."""
    names = [name for name in one if not name.endswith("num_batches_tracked")]
    return bool(names) and all(name in other and equal(one[name], other[name]) for name in names)


def equal(one: Any, other: Any) -> bool:
    """Return whether two tensors are bitwise equal, in float32 if dtypes differ; other objects equal only themselves."""
    if one is other:
        return True
    if not (is_plain(one) and is_plain(other)) or one.shape != other.shape:
        return False
    if one.dtype != other.dtype:
        one, other = one.float(), other.float()
    return bool(torch.equal(one, other) or (one.is_floating_point() and torch.isclose(one, other, 0, 0, True).all()))


def is_plain(value: Any) -> bool:
    """Return whether this is a dense tensor with values: not sparse, quantised, nested or meta."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and not (value.is_quantized or value.is_nested or value.is_meta)
    )


def kind_of(value: Any) -> str:
    """Describe a value that is not a dense tensor: `a tensor that is sparse`, `a str`."""
    if not isinstance(value, Tensor):
        return value.kind if isinstance(value, Inert) else f"a {type(value).__name__}"
    kinds = {"quantised": value.is_quantized, "nested": value.is_nested, "without values (meta)": value.is_meta}
    usual = "sparse" if value.layout != torch.strided else "dense"
    kind = next((kind for kind, is_so in kinds.items() if is_so), usual)
    if kind == "dense":
        return "a single tensor"
    return f"a tensor that is {kind}"


@dataclass(frozen=True, eq=False)
class Unnamed:
    """A copy of a network as a list of tensors, from an optimizer or an EMA, in the order of the parameters."""

    path: Keys
    tensors: list[Tensor]  # those of four dimensions


def unnamed_copies(obj: Any, state: Mapping[str, Tensor]) -> list[Unnamed]:
    """Return lists of tensors with the shapes of a state's convolutions and other values; the lists have no names."""
    mine = [tensor for tensor in state.values() if isinstance(tensor, Tensor) and tensor.ndim == 4]
    wanted = Counter(tensor.shape for tensor in mine)
    found = []
    for path, value in walk(obj):
        for key, tensors in _lists(value):
            copy = Unnamed((*keys_of(path), *key), [tensor for tensor in tensors if tensor.ndim == 4])
            if not mine or wanted - Counter(tensor.shape for tensor in copy.tensors) or _of_an_optimizer(copy.path, {}):
                continue
            if not all(any(_alike(one, other) for other in copy.tensors) for one in mine):
                found.append(copy)
    return found


def unread_networks(obj: Any) -> list[tuple[str, Keys]]:
    """Return (class, place) of unread pickled objects with as many tensors as a network: a module, an average."""
    found = []
    for path, value in walk(obj):
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            if not isinstance(item, Inert) or item.tensors < _FEWEST:
                continue
            if item.is_module or _NETWORK_CLASS.search(item.name) or _AVERAGE.search(word(key)):
                found.append((item.name, (*keys_of(path), key)))
    return found


def _alike(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are equal, or equal after rounding one to the other's dtype (master copies)."""
    if one.shape != other.shape or not (is_plain(one) and is_plain(other)):
        return False
    return equal(one, other) or equal(one, other.to(one.dtype)) or equal(one.to(other.dtype), other)


def _lists(value: Any) -> Iterator[tuple[Keys, list[Tensor]]]:
    """Yield lists of tensors in a container, and an optimizer's averages of the parameters."""
    if not _FEWEST <= len(value) <= MOST_TENSORS:
        return
    items = [
        item for item in (value.values() if isinstance(value, Mapping) else value) if not isinstance(item, _VALUES)
    ]
    numbered = not isinstance(value, Mapping) or all(word(key).isdigit() for key in value)
    tensors = [item for item in items if isinstance(item, Tensor)]
    if numbered and len(tensors) >= _FEWEST:
        yield (), tensors
    inner = [item for item in items if isinstance(item, Mapping)]
    if isinstance(value, Mapping) and len(inner) >= _FEWEST:
        for key in {key for item in inner for key in item if isinstance(key, str) and _AVERAGE.search(key)}:
            tensors = [item[key] for item in inner if isinstance(item.get(key), Tensor)]
            if len(tensors) >= _FEWEST:
                yield ("*", key), tensors
