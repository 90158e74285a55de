"""Maps of frozen features: C5 of a ResNet, dilated to a given stride, or the patch tokens of a timm ViT."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from backbench.errors import ConfigError
from model_zoo.architecture import Architecture
from model_zoo.backbone import Backbone
from model_zoo.blocks import ResNet
from transfer.segmentation.dilation import dilated
from transfer.tokens import patch_tokens

# Strides and dilations of the four stages, by how many times C5's stride is divided.
_DIVIDED = {1: ((1, 2, 2, 2), (1, 1, 1, 1)), 2: ((1, 2, 2, 1), (1, 1, 1, 2)), 4: ((1, 2, 1, 1), (1, 1, 2, 4))}
_STEMS = {"3x3": 2, "3x3-nopool": 1}  # strides of stem and pool; all others have 4


class Stages(nn.Module):
    """C5 of a ResNet."""

    def __init__(self, trunk: ResNet) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, C, H / stride, W / stride)."""
        return self.trunk.stages(x)[-1]


class Tokens(nn.Module):
    """The patch tokens of a timm ViT after its last norm, without class and register tokens."""

    def __init__(self, vit: Any, patch: int) -> None:
        super().__init__()
        self.vit, self.patch = vit, patch

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, C, H / patch, W / patch)."""
        tokens = patch_tokens(self.vit, x)
        return tokens.transpose(1, 2).unflatten(2, (x.shape[2] // self.patch, x.shape[3] // self.patch))


def build(backbone: Backbone, stride: int, side: int) -> nn.Module:
    """Return a new frozen module (N, 3, side, side) -> (N, C, h, w) in evaluation mode; its weights are the backbone's.

    A ResNet's last stages have dilation instead of a stride: the first block half of it, as in torchvision's
    `replace_stride_with_dilation` and in Leopart's src/resnet.py. A ViT's position embedding is interpolated to the side.

    Args:
        stride: of C5 in pixels; a ViT's patch is its stride.
        side: of the square images.

    Raises:
        ConfigError: as `unfit`.
    """
    if reason := unfit(backbone, stride, side):
        raise ConfigError(reason)
    module: Any = backbone.build()
    if backbone.is_resnet:
        times = _own_stride(backbone.arch) // stride
        found: nn.Module = Stages(dilated(module, *_DIVIDED[times]))
    else:
        if module.patch_embed.img_size != (side, side):
            module.set_input_size(img_size=(side, side))
        found = Tokens(module, _patch(module))
    return found.requires_grad_(False).eval()


def unfit(backbone: Backbone, stride: int, side: int) -> str | None:
    """Return why the backbone gives no such map, or None."""
    if backbone.is_resnet:
        arch = backbone.arch
        own = _own_stride(arch)
        if own % stride or own // stride not in _DIVIDED:
            return f"C5 of a {arch.name} with stem {arch.stem} has stride {own}: set stride={own}"
        if own // stride == 4 and arch.conv_padding == "same":
            return f"TensorFlow's padding of {arch.name} is not defined for stride {stride}: set stride={own // 2}"
        return None
    module: Any = getattr(backbone, "module", None)
    parts = ("forward_features", "num_prefix_tokens", "patch_embed", "blocks", "set_input_size")
    if not all(hasattr(module, part) for part in parts) or _patch(module) == 0:
        return f"{backbone.arch.name} has no C5 of a ResNet and no patch tokens of a timm ViT, which give a map of features"
    patch = _patch(module)
    if side % patch:
        return f"patches of {patch} pixels do not tile {side}: set crop={side // patch * patch}"
    return None


def width_of(module: nn.Module, side: int) -> int:
    """Return C, the channels of the map."""
    with torch.no_grad():
        return int(module(torch.zeros(1, 3, side, side)).shape[1])


def _own_stride(arch: Architecture) -> int:
    return 8 * _STEMS.get(arch.stem, 4)


def _patch(vit: Any) -> int:
    """Return the side of the patches, 0 where they are not square."""
    size = getattr(vit.patch_embed, "patch_size", None)
    return int(size[0]) if isinstance(size, tuple) and len(set(size)) == 1 else 0
