"""Safetensors: a JSON header, then the numbers. No checksums."""

from __future__ import annotations

from typing import BinaryIO

from torch import Tensor

from backbench.errors import CheckpointError

_LONGEST = 100_000_000  # bytes of a header, the library's limit


def is_safetensors(head: bytes, size: int) -> bool:
    """Return whether the first bytes are a header length that fits into the file, and a brace."""
    length = int.from_bytes(head[:8], "little")
    return head[8:9] == b"{" and 2 <= length <= min(size - 8, _LONGEST)


def read(file: BinaryIO, size: int) -> dict[str, Tensor]:
    """Return the tensors, copied: later changes of the file do not affect them.

    Raises:
        CheckpointError: damaged, or not a safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    head = file.read(9)
    if not is_safetensors(head, size):
        raise CheckpointError(f"not a readable safetensors file; truncated or another format? ({size} bytes)")
    try:
        file.seek(0)
        return load(file.read())
    except (SafetensorError, KeyError, ValueError, RuntimeError, OverflowError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"not a readable safetensors file; damaged? ({size} bytes; {reason})") from None
