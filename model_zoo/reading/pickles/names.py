"""The operations that apply while one file is read, and a count of the names that have none."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from backbench.errors import CheckpointError, ConfigError
from backbench.printable import printable
from model_zoo.reading.pickles.objects import Global, Object
from model_zoo.reading.pickles.operations import OPERATIONS, ArrayRef, DtypeRef, Operation, StorageRef, TensorRef

_RESULTS = (dict, OrderedDict, list, tuple, set, frozenset, str, bytes, int, float, complex, bool, type(None),
            Global, Object, TensorRef, StorageRef, ArrayRef, DtypeRef)  # fmt: skip

Pickled = Mapping[tuple[str, str], Operation]  # (module, class) -> operation, a layout's `PICKLED`


@dataclass(frozen=True)
class Names:
    """Operations by name, and how often each unknown name occurs in the file."""

    operations: Mapping[Global, Operation] = field(default_factory=lambda: OPERATIONS)
    unknown: dict[str, int] = field(default_factory=dict)

    def count(self, name: str) -> None:
        """Count one more occurrence of an unknown name."""
        self.unknown[name] = self.unknown.get(name, 0) + 1


def merged(by_layout: Mapping[str, Pickled]) -> dict[Global, Operation]:
    """Return the built-in operations and those of the layouts.

    Raises:
        ConfigError: a layout names a built-in class, two layouts give one class different operations, or an entry is
            malformed.
    """
    operations = dict(OPERATIONS)
    owners: dict[Global, tuple[str, Operation]] = {}
    for layout, pickled in by_layout.items():
        for kind, operation in _entries(layout, pickled):
            if kind in OPERATIONS or kind.is_plain:
                raise ConfigError(
                    f"layout '{layout}': PICKLED names '{kind.name}', which is read by a built-in rule; remove that entry"
                )
            owner, first = owners.setdefault(kind, (layout, operation))
            if first is not operation:
                raise ConfigError(
                    f"layouts '{owner}' and '{layout}': their PICKLED give '{kind.name}' different operations; remove the "
                    "entry from one, or use the same function in both"
                )
            operations[kind] = _checked(owner, kind, operation)
    return operations


def _entries(layout: str, pickled: Any) -> list[tuple[Global, Operation]]:
    entries: list[tuple[Any, Any]] = list(pickled.items()) if isinstance(pickled, Mapping) else [(None, None)]
    found = []
    for key, operation in entries:
        is_name = isinstance(key, tuple) and len(key) == 2 and all(isinstance(word, str) for word in key)
        if not is_name or not callable(operation):
            raise ConfigError(f"layout '{layout}': PICKLED must map pairs (module, class) to functions")
        found.append((Global(key[0], key[1]), operation))
    return found


def _checked(layout: str, kind: Global, operation: Operation) -> Operation:
    """The operation of a layout; CheckpointError if it raises or returns anything but plain values and its arguments."""

    def call(arguments: tuple[Any, ...]) -> Any:
        try:
            value = operation(arguments)
        except Exception as error:  # a plug-in can raise anything
            fault = f"raised {type(error).__name__}: {printable(error, 200)}"
        else:
            if value is NotImplemented or type(value) in _RESULTS:
                return value
            fault = f"returned {type(value).__name__}, not a plain value or a part of its arguments"
        raise CheckpointError(f"the operation of layout '{layout}' for '{kind.name}' in PICKLED {fault}; correct it")

    return call
