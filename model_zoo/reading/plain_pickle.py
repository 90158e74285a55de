"""A pickle of dictionaries and numpy arrays, as Detectron2, VISSL's Caffe2 files and haiku keep weights; no checksums."""

from __future__ import annotations

from typing import Any, BinaryIO

from backbench.errors import CheckpointError
from backbench.printable import printable
from model_zoo.reading import machine
from model_zoo.reading.settle import settle


def read(file: BinaryIO, size: int, names: dict[str, int]) -> Any:
    """Its plain values, arrays of numbers as tensors.

    Raises:
        CheckpointError: truncated, no pickle, or more than any checkpoint holds.
    """
    try:
        return settle(machine.load(file, size, names), None, size, names)
    except (machine.Malformed, ValueError) as error:
        reason = printable(error)
        raise CheckpointError(f"not a readable pickle; truncated or another format? ({size} bytes; {reason})") from None
