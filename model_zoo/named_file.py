"""Read a checkpoint file of a network that the user names: every tensor of it, and no other, has to be there."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backbench.errors import CheckpointError
from backbench.printable import printable, some
from model_zoo import external, named, soundness
from model_zoo.choice import Choice
from model_zoo.external import ExternalArchitecture, ExternalBackbone
from model_zoo.named import Layout
from model_zoo.named_arch import NamedNetwork, build
from model_zoo.networks import Keys, keys_of, same, walk
from model_zoo.places import descend, options, spelled
from model_zoo.snapshot import Contents
from model_zoo.stated import plain, sidecar
from model_zoo.wrappers import MOST_TENSORS, tensors_of

_ALONE = Layout(keys=(), prefixes=())  # of a file with one network
_MOST_SHOWN = 4


@dataclass(frozen=True, eq=False)
class _Place:
    """A network of the named architecture, or most of one."""

    path: Keys
    prefix: str
    tensors: Mapping[str, Tensor]  # all of its dictionary

    @property
    def state(self) -> dict[str, Tensor]:
        """The tensors with the prefix, without it."""
        start = len(self.prefix)
        return {name[start:]: tensor for name, tensor in self.tensors.items() if name.startswith(self.prefix)}


def of_file(path: Path, read: Contents, choice: Choice, name: str) -> ExternalBackbone:
    """Return the backbone in a file's contents, with the architecture of `choice.arch`.

    Raises:
        CheckpointError: the file has no such network or two of them, or its tensors are not exactly the network's.
    """
    network = build(choice.arch or "")
    expected = network.module.state_dict()
    label, place, notes = _located(read.content, choice, expected, network.words)
    layout = named.layouts().get(label, _ALONE)
    state, dropped = _fitting(place, layout, network, expected, skip_outside=choice.prefix is not None)
    _refuse_other_heads(label, layout, network)
    network.module.load_state_dict(state)
    side = sidecar(path)
    if "arch" in side:
        raise CheckpointError(f"{path.name}.yaml: its `arch` fields are a ResNet's; write the fields behind --arch")
    stated = {**read.input, **side.get("input", {})}
    spec = external.input_of(str(path), {"size": network.size, **plain(stated, "input")})
    notes += [*read.notes, *_assumed(network, layout, bool(stated))]
    if dropped:
        notes.append(f"dropped {len(dropped)} tensors by the layout's list: {some(dropped, counted=False)}")
    import timm

    arch = ExternalArchitecture(name=network.words, library=f"timm {timm.__version__}")
    return external.checked(str(path), network.module, arch, spec, name, label, tuple(map(printable, notes)))


def _located(obj: Any, choice: Choice, expected: Mapping[str, Tensor], words: str) -> tuple[str, _Place, list[str]]:
    """Return the layout's name, the network to take, and notes on networks that were skipped."""
    known = named.layouts()
    if choice.key is not None or choice.prefix is not None:
        place = _asked_for(obj, choice, expected, words)
        label = next((n for n, layout in known.items() if _is_of(layout, place, any_key=True)), "timm")
        others = [other for other in _places(obj, expected) if not same(other.state, place.state)]
        return label, place, [f"skipped, as requested: the network {_where(other)}" for other in others]
    places = _distinct(_places(obj, expected))
    if not places:
        raise CheckpointError(_nothing(obj, expected, words))
    for label, layout in known.items():
        for place in places:
            if _is_of(layout, place):
                others = [other for other in places if other is not place]
                if beside := [other for other in others if not _is_passed_over(layout, other)]:
                    raise CheckpointError(_several(obj, [place, *beside]))
                skipped = [f"skipped by the rule of layout '{label}': the network {_where(other)}" for other in others]
                return label, place, skipped
    if len(places) > 1:
        raise CheckpointError(_several(obj, places))
    return "timm", places[0], []


def _places(obj: Any, expected: Mapping[str, Tensor]) -> list[_Place]:
    """Return every dictionary and prefix with at least half of the expected names."""
    found: list[_Place] = []
    for linked, value in walk(obj) if isinstance(obj, Mapping | list | tuple) else ():
        if not isinstance(value, Mapping) or not len(expected) / 2 <= len(value) <= MOST_TENSORS:
            continue
        tensors = tensors_of(value)
        counts: Counter[str] = Counter()
        for name in tensors:
            dots = [0, *(place + 1 for place, c in enumerate(name) if c == ".")]
            counts.update(name[:start] for start in dots if name[start:] in expected)
        found += [_Place(keys_of(linked), prefix, tensors) for prefix, n in counts.items() if n >= len(expected) / 2]
    return found


def _distinct(places: Sequence[_Place]) -> list[_Place]:
    found: list[_Place] = []
    for place in places:
        if not any(same(place.state, other.state) for other in found):
            found.append(place)
    return found


def _is_of(layout: Layout, place: _Place, *, any_key: bool = False) -> bool:
    """Return whether a network is where the layout has the one that transfers."""
    key = spelled(place.path) if place.path else ""
    marked = any(fnmatch.fnmatchcase(name, mark) for mark in layout.marks for name in place.tensors)
    return (any_key or key in layout.keys) and place.prefix in layout.prefixes and (marked or not layout.is_marked)


