"""Find the layout of a file and its backbone; every other network is reported or refused."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from backbench.errors import CheckpointError
from backbench.printable import printable, some
from model_zoo import formats
from model_zoo.choice import NO_CHOICE, Choice
from model_zoo.formats import Extracted, obow
from model_zoo.networks import (
    Keys,
    Network,
    distinct,
    keys_of,
    kind_of,
    same,
    survey,
    unnamed_copies,
    unread_networks,
    walk,
)
from model_zoo.places import below, descend, options, spelled
from model_zoo.wrappers import MOST_TENSORS, is_counter, tensors_of, unwrapped, word

_NAMED = 4  # most networks in an error
_DEEPEST = 6  # most parts of a prefix
_NUMBERS = {2: "two", 3: "three", 4: "four"}
_ALONE = "save the one you want in a separate file"


@dataclass(frozen=True)
class Recognised:
    """A backbone's tensors, their layout, and notes on what was skipped and why."""

    layout: str
    found: Extracted
    notes: tuple[str, ...] = ()
    advice: str = ""  # options that leave out the leftover tensors, if there are any


@dataclass(frozen=True)
class _Scope:
    """The chosen part of a file."""

    file: Any
    keys: Keys = ()
    prefix: str | None = None

    def options(self, network: Network, by_prefix: bool) -> str | None:
        """Return the options to type for a network in this part."""
        inner = network.prefix if by_prefix else None
        if self.prefix is not None:
            inner = self.prefix + (inner or "")
        return options(self.file, (*self.keys, *network.path), inner)


def recognise(obj: Any, choice: Choice = NO_CHOICE) -> Recognised:
    """Return the one layout that matches, and the backbone it extracts.

    Raises:
        CheckpointError: no layout matches, or the file has a second network and no rule chooses; the sentence says what
            was found and what to type.
    """
    scope, notes = _Scope(obj), []
    if choice.key is not None:
        part, keys = descend(obj, choice.key)
        own = any(not network.path for network in survey(part))  # then deeper networks are other places
        scope = _Scope(obj, keys)
        obj = {key: value for key, value in part.items() if isinstance(value, Tensor)} if own else part
    if choice.prefix is not None:
        obj, outside, keys = below(obj, choice.prefix, survey(obj))
        scope = _Scope(scope.file, (*scope.keys, *keys), choice.prefix)
        if outside:
            notes.append(f"{outside} tensors outside the prefix '{printable(choice.prefix)}' are skipped, as requested")
    networks = survey(obj)
    recognised = _by_layout(obj, networks, scope)
    if choice != NO_CHOICE:
        others = [network for network in survey(scope.file) if not same(network.state, recognised.found.state)]
        notes += [f"skipped, as requested: the network {_where(network)}" for network in others]
    return replace(recognised, notes=(*notes, *recognised.notes, *_averaged(obj)))


def _by_layout(obj: Any, networks: list[Network], scope: _Scope) -> Recognised:
    known = formats.modules()
    matching = list(formats.matching(obj))
    kinds = distinct(networks)
    if len(matching) == 1:
        try:
            found = known[matching[0]].extract(obj)
        except formats.SeveralNetworks as error:
            if len(kinds) != 1:
                raise CheckpointError(_refusal(kinds, scope) if kinds else f"{error}: {_ALONE}") from None
        else:
            plainly = Recognised(matching[0], found)
            if any(".module." in f".{name}" for name in found.leftover) and len(kinds) == 1:  # wrapped within
                inner = _alone(obj, kinds[0])
                plainly = inner if inner and not inner.found.leftover else plainly
            return _accounted(plainly, obj, networks, scope)
    if matching and len(kinds) > 1:
        raise CheckpointError(_refusal(kinds, scope))
    if len(matching) > 1:
        raise CheckpointError(
            f"fits more than one layout, {' and '.join(matching)}: none of them gives way to another "
            "(MORE_SPECIFIC_THAN in its module); save the network's state_dict() alone"
        )
    if len(kinds) == 1 and (alone := _alone(obj, kinds[0])):
        return _accounted(alone, obj, networks, scope)
    near = formats.nearest(kinds[0].place if kinds else obj)
    like = f"; nearest: {', '.join(near)}" if near else ""
    seen = _refusal(kinds, scope) if len(kinds) > 1 else _describe(obj, kinds, scope)
    raise CheckpointError(f"no known layout: {seen}{like}; known layouts: {', '.join(known)}")


