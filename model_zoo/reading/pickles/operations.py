"""The operations that a pickle may call: what torch, numpy and Python themselves pickle.

An operation takes plain values and returns plain values, or references to tensors and arrays. It returns NotImplemented
for arguments it does not know; the call then becomes an inert object. Layouts add operations for their own classes
(`PICKLED`), but cannot replace one of these.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from backbench.printable import printable
from model_zoo.reading.pickles.objects import Global, Object, as_key

_STORAGES = {
    "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128,
    "QInt8Storage": torch.int8, "QUInt8Storage": torch.uint8, "QInt32Storage": torch.int32,
    "QUInt4x2Storage": torch.uint8, "QUInt2x4Storage": torch.uint8,
    "UntypedStorage": torch.uint8, "_UntypedStorage": torch.uint8,
}  # fmt: skip
DTYPES = {
    str(value).removeprefix("torch."): value
    for value in vars(torch).values()
    if isinstance(value, torch.dtype) and not re.search(r"\.(q|bits|u?int[1-7]$|float4)", str(value))
}
_AXES = 32

Operation = Callable[[tuple[Any, ...]], Any]  # from the arguments of a call in the pickle


def storage_dtype(kind: Any) -> torch.dtype | None:
    """Return the dtype of a storage class named in a pickle, or None."""
    known = isinstance(kind, Global) and kind.module in ("torch", "torch.cuda", "torch.storage")
    return _STORAGES.get(kind.word) if known else None


@dataclass(frozen=True, eq=False)
class StorageRef:
    """A storage in the file. Its numbers are read when a tensor needs them."""

    key: str
    dtype: torch.dtype
    numel: int
    offset: int = 0  # in numbers; set by views in files from before 2017
    held: torch.Tensor | None = None  # (numel,) of the dtype, if the pickle itself contains the numbers


@dataclass(frozen=True, eq=False)
class TensorRef:
    """A view of a storage, with offset and strides in numbers. Bounds are checked when it becomes a tensor."""

    storage: StorageRef
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        """The number of elements; strides of 0 can make it larger than the storage."""
        return math.prod(self.size)


class DtypeRef:
    """A `numpy.dtype`: its code, and its byte order, which the pickle sets as state."""

    def __init__(self, code: str) -> None:
        self.code, self.order = code, "<"

    def take_state(self, state: Any) -> None:
        """Take the byte order from (version, byte order, ...)."""
        if isinstance(state, tuple) and len(state) > 1 and state[1] == ">":
            self.order = ">"

    @property
    def numpy(self) -> np.dtype | None:
        """The dtype, or None if it is not one of plain numbers."""
        return np.dtype(self.order + self.code) if re.fullmatch(r"[fiub][1248]|c8|c16", self.code) else None


class ArrayRef:
    """A `numpy.ndarray`. `value` builds it from its bytes, never by numpy's own unpickling."""

    def __init__(self, data: Any = b"", dtype: Any = None, shape: Any = (), order: Any = "C") -> None:
        self.data, self.dtype, self.shape, self.order = data, dtype, shape, order

    def take_state(self, state: Any) -> None:
        """Take (version, shape, dtype, is Fortran order, bytes)."""
        if isinstance(state, tuple) and len(state) == 5:
            _, self.shape, self.dtype, fortran, self.data = state
            self.order = "F" if fortran else "C"

    @property
    def name(self) -> str:
        """The name to report if the array is left unread."""
        is_numbers = isinstance(self.dtype, DtypeRef) and self.dtype.numpy is not None
        return (
            "numpy.ndarray" if is_numbers else f"numpy.ndarray of '{printable(getattr(self.dtype, 'code', '?'), 20)}'"
        )

    def value(self) -> np.ndarray | None:
        """The numbers in native byte order and C order; None if it contains anything else.

        Raises:
            ValueError: the shape does not match the number of bytes.
        """
        dtype = self.dtype.numpy if isinstance(self.dtype, DtypeRef) else None
        data = self.data.encode("latin-1", "replace") if isinstance(self.data, str) else self.data  # Python 2's bytes
        if dtype is None or not isinstance(data, bytes) or not is_shape(self.shape):
            return None
        if math.prod(self.shape) * dtype.itemsize != len(data):
            raise ValueError(f"an array announces {math.prod(self.shape)} numbers and has {len(data)} bytes")
        array = np.frombuffer(data, dtype).reshape(self.shape, order="F" if self.order == "F" else "C")
        return array.astype(array.dtype.newbyteorder("="), order="C")


