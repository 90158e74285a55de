"""Whether a tensor from a file can be a weight of a network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from backbench.errors import CheckpointError
from model_zoo.networks import is_plain, kind_of


def counter(name: str, tensor: Any) -> Tensor:
    """Return BatchNorm's count of batches. Raises CheckpointError: it is not a single number."""
    if not is_plain(tensor):
        raise CheckpointError(f"'{name}' is not a dense tensor but {kind_of(tensor)}")
    if tensor.numel() != 1:
        raise CheckpointError(f"'{name}' has shape {tuple(tensor.shape)}, a single number is needed")
    return torch.as_tensor(tensor).to(torch.int64).reshape(())


def weight(name: str, tensor: Any, shape: tuple[int, ...], known: str) -> Tensor:
    """Return a weight in float32.

    Args:
        known: the network that needs this shape, for the sentence.

    Raises:
        CheckpointError: not dense, another shape, not floating-point, not finite, or a negative variance.
    """
    if not is_plain(tensor):
        raise CheckpointError(f"'{name}' is not a dense tensor but {kind_of(tensor)}")
    if tuple(tensor.shape) != shape:
        raise CheckpointError(f"'{name}' has shape {tuple(tensor.shape)}, {known} needs {shape}")
    if not tensor.is_floating_point():
        raise CheckpointError(f"'{name}' has {tensor.dtype}, not floating-point numbers")
    found: Tensor = tensor.detach().to(torch.float32).contiguous()
    if not bool(torch.isfinite(found).all()):
        raise CheckpointError(f"'{name}' has NaN or infinite values")
    if name.endswith("running_var") and bool((found < 0).any()):
        raise CheckpointError(f"'{name}' has {int((found < 0).sum())} negative variances")
    return found