def _alone(obj: Any, network: Network) -> Recognised | None:
    """Recognise the network's dictionary alone, at any place and without wrappers of its names; None if nothing matches.

    Return the first way to read it that leaves no tensor over, else the first one.
    """
    ways: list[Recognised] = []
    for tensors in unwrapped(tensors_of(network.place)):
        for part in _settings(obj, tensors):
            if len(fitting := formats.matching(part)) == 1:
                ((name, module),) = fitting.items()
                notes = (f"taken from '{spelled(network.path)}'",) if network.path else ()
                ways.append(Recognised(name, module.extract(part), notes))
                if not ways[-1].found.leftover:
                    return ways[-1]
    return ways[0] if ways else None


def _settings(obj: Any, tensors: Mapping[str, Tensor]) -> Iterator[Mapping[str, Any]]:
    """Yield the tensors in every form that layouts expect: in the file's container, flat, under special keys."""
    container = {
        key: obj[key] for key in ("pytorch-lightning_version", "meta") if isinstance(obj, Mapping) and key in obj
    }
    if container:
        yield {**container, "state_dict": tensors}
    yield tensors
    yield {"state_dict": tensors}
    if obow.has_blocks(tensors):  # this key identifies it
        yield {"network": tensors}


def _accounted(recognised: Recognised, obj: Any, networks: list[Network], scope: _Scope) -> Recognised:
    """Add a note for every other network. Raises CheckpointError: one is neither equal nor skipped by the layout's rule."""
    found, notes, beside = recognised.found, list(recognised.notes), []
    mine = [network for network in networks if same(network.state, found.state)]
    rule = getattr(formats.modules()[recognised.layout], "passed_over", None)
    passed = rule(obj) if rule else ()
    for network in networks:
        if network in mine:
            continue
        by_rule = any(fnmatch.fnmatchcase(spelled(network.path), pattern) for pattern in passed)
        if by_rule or network.names <= set(found.dropped):
            notes.append(f"skipped by the rule of layout '{recognised.layout}': the network {_where(network)}")
        else:
            beside.append(network)
    if beside:
        raise CheckpointError(_refusal([*mine[:1], *distinct(beside)], scope))
    if len(mine) > 1:
        notes.append(f"stored {len(mine)} times, bitwise equal: {', '.join(_where(network) for network in mine)}")
    others = [("without names, in the list", copy.path) for copy in unnamed_copies(obj, found.state)]
    others += [(f"left unread ({printable(name, 80)}),", path) for name, path in unread_networks(obj)]
    if others:
        way = mine and scope.options(mine[0], by_prefix=False)
        raise CheckpointError(
            f"contains two networks, {_where(mine[0]) if mine else 'one with names'} and, {others[0][0]} "
            f"'{spelled((*scope.keys, *others[0][1]))}': " + (f"add {way} to take the first" if way else _ALONE)
        )
    return replace(recognised, notes=tuple(notes), advice=_advice(found, mine[0], scope) if mine else "")


def _refusal(networks: list[Network], scope: _Scope) -> str:
    """Return `contains two networks, under 'model' and under 'model_ema': add --key model or --key model_ema`."""
    paths = [network.path for network in networks]
    ways = [scope.options(network, paths.count(network.path) > 1) for network in networks]
    places = [_where(network) for network in networks]
    number = _NUMBERS.get(len(networks), str(len(networks)))
    more = f" and {len(networks) - _NAMED} more places" if len(networks) > _NAMED else ""
    typed = " or ".join(way for way in ways[:_NAMED] if way)
    return f"contains {number} networks, {' and '.join(places[:_NAMED])}{more}: " + (
        f"add {typed}" if typed else _ALONE
    )


def _where(network: Network) -> str:
    """Return `under 'model' after 'student.'`."""
    place = f"under '{spelled(network.path)}'" if network.path else ""
    prefix = f"after '{printable(network.prefix)}'" if network.prefix else ""
    return " ".join(filter(None, (place, prefix))) or "at the top"