def is_shape(value: Any) -> bool:
    """Return whether `value` is a tuple of sizes."""
    return type(value) is tuple and len(value) <= _AXES and all(type(v) is int and 0 <= v < 1 << 62 for v in value)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, dtype: Any = None, metadata: Any = None) -> Any:
    if not isinstance(storage, StorageRef) or not is_shape((offset,)) or not is_shape(size) or not is_shape(stride):
        return NotImplemented
    if len(size) != len(stride) or metadata:  # metadata marks lazy conjugates and negatives
        return NotImplemented
    if dtype is None:
        dtype = storage.dtype
    elif isinstance(dtype, Global):
        dtype = DTYPES.get(dtype.word) if dtype.module == "torch" else None
    return TensorRef(storage, offset, size, stride, dtype) if isinstance(dtype, torch.dtype) else NotImplemented


def _tensor_v2(a: tuple[Any, ...]) -> Any:
    """Arguments: (storage, offset, size, stride, requires_grad, hooks, metadata)."""
    return _tensor(a[0], a[1], a[2], a[3], metadata=a[6] if len(a) > 6 else None) if len(a) >= 4 else NotImplemented


def _tensor_v3(a: tuple[Any, ...]) -> Any:
    """Arguments: (storage, offset, size, stride, requires_grad, hooks, dtype, metadata)."""
    return _tensor(a[0], a[1], a[2], a[3], a[6], a[7] if len(a) > 7 else None) if len(a) >= 7 else NotImplemented


def _the_tensor(a: tuple[Any, ...]) -> Any:
    """Return the tensor of a parameter, or the tensor or array that stores a tensor of another device."""
    return a[0] if a and isinstance(a[0], (TensorRef, ArrayRef)) else NotImplemented


def _from_type(a: tuple[Any, ...]) -> Any:
    """Return the plain tensor of a tensor subclass; arguments: (function, subclass, arguments, state)."""
    plain = len(a) >= 3 and isinstance(a[0], Global) and a[0].module == "torch._utils" and type(a[2]) is tuple
    operation = OPERATIONS.get(a[0]) if plain else None
    return operation(a[2]) if operation else NotImplemented


def mapping(kind: type[dict]) -> Operation:
    """Return an operation that builds a `kind` from a mapping or pairs; it drops the default of a defaultdict."""

    def build(a: tuple[Any, ...]) -> Any:
        given = a[0] if a else None
        if isinstance(given, dict):
            return kind(given)
        if isinstance(given, list):  # Python 2's OrderedDict
            if not all(type(pair) in (list, tuple) and len(pair) == 2 for pair in given):
                return NotImplemented
            return kind((as_key(key), value) for key, value in given)
        return kind() if given is None or isinstance(given, (Global, Object)) else NotImplemented

    return build


def _set(kind: type) -> Callable[[tuple[Any, ...]], Any]:
    return lambda a: kind(as_key(v) for v in a[0]) if a and type(a[0]) is list else (NotImplemented if a else kind())


def _encode(a: tuple[Any, ...]) -> Any:
    """Bytes as pickle protocol 2 writes them: `_codecs.encode(text, "latin1")`."""
    right = len(a) == 2 and type(a[0]) is str and a[1] in ("latin1", "latin-1")
    return a[0].encode("latin-1", "replace") if right else NotImplemented


