"""A backbone's output before it is pooled: the cells of a ResNet's C5, or the patch tokens of one of timm's transformers."""

from __future__ import annotations

from typing import Protocol, cast

from torch import Tensor, nn

from model_zoo.backbone import Backbone
from model_zoo.external import ExternalBackbone


class _Staged(Protocol):
    def stages(self, x: Tensor) -> tuple[Tensor, ...]: ...


class _Transformer(Protocol):
    num_prefix_tokens: int

    def forward_features(self, x: Tensor) -> Tensor: ...


def without_tokens(backbone: Backbone) -> str | None:
    """Return why a backbone has no tokens, or None."""
    if backbone.is_resnet:
        return None
    module = backbone.module if isinstance(backbone, ExternalBackbone) else None
    if hasattr(module, "forward_features") and hasattr(module, "num_prefix_tokens"):
        return None
    return (
        f"it needs C5 of a ResNet or the patch tokens of one of timm's transformers, which {backbone.arch.name} is not"
    )


def patch_tokens(module: nn.Module, x_N3SS: Tensor) -> Tensor:
    """Return the patch tokens (N, T, C) of a timm transformer after its last norm, without class and register tokens."""
    network = cast(_Transformer, module)
    return network.forward_features(x_N3SS)[:, network.num_prefix_tokens :]


class Tokens(nn.Module):
    """A backbone's module with tokens as output."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x_N3SS: Tensor) -> Tensor:
        """Return (N, T, C): C5's cells in rows, or the patch tokens after the last norm, without class and register tokens."""
        if hasattr(self.module, "stages"):
            return cast(_Staged, self.module).stages(x_N3SS)[-1].flatten(2).transpose(1, 2)
        return patch_tokens(self.module, x_N3SS)
