"""Places in a file as a user types them (`--key a.b --prefix trunk.`): find them, and write them for messages."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from backbench.errors import CheckpointError, nearest
from backbench.printable import printable
from model_zoo import formats
from model_zoo.networks import Keys, Network, keys_of, walk
from model_zoo.wrappers import is_counter, tensors_of, word

TOP = "."  # --key for the whole file
_BARE = ("conv1", "bn1", "stem", "layer1", "layer2", "layer3", "layer4", "fc")
_SHOWN = 5


def spelled(keys: Keys) -> str:
    """Return a path as a user types it: keys joined by dots, control characters escaped; `.` for the whole file."""
    return ".".join(printable(word(key)) for key in keys) if keys else TOP


def options(obj: Any, keys: Keys, prefix: str | None = None) -> str | None:
    """Return `--key model --prefix trunk.`, quoted for a shell; None if the path is ambiguous when typed.

    Args:
        obj: the file.
        prefix: None for the whole dictionary.
    """
    path = spelled(keys)
    try:
        if path != TOP and descend(obj, path)[1] != keys:
            return None
    except CheckpointError:
        return None
    said = {
        "--key": path if keys or prefix is None else None,
        "--prefix": prefix if prefix is None else printable(prefix),
    }
    return " ".join(_typed(option, words) for option, words in said.items() if words is not None)


def _typed(option: str, words: str) -> str:
    """Return `--key 'my net'`, joined by `=` if the words look like an option."""
    return shlex.quote(f"{option}={words}") if words.startswith("-") else f"{option} {shlex.quote(words)}"


def descend(obj: Any, path: str) -> tuple[Mapping[Any, Any], Keys]:
    """Return the dictionary at a path of keys joined by dots (keys may contain dots), and its keys.

    Raises:
        CheckpointError: there is no dictionary; the sentence lists the tensors' places.
    """
    if path == TOP:
        found: tuple[Any, Keys] | None = (obj, ())
    else:
        found = next(_resolved(obj, path), None)
    if found is None:
        raise CheckpointError(f"has no '{printable(path)}' (--key){_what_there_is(obj, path)}")
    if not isinstance(found[0], Mapping):
        raise CheckpointError(
            f"'{printable(path)}' (--key) is not a dictionary but a {type(found[0]).__name__}{_what_there_is(obj, path)}"
        )
    return found[0], found[1]


def _resolved(value: Any, rest: str) -> Iterator[tuple[Any, Keys]]:
    """Yield every value that a path may mean, long keys first."""
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    fitting = []
    for key, child in items:
        for name in {word(key), printable(word(key))}:
            if rest == name:
                yield child, (key,)
            elif rest.startswith(f"{name}."):
                fitting.append((len(name), key, child))
    for length, key, child in sorted(fitting, key=lambda each: -each[0]):
        yield from ((found, (key, *below)) for found, below in _resolved(child, rest[length + 1 :]))


def _what_there_is(obj: Any, path: str) -> str:
    """Return `; tensors are under: 'model' (122), ...` with the nearest match."""
    sizes = {}
    for linked, value in walk(obj) if isinstance(obj, Mapping | list | tuple) else ():
        items = value.values() if isinstance(value, Mapping) else ()
        if count := sum(isinstance(item, Tensor) for item in items):
            sizes[spelled(keys_of(linked))] = count
    if not sizes:
        return "; this file has no tensors"
    largest = sorted(sizes, key=lambda each: -sizes[each])[:_SHOWN]
    more = f" and {len(sizes) - _SHOWN} more" if len(sizes) > _SHOWN else ""
    close = hint if "did you mean" in (hint := nearest(path[:200], sizes)) else ""
    return f"; tensors are under: {_counted(largest, sizes)}{more}{close}"


def below(obj: Any, prefix: str, networks: list[Network]) -> tuple[dict[str, Tensor], int, Keys]:
    """Return the tensors with a prefix, without it; the number of others in their dictionary; its keys.

    "" means a ResNet's bare names; a missing dot at the end is added.

    Raises:
        CheckpointError: no dictionary has such tensors, or several have.
    """
    found = []
    for linked, value in walk(obj) if isinstance(obj, Mapping | list | tuple) else ():
        if not isinstance(value, Mapping):
            continue
        raw = {word(k): v for k, v in value.items() if isinstance(v, Tensor) and not is_counter(k, v)}
        for tensors in (tensors_of(value), raw):
            if taken := _taken(tensors, prefix):
                found.append((taken, len(tensors) - len(taken), keys_of(linked)))
                break
    if len(found) > 1:  # a head or an optimizer may have some, too
        whole = [each for each in found if any(network.path == each[2] for network in networks)]
        found = whole or found
    if len(found) == 1:
        return found[0]
    if not found:
        raise CheckpointError(f"no tensor's name begins with '{printable(prefix)}' (--prefix){_prefixes(obj)}")
    ways = [way for _, _, keys in found if (way := options(obj, keys, prefix))]
    raise CheckpointError(
        f"names begin with '{printable(prefix)}' (--prefix) in {len(found)} places: add {' or '.join(ways[:_SHOWN])}"
    )


def _taken(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    if not prefix:
        taken = {name: tensor for name, tensor in tensors.items() if name.partition(".")[0] in _BARE}
        return taken if "" in formats.prefixes(taken) else {}
    for start in (prefix, f"{prefix}."):
        for names in ({name: name for name in tensors}, {printable(name, 10 * len(name)): name for name in tensors}):
            taken = {shown[len(start) :]: tensors[name] for shown, name in names.items() if shown.startswith(start)}
            if taken and "" not in taken and not any(name.startswith(".") for name in taken):
                return taken
    return {}


def _prefixes(obj: Any) -> str:
    """Return `; prefixes of ResNet names: 'module.' (62), ...`."""
    seen: dict[str, int] = {}
    for _, value in walk(obj) if isinstance(obj, Mapping | list | tuple) else ():
        for prefix, names in formats.prefixes(tensors_of(value) if isinstance(value, Mapping) else ()).items():
            seen[prefix] = seen.get(prefix, 0) + len(names)
    if not seen:
        return "; this file has no ResNet names"
    largest = sorted(seen, key=lambda each: -seen[each])[:_SHOWN]
    return f"; prefixes of ResNet names: {_counted(largest, seen)}"


def _counted(words: list[str], counts: Mapping[str, int]) -> str:
    return ", ".join(f"'{printable(each, 80)}' ({counts[each]})" for each in words)
