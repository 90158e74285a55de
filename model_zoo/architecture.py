"""The fields that fix what a backbone computes from its weights, and what it wants to see."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from core.config import Config

Stem = Literal["7x7", "3x3", "3x3-nopool"]


class Architecture(Config):
    """What weights alone do not fix is a field here, and part of a record's identity."""

    name: Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
    width: Annotated[float, Field(gt=0, le=8)] = 1.0  # multiplies the planes of all four stages, not the stem
    stem_width: Annotated[float, Field(gt=0, le=8)] = 1.0  # multiplies the stem's (SwAV w2, SimCLR 2x: as `width`)
    stem: Stem = "7x7"  # 3x3: stride 1, max-pool kept (htdt/self-supervised on STL-10); 3x3-nopool: CIFAR's
    stride_in_1x1: bool = False  # Caffe2 and MSRA put a block's stride into its first 1x1 convolution
    pool_padding: Literal["symmetric", "end", "same"] = (
        "symmetric"  # end: (0, 1) on both axes, as Caffe; same: as below
    )
    conv_padding: Literal["symmetric", "same"] = "symmetric"  # same: TensorFlow's SAME, (2, 3) or (0, 1) at even sides

    @model_serializer(mode="wrap")
    def _without_the_usual(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A field younger than the first records is written only where it says something: identities stay."""
        usual = {"conv_padding": "symmetric", "stem_width": 1.0}
        return {key: value for key, value in handler(self).items() if value != usual.get(key)}


class InputSpec(Config):
    """What the backbone wants to see: RGB or BGR in [0, 1], then mean and std, at this size."""

    size: Annotated[int, Field(ge=16, le=1024)] = 224
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    order: Literal["rgb", "bgr"] = "rgb"


def architecture_fields(arch: Architecture) -> str:
    """`resnet50`, or with what differs from the usual: `resnet50 (width=0.5, stride_in_1x1=True)`."""
    other = unusual(arch)
    return arch.name + (f" ({', '.join(f'{k}={v}' for k, v in other.items())})" if other else "")


def unusual(arch: Architecture) -> dict[str, Any]:
    """The fields, name apart, that are not as they usually are."""
    usual = Architecture(name=arch.name)
    return {k: v for k, v in arch.model_dump(mode="json").items() if v != getattr(usual, k)}
