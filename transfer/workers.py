"""Batches made by other processes; their errors are raised here with the original sentence."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from backbench.errors import BackbenchError

T = TypeVar("T")


class Told(Iterable[T]):
    """A DataLoader whose workers' errors for the user arrive as they were raised, not inside a traceback of theirs."""

    def __init__(self, loader: Iterable[T]) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[T]:
        try:
            yield from self.loader
        except BackbenchError as error:
            kind = type(error)
            text = str(error).rpartition(f"{kind.__module__}.{kind.__qualname__}: ")[2].strip()
            raise kind(text) from None
