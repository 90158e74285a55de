"""Pickles of dictionaries and numpy arrays, as Detectron2, VISSL's Caffe2 and Haiku write weights. No checksums."""

from __future__ import annotations

from typing import Any, BinaryIO

from backbench.errors import CheckpointError
from backbench.printable import printable
from model_zoo.reading.pickles import machine
from model_zoo.reading.pickles.names import Names
from model_zoo.reading.pickles.settle import settle


def read(file: BinaryIO, size: int, names: Names) -> Any:
    """Return the plain values, with arrays of numbers as tensors.

    Raises:
        CheckpointError: truncated, not a pickle, or larger than any checkpoint.
    """
    try:
        return settle(machine.load(file, size, names), None, size, names)
    except (machine.Malformed, ValueError) as error:
        reason = printable(error)
        raise CheckpointError(f"not a readable pickle; truncated or another format? ({size} bytes; {reason})") from None
