"""Read batches from worker processes and raise their errors here with the original text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from backbench.errors import BackbenchError

T = TypeVar("T")


class Told(Iterable[T]):
    """A DataLoader that raises its workers' BackbenchErrors with their own text instead of a worker's traceback."""

    def __init__(self, loader: Iterable[T]) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[T]:
        try:
            yield from self.loader
        except BackbenchError as error:
            kind = type(error)
            text = str(error).rpartition(f"{kind.__module__}.{kind.__qualname__}: ")[2].strip()
            raise kind(text) from None
