"""Every network in a file, at any depth: a second one beside the backbone is named, never ignored."""

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

_FEWEST = 20  # tensors of the smallest ResNet, without BatchNorm
_MOST_PLACES = 1_000_000  # dictionaries and lists that are looked into
_STAGE = re.compile(r"layer([1-4])\.[0-9]{1,4}\.conv1\.weight$")
# By parameter's name, and yet no network: what optimizers keep.
_NO_NETWORK = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum", "momentum_buffer", "velocity", "grad", "grads",
               "gradients", "mu", "nu"}  # fmt: skip
# What an optimizer may keep for each parameter that is an average of it (torch's ASGD: `ax`).
_AVERAGE = re.compile(r"(?i)(^|_)(ema|swa|shadow|slow|averaged?)(_|$)|^ax$|^param_avg$")

_NETWORK_CLASS = re.compile(r"(?i)ema|averag|swa|teacher|model|net")
_VALUES = (int, float, str, bytes, type(None))

Keys = tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class Network:
    """Tensors that are named as a ResNet's, in one dictionary."""

    path: Keys  # of the dictionary
    prefix: str  # before its names; "" where a layout's own names stand there
    state: Mapping[str, Tensor]  # torchvision's names
    place: Any  # the dictionary itself

    @property
    def names(self) -> set[str]:
        """As they stand in the dictionary, without what wrappers put inside them."""
        return {self.prefix + name for name in self.state}


def walk(obj: Any) -> Iterator[tuple[Any, Any]]:
    """(linked path, container) of every dictionary and list, the nearest first, each once however often it is held.

    Raises:
        CheckpointError: too many to look into.
    """
    seen = {id(obj)}
    waiting: deque[tuple[Any, Any]] = deque([(None, obj)])
    while waiting:
        path, value = waiting.popleft()
        yield path, value
        for key, child in value.items() if isinstance(value, Mapping) else enumerate(value):
            if isinstance(child, _VALUES):  # nearly all there is: not asked further
                continue
            if isinstance(child, Mapping | list | tuple) and id(child) not in seen:
                if len(seen) > _MOST_PLACES:
                    raise CheckpointError(
                        f"more than {_MOST_PLACES:,} nested dictionaries and lists, too many to look for networks in: "
                        "add --key with the place of the one you mean"
                    )
                seen.add(id(child))
                waiting.append(((path, key), child))


def keys_of(path: Any) -> Keys:
    """The keys of a linked path, outermost first."""
    keys = []
    while path is not None:
        path, key = path
        keys.append(key)
    return tuple(reversed(keys))


def survey(obj: Any) -> list[Network]:
    """Every network below `obj`, the nearest first."""
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
    """The state that the one layout of other names finds, nothing where none does."""
    for obj in (tensors, {"network": tensors}):  # OBoW's names are known by that key
        fitting = list(formats.matching(obj).values())
        if len(fitting) == 1:
            try:
                return fitting[0].extract(obj).state
            except CheckpointError:  # a detector, half a network: another network all the same
                return tensors
    return {}


def _of_an_optimizer(keys: Keys, state: Mapping[str, Tensor]) -> bool:
    """Whether these are momenta or gradients: without BatchNorm's statistics, under an optimizer or a name of theirs."""
    if not keys or any(name.endswith("running_var") for name in state):
        return False
    last = word(keys[-1]).lower()
    under = any("optim" in word(key).lower() for key in keys[:-1])
    return last in _NO_NETWORK or (under and not _AVERAGE.search(last))


def distinct(networks: list[Network]) -> list[Network]:
    """One of each; the copies of a network that are equal to the bit are one."""
    found: list[Network] = []
    for network in networks:
        if not any(same(network.state, other.state) or same(other.state, network.state) for other in found):
            found.append(network)
    return found


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether every tensor that decides what a network computes is in `other`, equal."""
    names = [name for name in one if not name.endswith("num_batches_tracked")]
    return bool(names) and all(name in other and equal(one[name], other[name]) for name in names)


def equal(one: Any, other: Any) -> bool:
    """Whether two tensors are equal to the bit, in float32 where types differ; other objects equal only themselves."""
    if one is other:
        return True
    if not (is_plain(one) and is_plain(other)) or one.shape != other.shape:
        return False
    if one.dtype != other.dtype:
        one, other = one.float(), other.float()
    return bool(torch.equal(one, other) or (one.is_floating_point() and torch.isclose(one, other, 0, 0, True).all()))


def is_plain(value: Any) -> bool:
    """Whether this is a dense tensor with values, none that is sparse, quantised, nested or without storage."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and not (value.is_quantized or value.is_nested or value.is_meta)
    )


def kind_of(value: Any) -> str:
    """`a sparse tensor`, `a str`: a description of a value that is not a dense tensor."""
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
    """A copy of a network as a mere list of tensors: an optimizer's or an EMA's, in the order of the parameters."""

    path: Keys
    tensors: list[Tensor]  # of four dimensions


def unnamed_copies(obj: Any, state: Mapping[str, Tensor]) -> list[Unnamed]:
    """Lists of tensors with other weights for all of a state's convolutions; whose is whose cannot be told from them."""
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
    """(class, place) of pickled objects that hold a network's worth of tensors and are left unread: a module, an average."""
    found = []
    for path, value in walk(obj):
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            if not isinstance(item, Inert) or item.tensors < _FEWEST:
                continue
            if item.is_module or _NETWORK_CLASS.search(item.name) or _AVERAGE.search(word(key)):
                found.append((item.name, (*keys_of(path), key)))
    return found


def _alike(one: Tensor, other: Tensor) -> bool:
    """Equal, or equal once the more exact is rounded to the type of the other (an optimizer's master copy)."""
    if one.shape != other.shape or not (is_plain(one) and is_plain(other)):
        return False
    return equal(one, other) or equal(one, other.to(one.dtype)) or equal(one.to(other.dtype), other)


def _lists(value: Any) -> Iterator[tuple[Keys, list[Tensor]]]:
    """Lists of tensors in a container, and what an optimizer's state holds as an average for each parameter."""
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
