"""What stands for the objects of a pickle: names that are never looked up, calls that are never made."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from backbench.printable import printable

_NAME = 120  # characters of a name that are kept
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
        """As it can be printed: one line, of a bounded length."""
        return printable(f"{self.module[:_NAME]}.{self.word}", _NAME)

    @property
    def is_plain(self) -> bool:
        """A type of plain values or of numbers: nothing that a reader needs to hear of."""
        if self.module in ("torch", "torch.cuda", "torch.storage"):
            return bool(_DTYPE.fullmatch(self.word)) or self.word.endswith("Storage") or self.word == "Tensor"
        return (self.module, self.word) in _PLAIN or self.module == "numpy.dtypes"


@dataclass(eq=False)
class Object:
    """What a call in a pickle would have made: what was called, with what, and what was put into it since."""

    kind: Any  # a Global in every honest file
    arguments: Any
    named: Any = None
    items: dict[Any, Any] = field(default_factory=dict)
    values: list[Any] = field(default_factory=list)
    state: Any = None

    @property
    def name(self) -> str:
        """Of its class, or of the function that would have made it."""
        kind = self.kind
        for _ in range(8):
            if isinstance(kind, Global):
                return kind.name
            kind = getattr(kind, "kind", None)
        return "an object without a name"

    @property
    def is_module(self) -> bool:
        """A pickled network: `torch.save(model)` instead of `torch.save(model.state_dict())`."""
        return isinstance(self.state, dict) and "_parameters" in self.state and "_modules" in self.state


@dataclass(frozen=True)
class Inert:
    """Stands in what was read for an object that is neither tensor nor plain value; holds its name and does nothing.

    `is_module` says that it is a pickled network, `tensors` how many tensors lie directly in it or in its parts.
    """

    name: str
    is_module: bool = False
    tensors: int = 0

    def __str__(self) -> str:
        return f"<{self.name}>"

    @property
    def kind(self) -> str:
        """In a sentence: `a tensor that is sparse`, `an object that is not a tensor (argparse.Namespace)`."""
        word = self.name.rpartition(".")[2]
        return f"a tensor that is {_KINDS[word]}" if word in _KINDS else f"an object that is not a tensor ({self.name})"


def as_key(value: Any) -> Any:
    """A value as the key of a dictionary: what could be deep, endless or of a chosen hash becomes an object of its own."""
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