def _bytes(a: tuple[Any, ...]) -> Any:
    if not a:
        return b""
    if type(a[0]) is str and len(a) == 2:
        return _encode((a[0], a[1]))
    return a[0] if len(a) == 1 and type(a[0]) is bytes else NotImplemented


def _scalar(a: tuple[Any, ...]) -> Any:
    """A numpy scalar as a Python number."""
    if len(a) != 2 or not isinstance(a[0], DtypeRef):
        return NotImplemented
    data = a[1].encode("latin-1", "replace") if isinstance(a[1], str) else a[1]
    dtype = a[0].numpy
    right = dtype is not None and isinstance(data, bytes) and len(data) == dtype.itemsize
    return np.frombuffer(data, dtype)[0].item() if right else NotImplemented


def _dtype(a: tuple[Any, ...]) -> Any:
    return DtypeRef(a[0]) if a and type(a[0]) is str else NotImplemented


def _from_buffer(a: tuple[Any, ...]) -> Any:
    """An array as pickle protocol 5 writes it."""
    return ArrayRef(*a) if len(a) == 4 else NotImplemented


def _reconstructor(a: tuple[Any, ...]) -> Any:
    """Arguments in protocols 0 and 1: (class, base, state of the base)."""
    if len(a) != 3:
        return NotImplemented
    made = Object(a[0], ())
    if isinstance(a[2], dict):
        made.items = a[2]
    return made


def _load_from_bytes(a: tuple[Any, ...]) -> Any:
    """A storage as `pickle.dump` writes it: the bytes of a legacy torch.save."""
    from model_zoo.reading.torch_files import legacy  # it imports this module

    is_one = len(a) == 1 and type(a[0]) is bytes and legacy.MAGIC in a[0][:32]
    return legacy.storage_in(a[0]) if is_one else NotImplemented


OPERATIONS: dict[Global, Operation] = {
    Global(module, word): operation
    for module, word, operation in (
        ("torch._utils", "_rebuild_tensor", _tensor_v2),
        ("torch._utils", "_rebuild_tensor_v2", _tensor_v2),
        ("torch._utils", "_rebuild_tensor_v3", _tensor_v3),
        ("torch._utils", "_rebuild_parameter", _the_tensor),
        ("torch._utils", "_rebuild_parameter_with_state", _the_tensor),
        ("torch._utils", "_rebuild_device_tensor_from_numpy", _the_tensor),
        ("torch._utils", "_rebuild_device_tensor_from_cpu_tensor", _the_tensor),
        ("torch._tensor", "_rebuild_from_type", _from_type),
        ("torch._tensor", "_rebuild_from_type_v2", _from_type),
        ("torch.storage", "_load_from_bytes", _load_from_bytes),
        ("torch", "Size", lambda a: a[0] if len(a) == 1 and type(a[0]) is tuple else NotImplemented),
        (
            "torch",
            "device",
            lambda a: ":".join(map(str, a)) if all(type(v) in (str, int) for v in a) else NotImplemented,
        ),
        ("collections", "OrderedDict", mapping(OrderedDict)),
        ("collections", "defaultdict", mapping(dict)),
        ("collections", "Counter", mapping(dict)),
        ("builtins", "dict", mapping(dict)),
        ("builtins", "set", _set(set)),
        ("builtins", "frozenset", _set(frozenset)),
        ("builtins", "bytes", _bytes),
        ("builtins", "bytearray", _bytes),
        ("_codecs", "encode", _encode),
        ("copyreg", "_reconstructor", _reconstructor),
        ("copyreg", "__newobj__", lambda a: Object(a[0], a[1:]) if a else NotImplemented),
        ("numpy", "dtype", _dtype),
        *(
            (f"{package}.multiarray", "_reconstruct", lambda _a: ArrayRef())
            for package in ("numpy.core", "numpy._core")
        ),
        *((f"{package}.multiarray", "scalar", _scalar) for package in ("numpy.core", "numpy._core")),
        *((f"{package}.numeric", "_frombuffer", _from_buffer) for package in ("numpy.core", "numpy._core")),
    )
}
