"""Safetensors: a header in JSON and the numbers behind it; it has no checksums."""

from __future__ import annotations

from typing import BinaryIO

from torch import Tensor

from backbench.errors import CheckpointError

_LONGEST = 100_000_000  # of a header, as the library has it


def is_safetensors(head: bytes, size: int) -> bool:
    """Whether a file's first bytes are the length of a header that fits into it and its brace, whatever its name is."""
    length = int.from_bytes(head[:8], "little")
    return head[8:9] == b"{" and 2 <= length <= min(size - 8, _LONGEST)


def read(file: BinaryIO, size: int) -> dict[str, Tensor]:
    """Its tensors; copies, so that a file that changes later changes none.

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
