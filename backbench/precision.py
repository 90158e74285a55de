"""Number types of an evaluation's forward and backward passes: float32, or autocast to a half type."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

Precision = Literal["fp32", "bf16", "fp16"]
_TYPES: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Return the context of a forward pass. `fp32` leaves every number as it is."""
    return torch.autocast(device.type, _TYPES.get(precision, torch.bfloat16), enabled=precision in _TYPES)


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """Switch TF32 off while the body runs; it has 10 bits of mantissa where float32 has 23.

    cuDNN's convolutions use TF32 unless told otherwise.
    """
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def tf32() -> bool:
    """Return True if a matrix product or a convolution may use TF32."""
    return torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32


class InPrecision(nn.Module):
    """An encoder that runs in a half type and returns float32: what follows it, losses included, stays exact."""

    def __init__(self, module: nn.Module, precision: Precision) -> None:
        super().__init__()
        self.module, self.precision = module, precision

    def forward(self, x: Tensor) -> Tensor:
        """Return the module's features in float32."""
        with autocast(x.device, self.precision):
            y = self.module(x)
        return y.float()


def in_precision(module: nn.Module, precision: Precision) -> nn.Module:
    """Return the module itself in `fp32`; otherwise wrapped."""
    return module if precision == "fp32" else InPrecision(module, precision)
