"""Gradient accumulation: process the batch of a rank in equal parts, one after the other, to save memory.

Each part's losses are divided by the number of parts, so the gradient is the mean of the parts' gradients. `n` parts on one
process therefore give the loss of `n` processes with a part each. It equals the loss of the undivided batch for all losses
that the engine averages over images, or over boxes when every image has equally many of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def split(batch: Any, count: int) -> list[Any]:
    """Split the batch of a rank into `count` parts of equal size, in order.

    Args:
        batch: a sequence of images (Detectron2), or a mapping of such sequences (MMDetection).
    """
    if count == 1:
        return [batch]
    if isinstance(batch, Mapping):
        columns = {name: split(values, count) for name, values in batch.items()}
        return [{name: column[i] for name, column in columns.items()} for i in range(count)]
    size = len(batch) // count
    return [batch[i * size : (i + 1) * size] for i in range(count)]


def indivisible(images: int, parts: int, whose: str) -> str | None:
    """Return an error text with the values that work if `parts` does not divide `images`, else None."""
    if images % parts == 0:
        return None
    *others, last = [str(n) for n in range(1, images + 1) if images % n == 0]
    usable = f"{', '.join(others)} or {last}" if others else last
    return f"accumulate={parts} does not divide {whose} of {images} images; set <cell>.accumulate to {usable}"


def note(batch: int, parts: int, *, frozen: bool) -> str:
    """Return the record's sentence about an accumulated batch over all processes."""
    norms = "norms are frozen" if frozen else f"BatchNorm's statistics are over {batch // parts} images, not {batch}"
    return f"accumulate={parts}: each step adds the gradients of {parts} parts of {batch // parts} images; {norms}"
