"""Names that wrappers put before or into a network's own: torch.compile, (Fully Sharded) Data Parallel, trainers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from backbench.printable import printable

# Parts of names that wrappers add, wherever they stand: torch.compile, FSDP of torch and FairScale, Lightning's
# Fabric, activation checkpointing.
_NEVER_OWN = frozenset(
    {"_orig_mod", "_fsdp_wrapped_module", "_fpw_module", "_forward_module", "_checkpoint_wrapped_module"}
)
_OUTER = ("module", "model", "net", "network")  # (Distributed)DataParallel, DeepSpeed, and a trainer's attribute
MOST_TENSORS = 10_000  # in one dictionary: a ResNet-152 has 930
_LONGEST = 1000  # characters of a name that are told apart
_COUNTER = "n_averaged"  # torch.optim.swa_utils.AveragedModel


def word(key: Any) -> str:
    """A key of a mapping as text, cut where it is too long to be a name; only text can be a ResNet's name."""
    if not isinstance(key, str):
        return printable(key)
    return key if len(key) <= _LONGEST else f"{key[:_LONGEST]}..."


def is_counter(key: Any, value: Any) -> bool:
    """Whether this is the number of averaged models in an `AveragedModel`, which is not a weight."""
    return (
        isinstance(value, Tensor)
        and isinstance(key, str)
        and key.rpartition(".")[2] == _COUNTER
        and value.numel() == 1
        and not value.is_floating_point()
    )


def tensors_of(mapping: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The tensors of a dictionary by name, without what wrappers add: their parts of names, an average's counter."""
    tensors: dict[str, Tensor] = {}
    for key, value in mapping.items():
        if isinstance(value, Tensor) and not is_counter(key, value):
            name = word(key)
            tensors[name if name not in tensors else f"{name} ({len(tensors)})"] = value
    if not any("_module" in name or "_orig_mod" in name for name in tensors):
        return tensors
    return _renamed(tensors, lambda parts: [part for part in parts if part not in _NEVER_OWN]) or tensors


def unwrapped(tensors: Mapping[str, Tensor]) -> Iterator[Mapping[str, Tensor]]:
    """The tensors, then without one outer wrapper after another, then the same without `module.` inside the names.

    An outer wrapper stands before every convolution; what does not stand below it keeps its name.
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
    """The wrapper that all convolutions' names begin with."""
    first = {name.partition(".")[0] for name, tensor in tensors.items() if tensor.ndim == 4}
    return next(iter(first)) if len(first) == 1 and first <= set(_OUTER) else None


def _renamed(tensors: Mapping[str, Tensor], change: Any) -> dict[str, Tensor] | None:
    """With the parts of every name changed; None where two names would become one, or one nothing."""
    renamed = {".".join(change(name.split("."))): tensor for name, tensor in tensors.items()}
    return renamed if len(renamed) == len(tensors) and "" not in renamed else None