def _is_passed_over(layout: Layout, other: _Place) -> bool:
    in_its_list = all(_fits(f"{other.prefix}{name}", layout.drop) for name in other.state)
    return in_its_list or _fits(spelled(other.path), layout.passed_over)


def _fits(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _asked_for(obj: Any, choice: Choice, expected: Mapping[str, Tensor], words: str) -> _Place:
    """Return the network under `--key` and `--prefix`."""
    places = _places(obj, expected)
    if choice.key is not None:
        part, keys = descend(obj, choice.key)
        places = [place for place in places if place.path == keys] or [_Place(keys, "", tensors_of(part))]
    if choice.prefix is not None:
        wanted = {choice.prefix, f"{choice.prefix}."} if choice.prefix else {""}
        places = [place for place in places if place.prefix in wanted]
    if len(places) != 1:
        raise CheckpointError(_several(obj, places) if places else _nothing(obj, expected, words))
    return places[0]


def _fitting(
    place: _Place, layout: Layout, network: NamedNetwork, expected: Mapping[str, Tensor], *, skip_outside: bool
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the network's tensors and the names that were dropped.

    Raises:
        CheckpointError: names the missing and the unexpected tensors, or the first unsound one.
    """
    heads = [f"{place.prefix}{name}{end}" for name in network.classifiers for end in ("", ".*")]
    others = [name for name in place.tensors if name.removeprefix(place.prefix) not in expected or not
              name.startswith(place.prefix)]  # fmt: skip
    if skip_outside:
        others = [name for name in others if name.startswith(place.prefix)]
    dropped = [name for name in others if _fits(name, (*layout.drop, *heads))]
    unexpected = [name for name in others if name not in set(dropped)]
    counters = {name for name in expected if name.endswith("num_batches_tracked")}
    state = place.state
    missing = [name for name in expected if name not in state and name not in counters]
    if missing or unexpected:
        whole = len(expected) - len(counters)
        gaps = [f"{len(missing)} of its {whole} tensors missing: {some(missing, counted=False)}"] if missing else []
        gaps += [f"{len(unexpected)} unexpected: {some(unexpected, counted=False)}"] if unexpected else []
        raise CheckpointError(f"does not fit {network.words}, {_where(place)}: {'; '.join(gaps)}")
    return {name: _sound(name, state, own, network.words, counters) for name, own in expected.items()}, dropped


def _sound(name: str, state: Mapping[str, Tensor], own: Tensor, words: str, counters: set[str]) -> Tensor:
    if name in counters:
        return soundness.counter(name, state.get(name, torch.zeros(())))
    if own.is_floating_point():
        return soundness.weight(name, state[name], tuple(own.shape), words)
    if not torch.equal(state[name], own):  # a table that timm computes, such as positions in a window
        raise CheckpointError(f"'{name}' is not the table that timm computes for {words}")
    return own


def _refuse_other_heads(label: str, layout: Layout, network: NamedNetwork) -> None:
    """Raise CheckpointError if the trainer's network splits its width into another number of heads."""
    if network.heads is None:
        return
    heads, width = network.heads
    if layout.heads.get(width, heads) != heads:
        raise CheckpointError(
            f"a file of layout '{label}': its transformer of width {width} has {layout.heads[width]} attention heads, "
            f"{network.words} has {heads}: add num_heads={layout.heads[width]} to --arch, behind a question mark"
        )


def _assumed(network: NamedNetwork, layout: Layout, is_stated: bool) -> list[str]:
    """Return what the tensors do not show, and what is taken for it."""
    notes = []
    if network.heads and network.heads[1] not in layout.heads:
        notes.append(f"tensors do not show the number of attention heads: {network.heads[0]} assumed")
    if network.pooling:
        notes.append(f"features: timm's pooling '{network.pooling}'")
    if not is_stated:
        notes.append(f"tensors do not show the input: RGB, {network.size} px, ImageNet's mean and std assumed")
    return notes


def _where(place: _Place) -> str:
    """Return `under 'teacher' after 'backbone.'`."""
    key = f"under '{spelled(place.path)}'" if place.path else ""
    prefix = f"after '{printable(place.prefix)}'" if place.prefix else ""
    return " ".join(filter(None, (key, prefix))) or "at the top"


def _several(obj: Any, places: Sequence[_Place]) -> str:
    ways = [options(obj, place.path, place.prefix) for place in places[:_MOST_SHOWN]]
    where = " and ".join(_where(place) for place in places[:_MOST_SHOWN])
    typed = " or ".join(way for way in ways if way)
    return f"contains {len(places)} networks of this architecture, {where}: add {typed or 'their --key'}"


def _nothing(obj: Any, expected: Mapping[str, Tensor], words: str) -> str:
    """Say which names the file has, and which the network."""
    largest: dict[str, Tensor] = {}
    for _, value in walk(obj) if isinstance(obj, Mapping | list | tuple) else ():
        if isinstance(value, Mapping) and len(tensors := tensors_of(value)) > len(largest):
            largest = tensors
    there = some(list(largest), counted=False) or "no tensors"
    missing = [name for name in expected if name not in largest]
    gap = f"{len(missing)} of its {len(expected)} tensors missing: {some(missing, counted=False)}"
    return f"does not fit {words}: {gap}; the file has {there}"
