"""What a file states of its own architecture and input, before any of it is believed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.errors import CheckpointError
from core.printable import printable

_LONGEST = 16  # items of a value, characters of a number


def plain(fields: Mapping[Any, Any], where: str) -> dict[str, Any]:
    """The fields, once each is a word, a number, a truth value or a short list of numbers.

    Raises:
        CheckpointError: names the field that holds something else.
    """
    for key, value in fields.items():
        if not isinstance(key, str):
            raise CheckpointError(f"{where}: a key must be a word, not {printable(key, 80)}")
        if not _is_plain(value):
            raise CheckpointError(
                f"{where}: '{printable(key, 80)}' is {printable(value, 80)}, no word, number or short list"
            )
    return {key: list(value) if isinstance(value, tuple) else value for key, value in fields.items()}


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return len(value) <= _LONGEST and all(type(item) in (int, float, bool) and _is_plain(item) for item in value)
    if isinstance(value, bool) or value is None:
        return True
    if isinstance(value, int):
        return value.bit_length() <= 64
    if isinstance(value, float):
        return value - value == 0  # neither NaN nor infinite
    return isinstance(value, str) and len(value) <= 200
