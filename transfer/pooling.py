"""Pool a backbone's maps to the features of an image."""

from __future__ import annotations

from typing import Literal, Protocol, cast

import torch.nn.functional as F
from torch import Tensor, nn

from backbench.errors import ConfigError
from model_zoo.backbone import Backbone

Pooling = Literal["gap", "res5_2x2"]
CELLS: dict[Pooling, int] = {"gap": 1, "res5_2x2": 4}  # features per channel


class _Staged(Protocol):
    def stages(self, x: Tensor) -> tuple[Tensor, ...]: ...


def pooled(module: nn.Module, x_N3SS: Tensor, pooling: Pooling) -> Tensor:
    """Return the module's output (N, C) for `gap`, or C5 averaged in overlapping windows to 2x2, flattened, for `res5_2x2`.

    `res5_2x2` gives (N, 4C). A window is one shorter than C5 on each side: AvgPool2d(6, stride 1) for the 7x7 of 224 pixels,
    as in VISSL's and FAIR's VOC07.

    Raises:
        ConfigError: C5 has a side of one cell.
    """
    if pooling == "gap":
        return module(x_N3SS)
    c5 = cast(_Staged, module).stages(x_N3SS)[-1]
    height, width = c5.shape[-2:]
    if min(height, width) < 2:
        raise ConfigError(f"feature res5_2x2 needs a C5 of 2x2 cells or more, not {height}x{width}: set a larger size")
    return F.avg_pool2d(c5, (height - 1, width - 1), stride=1).flatten(1)


class Pooled(nn.Module):
    """A backbone's module with pooled features as output."""

    def __init__(self, module: nn.Module, pooling: Pooling) -> None:
        super().__init__()
        self.module, self.pooling = module, pooling

    def forward(self, x_N3SS: Tensor) -> Tensor:
        """Return the features of `pooled`."""
        return pooled(self.module, x_N3SS, self.pooling)


class _Pools(Protocol):
    @property
    def feature(self) -> Pooling: ...


def needs_stages(backbone: Backbone, config: _Pools) -> str | None:
    """Return why the backbone does not fit a task that may pool C5, or None: only a ResNet has C5."""
    if config.feature == "gap" or backbone.is_resnet:
        return None
    return f"feature {config.feature} pools C5 of a ResNet, which {backbone.arch.name} is not: set feature=gap"


def width_of(backbone: Backbone, pooling: Pooling) -> int:
    """Return the number of features of an image."""
    return backbone.feature_dim * CELLS[pooling]
