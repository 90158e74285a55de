"""Files of `numpy.savez`: zip archives of .npy files. Their headers are read without Python's parser."""

from __future__ import annotations

import math
import re
import struct

import numpy as np
from torch import Tensor

from backbench.errors import CheckpointError
from backbench.printable import printable
from model_zoo.reading.archives import Archive
from model_zoo.reading.pickles.names import Names
from model_zoo.reading.pickles.objects import Inert
from model_zoo.reading.pickles.settle import as_tensor

MAGIC = b"\x93NUMPY"
_HEADER = re.compile(
    r"\{'descr': '(?P<order>[<>|=])(?P<code>[a-zA-Z]\d*)', 'fortran_order': (?P<fortran>True|False), "
    r"'shape': \((?P<shape>[\d, ]*)\),? ?\}\s*"
)
_LONGEST = 1 << 16


def is_npz(archive: Archive) -> bool:
    """Return whether all members are .npy files."""
    return bool(archive.members) and all(name.endswith(".npy") for name in archive.names)


def read(archive: Archive, names: Names) -> dict[str, Tensor]:
    """Return the arrays of numbers by name; others are counted in `names` and left unread.

    Raises:
        CheckpointError: damaged, or an array announces more or less than it contains; names it.
    """
    found = {}
    for name in archive.names:
        tensor = array(archive.read_bytes(name), name)
        if isinstance(tensor, Inert):
            names.count(tensor.name)
        else:
            found[name.removesuffix(".npy")] = tensor
    if not found:
        raise CheckpointError(
            "not a readable file of arrays: none of its arrays contains numbers; nothing in it was run"
        )
    return found


def array(data: bytes, name: str) -> Tensor | Inert:
    """Return the tensor in one .npy file, or a stub if it does not contain numbers."""
    if not data.startswith(MAGIC) or len(data) < 12:
        raise CheckpointError(f"not a readable file of arrays: '{printable(name)}' is not a .npy file; damaged?")
    wide = data[6] >= 2
    length = struct.unpack_from("<I" if wide else "<H", data, 8)[0]
    start = 12 if wide else 10
    if length > min(_LONGEST, len(data) - start):
        raise CheckpointError(f"not a readable file of arrays: the header of '{printable(name)}' is too long")
    match = _HEADER.fullmatch(data[start : start + length].decode("latin-1"))
    if match is None or not re.fullmatch(r"[fiub][1248]", match["code"]):
        return Inert("numpy.ndarray without numbers")
    shape = tuple(int(size) for size in re.findall(r"\d{1,18}", match["shape"]))
    dtype = np.dtype(match["order"].replace("|", "=") + match["code"])
    held = len(data) - start - length
    if len(shape) > 32 or math.prod(shape) * dtype.itemsize != held:
        raise CheckpointError(
            f"not a readable file of arrays: '{printable(name)}' announces {math.prod(shape[:32]) * dtype.itemsize} bytes "
            f"and has {held}; damaged?"
        )
    numbers = np.frombuffer(data, dtype, offset=start + length)
    numbers = numbers.reshape(shape, order="F" if match["fortran"] == "True" else "C")
    return as_tensor(numbers.astype(dtype.newbyteorder("="), order="C"))