def _advice(found: Extracted, network: Network, scope: _Scope) -> str:
    """Return `; if they do not belong to the backbone, add --prefix ...` if all leftovers are outside the prefix."""
    if not found.leftover or scope.prefix is not None:
        return ""
    without = "; if they do not belong to the backbone, save the file again without them"
    heads = {name.partition(".")[0] for name in network.state}
    names = [name for name in tensors_of(network.place) if not name.startswith(network.prefix)]
    if not network.prefix:
        names = [name for name in tensors_of(network.place) if name.partition(".")[0] not in heads]
    outside = all(any(name == left or name.endswith(f".{left}") for name in names) for left in found.leftover)
    way = scope.options(network, by_prefix=True)
    return f"; if they do not belong to the backbone, add {way}" if outside and way else without


def _averaged(obj: Any) -> list[str]:
    """Return a note on torch's AveragedModel: its counter is not a weight, its statistics are not averaged."""
    parts = [obj, *obj.values()] if isinstance(obj, Mapping) else []
    if any(is_counter(key, value) for part in parts if isinstance(part, Mapping) for key, value in part.items()):
        return [
            "averaged weights (torch's AveragedModel): BatchNorm's statistics fit them only if "
            "torch.optim.swa_utils.update_bn was run"
        ]
    return []


def _describe(obj: Any, networks: list[Network], scope: _Scope) -> str:
    """Describe the contents of a file that is not recognised."""
    if not isinstance(obj, Mapping):
        return f"the file contains {kind_of(obj)}, not a dictionary of tensors"
    if networks:
        network = networks[0]
        way = scope.options(network, by_prefix=True)
        stand = f"have the unknown prefix '{printable(network.prefix)}' ({len(network.state)} tensors)"
        if not network.prefix:
            others = sorted(prefix for prefix in formats.prefixes(tensors_of(network.place)) if prefix)
            stand = f"are beside names of another kind of ResNet, with the prefix '{some(others, counted=False)}'"
        return f"ResNet tensors{_under(network.path)} {stand}: " + (f"add {way}" if way else _ALONE)
    keys, tensors = _largest(obj)
    if len(tensors) > MOST_TENSORS:
        return f"{len(tensors):,} tensors{_under(keys)}, more than in any supported network"
    if not tensors:
        return f"no tensors under its keys {some([word(key) for key in obj], counted=False) or '(it is empty)'}"
    if found := formats.prefixes(tensors):
        counts = ", ".join(f"'{printable(p)}' ({len(names)} tensors)" for p, names in sorted(found.items()))
        return f"ResNet tensors{_under(keys)} have the unknown prefix {counts}"
    if prefix := _hidden(tensors):
        way = options(scope.file, (*scope.keys, *keys), (scope.prefix or "") + prefix)
        return f"names of a known layout{_under(keys)} have the unknown prefix '{printable(prefix)}': " + (
            f"add {way}" if way else _ALONE
        )
    return f"{len(tensors)} tensors{_under(keys)}, none named as in a ResNet: {some(list(tensors), counted=False)}"


def _under(keys: Keys) -> str:
    return f" under '{spelled(keys)}'" if keys else ""


def _largest(obj: Mapping[Any, Any]) -> tuple[Keys, dict[str, Tensor]]:
    """Return the path and the tensors of the dictionary with the most tensors."""
    found: tuple[Any, dict[str, Tensor]] = (None, {})
    for path, value in walk(obj):
        if isinstance(value, Mapping) and len(value) > len(found[1]) and len(own := tensors_of(value)) > len(found[1]):
            found = path, own
    return keys_of(found[0]), found[1]


def _hidden(tensors: Mapping[str, Tensor]) -> str:
    """Return the prefix of all convolutions if the names without it fit one known layout, else an empty string."""
    names = [name for name, tensor in tensors.items() if tensor.ndim == 4]
    parts = names[0].split(".")[:_DEEPEST] if names else []
    for depth in range(1, len(parts)):
        prefix = ".".join(parts[:depth]) + "."
        if not all(name.startswith(prefix) for name in names):
            return ""
        inner = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        if len(formats.matching(inner)) == 1:
            return prefix
    return ""
