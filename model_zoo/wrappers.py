"""Parts of names that wrappers add: torch.compile, (Fully Sharded) Data Parallel, trainers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from backbench.printable import printable

# Parts that wrappers add anywhere in a name: torch.compile, FSDP of torch and FairScale, Lightning's Fabric,
# activation checkpointing.
_NEVER_OWN = frozenset(
    {"_orig_mod", "_fsdp_wrapped_module", "_fpw_module", "_forward_module", "_checkpoint_wrapped_module"}
)
_OUTER = ("module", "model", "net", "network")  # (Distributed)DataParallel, DeepSpeed, a trainer's attribute
MOST_TENSORS = 10_000  # in one dictionary; a ResNet-152 has 930
_LONGEST = 1000  # characters of a name
_COUNTER = "n_averaged"  # torch.optim.swa_utils.AveragedModel


def word(key: Any) -> str:
    """Return a mapping's key as text, shortened if it is too long for a name."""
    if not isinstance(key, str):
        return printable(key)
    return key if len(key) <= _LONGEST else f"{key[:_LONGEST]}..."


def is_counter(key: Any, value: Any) -> bool:
    """Return whether this is the counter of an `AveragedModel`, which is not a weight."""
    return (
        isinstance(value, Tensor)
        and isinstance(key, str)
        and key.rpartition(".")[2] == _COUNTER
        and value.numel() == 1
        and not value.is_floating_point()
    )


def tensors_of(mapping: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Return a dictionary's tensors by name, without the parts of names and the counters that wrappers add."""
    tensors: dict[str, Tensor] = {}
    for key, value in mapping.items():
        if isinstance(value, Tensor) and not is_counter(key, value):
            name = word(key)
            tensors[name if name not in tensors else f"{name} ({len(tensors)})"] = value
    if not any("_module" in name or "_orig_mod" in name for name in tensors):
        return tensors
    return _renamed(tensors, lambda parts: [part for part in parts if part not in _NEVER_OWN]) or tensors


def unwrapped(tensors: Mapping[str, Tensor]) -> Iterator[Mapping[str, Tensor]]:
    """Yield the tensors, then without one outer wrapper after another, then each without `module.` inside the names.

    An outer wrapper precedes every convolution's name; other names keep their form.
    """
    levels = [tensors]
    while (outer := _outermost(levels[-1])) and (
        less := _renamed(levels[-1], lambda parts, o=outer: parts[1:] if parts[0] == o and parts[1:] else parts)
    ):
        levels.append(less)
    yield from levels
    for level in levels:
        less = _renamed(level, lambda parts: [part for part in parts if part != "module"])
        if less and list(less) != list(level):
            yield less


def _outermost(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the wrapper with which all convolutions' names begin, or None."""
    first = {name.partition(".")[0] for name, tensor in tensors.items() if tensor.ndim == 4}
    return next(iter(first)) if len(first) == 1 and first <= set(_OUTER) else None


def _renamed(tensors: Mapping[str, Tensor], change: Any) -> dict[str, Tensor] | None:
    """Return the tensors with changed names; None if two names would become equal, or one empty."""
    renamed = {".".join(change(name.split("."))): tensor for name, tensor in tensors.items()}
    return renamed if len(renamed) == len(tensors) and "" not in renamed else None
