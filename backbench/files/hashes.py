"""SHA-256 of files and of tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from backbench.errors import BackbenchError
from backbench.files import opened


def file_sha256(path: Path) -> str:
    """SHA-256 of a regular file's bytes, hexadecimal; BackbenchError where it cannot be read."""
    return file_digest(path, "sha256")


def file_digest(path: Path, algorithm: str) -> str:
    """Return a checksum of a regular file's bytes, hexadecimal. Raises BackbenchError: the file cannot be read.

    Args:
        algorithm: `sha256`, or `md5` where nothing else is published.
    """
    with opened(path, BackbenchError) as file:
        digest = hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False))  # type: ignore[arg-type]  # typeshed: a BinaryIO fits too
    return digest.hexdigest()


def tensors_sha256(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over (name, dtype, shape, bytes) of the tensors, sorted by name: the same weights in any container."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)  # a copy would take as long as the hash
    return digest.hexdigest()
