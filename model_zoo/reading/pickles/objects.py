"""Inert objects that replace those of a pickle: names that are never looked up, calls that are never made."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from backbench.printable import printable

_NAME = 120  # longest name that is printed
_PLAIN = {
    *(("builtins", name) for name in ("list", "dict", "set", "frozenset", "tuple", "object", "int", "float", "str",
                                      "bool", "bytes", "bytearray", "complex", "slice", "range", "xrange", "unicode")),
    ("collections", "OrderedDict"), ("collections", "defaultdict"), ("torch.nn.parameter", "Parameter"),
    ("torch.serialization", "_get_layout"),
    ("numpy", "ndarray"), ("numpy", "dtype"),
}  # fmt: skip
_DTYPE = re.compile(r"(u?int|b?float|complex)\d+(_\w+)?|bool|half|float|double|long|int")


_KINDS = {
    "_rebuild_sparse_tensor": "sparse",
    "_rebuild_qtensor": "quantised",
    "_rebuild_nested_tensor": "nested",
    "_rebuild_njt": "nested",
    "_rebuild_meta_tensor_no_storage": "without values (meta)",
    "_rebuild_wrapper_subclass": "of another class (sharded?)",
    "DTensor": "of another class (sharded?)",
}


class Global:
    """A name in a pickle, `module.name`: compared and printed, never imported."""

    __slots__ = ("_hash", "module", "word")

    def __init__(self, module: str, word: str) -> None:
        self.module = {"__builtin__": "builtins", "exceptions": "builtins", "copy_reg": "copyreg"}.get(module, module)
        self.word = word
        self._hash = hash((self.module, word))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Global) and (self.module, self.word) == (other.module, other.word)

    def __hash__(self) -> int:
        return self._hash

    @property
    def name(self) -> str:
        """The name for messages: one line of bounded length."""
        return printable(f"{self.module[:_NAME]}.{self.word}", _NAME)

    @property
    def is_plain(self) -> bool:
        """Whether it is a type of plain values or numbers, which needs no note."""
        if self.module in ("torch", "torch.cuda", "torch.storage"):
            return bool(_DTYPE.fullmatch(self.word)) or self.word.endswith("Storage") or self.word == "Tensor"
        return (self.module, self.word) in _PLAIN or self.module == "numpy.dtypes"


@dataclass(eq=False)
class Object:
    """A call in a pickle that was not made: the function, its arguments, and what the pickle then put into the result."""

    kind: Any  # a Global, except in hostile files
    arguments: Any
    named: Any = None
    items: dict[Any, Any] = field(default_factory=dict)
    values: list[Any] = field(default_factory=list)
    state: Any = None

    @property
    def name(self) -> str:
        """The name of its class, or of the function that would have made it."""
        kind = self.kind
        for _ in range(8):
            if isinstance(kind, Global):
                return kind.name
            kind = getattr(kind, "kind", None)
        return "an object without a name"

    @property
    def is_module(self) -> bool:
        """Whether it is a pickled network: `torch.save(model)` instead of `torch.save(model.state_dict())`."""
        return isinstance(self.state, dict) and "_parameters" in self.state and "_modules" in self.state


@dataclass(frozen=True)
class Inert:
    """A stub for an object that is neither a tensor nor a plain value. It has a name and does nothing.

    `is_module`: it is a pickled network. `tensors`: how many tensors it and its parts contain.
    """

    name: str
    is_module: bool = False
    tensors: int = 0

    def __str__(self) -> str:
        return f"<{self.name}>"

    @property
    def kind(self) -> str:
        """Words for a sentence: `a tensor that is sparse`, `an object that is not a tensor (argparse.Namespace)`."""
        word = self.name.rpartition(".")[2]
        return f"a tensor that is {_KINDS[word]}" if word in _KINDS else f"an object that is not a tensor ({self.name})"


def as_key(value: Any) -> Any:
    """Return a value that is safe as a dictionary key; deep or huge ones, or ones with a chosen hash, become an `Object`."""
    kind = type(value)
    if kind is int:
        return value if abs(value) < 1 << 60 else str(value)
    if kind in (str, bytes, float, bool, type(None), Global):
        return value
    if kind is tuple and len(value) <= 8 and all(type(v) in (str, float, bool) or _small(v) for v in value):
        return value
    return value if isinstance(value, Object) else Object(Global("builtins", kind.__name__), ())


def _small(value: Any) -> bool:
    return type(value) is int and abs(value) < 1 << 60
