"""The fields that define what a backbone computes from its weights, and what input it expects."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from backbench.config import Config

_Mean = Annotated[float, Field(ge=-1e6, le=1e6)]
_Std = Annotated[float, Field(ge=1e-6, le=1e6)]  # images are divided by it
Stem = Literal["7x7", "3x3", "3x3-nopool", "deep", "deep-tiered"]
DEEP = ("deep", "deep-tiered")
BASIC = ("resnet18", "resnet34")  # two 3x3 convolutions per block; the others have bottlenecks
_VARIANT = re.compile(
    r"(?P<wide>wide_)?resne(?P<x>x?)t(?P<depth>\d{2,3})(?P<suffix>[cdst]?)(?:_(?:(?P<times>2)|(?P<groups>\d{1,3})x(?P<each>\d{1,3})d))?"
)
_SUFFIXES: dict[str, dict[str, Any]] = {  # timm's; c and d are from He et al. 2019 (Bag of Tricks), section 4.2
    "": {},
    "c": {"stem": "deep"},
    "d": {"stem": "deep", "avg_down": True},
    "s": {"stem": "deep", "stem_width": 2.0},
    "t": {"stem": "deep-tiered", "avg_down": True},
}


class Architecture(Config):
    """An architecture. Fields that the weights do not determine are part of a record's identity."""

    name: Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnet26", "resnet200"]
    width: Annotated[float, Field(gt=0, le=8)] = 1.0  # multiplies the planes of all four stages, not the stem
    stem_width: Annotated[float, Field(gt=0, le=8)] = (
        1.0  # multiplies the stem's planes (SwAV w2, SimCLR 2x: same as `width`)
    )
    stem: Stem = "7x7"  # 3x3: stride 1, max-pool kept (htdt/self-supervised on STL-10); 3x3-nopool: CIFAR's;
    # deep: three 3x3 convolutions, the first two half as wide (ResNet-C, -D); deep-tiered: 3/8, 1/2 and all (timm's t)
    stride_in_1x1: bool = False  # Caffe2 and MSRA put a block's stride into its first 1x1 convolution
    pool_padding: Literal["symmetric", "end", "same"] = (
        "symmetric"  # end: (0, 1) on both axes, as Caffe; same: as below
    )
    conv_padding: Literal["symmetric", "same"] = "symmetric"  # same: TensorFlow's SAME, (2, 3) or (0, 1) at even sides
    groups: Annotated[int, Field(ge=1, le=256)] = 1  # groups of a bottleneck's 3x3 convolution (ResNeXt's cardinality)
    base_width: Annotated[int, Field(ge=1, le=2048)] = 64  # planes per group in a stage of 64 planes (128: Wide ResNet)
    avg_down: bool = False  # a strided shortcut is a 2x2 average and a 1x1 convolution (ResNet-D)

    @model_validator(mode="after")
    def _consistent(self) -> Architecture:
        """Check that all numbers of planes are integers, and that only bottlenecks have groups."""
        planes, stem = _whole(self.width, "width"), _whole(self.stem_width, "stem_width")
        if self.stem in DEEP and stem % (2 if self.stem == "deep" else 8):
            raise ValueError(f"stem '{self.stem}' needs {'an even number' if self.stem == 'deep' else 'a multiple of 8'} "
                             f"of planes, stem_width {self.stem_width:g} is {stem}")  # fmt: skip
        if self.name in BASIC and (self.groups, self.base_width) != (1, 64):
            raise ValueError(
                f"{self.name} has basic blocks, which take neither groups nor base_width (groups {self.groups}, "
                f"base_width {self.base_width}): leave both out, or choose a ResNet with bottlenecks (resnet50)"
            )
        if planes * self.base_width % 64:
            raise ValueError(
                f"base_width {self.base_width} at width {self.width:g} is {planes * self.base_width / 64:g} planes a "
                f"group in the first stage, a whole number is needed"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_the_usual(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Write fields that are newer than the first records only if they differ from the default, so identities stay."""
        usual = {"conv_padding": "symmetric", "stem_width": 1.0, "groups": 1, "base_width": 64, "avg_down": False}
        return {key: value for key, value in handler(self).items() if key not in usual or value != usual[key]}


def _whole(width: float, field: str) -> int:
    """Return 64 times a width. Raises ValueError: not a whole number."""
    planes = 64 * width
    if planes != round(planes):
        near = max(round(planes), 1)
        raise ValueError(
            f"{field} {width:g} is {planes:.3g} planes, a whole number is needed; nearest: {field} {near / 64:g} ({near})"
        )
    return round(planes)


class InputSpec(Config):
    """The input that a backbone expects: RGB or BGR in [0, 1], then mean and std, at this size."""

    size: Annotated[int, Field(ge=16, le=1024)] = 224
    mean: tuple[_Mean, _Mean, _Mean] = (0.485, 0.456, 0.406)
    std: tuple[_Std, _Std, _Std] = (0.229, 0.224, 0.225)
    order: Literal["rgb", "bgr"] = "rgb"


def named(name: str) -> Architecture | None:
    """Return the architecture of a torchvision or timm name (`wide_resnet50_2`, `resnext101_32x8d`, `resnet50d`), or None."""
    found = _VARIANT.fullmatch(name)
    if not found or bool(found["wide"]) != bool(found["times"]) or bool(found["x"]) != bool(found["groups"]):
        return None
    fields = {"name": f"resnet{found['depth']}", **_SUFFIXES[found["suffix"]]}
    if found["times"]:
        fields["base_width"] = 128
    if found["groups"]:
        fields |= {"groups": int(found["groups"]), "base_width": int(found["each"])}
    try:
        return Architecture(**fields)
    except ValueError:  # another depth, or basic blocks with groups
        return None


def family(arch: Architecture) -> str:
    """Return the name with the fields that define a variant: `resnet50 (groups=32, base_width=4)` is a ResNeXt."""
    other = {k: v for k, v in unusual(arch).items() if k in ("groups", "base_width", "avg_down") or v in DEEP}
    return arch.name + (f" ({', '.join(f'{k}={v}' for k, v in other.items())})" if other else "")


def architecture_fields(arch: Architecture) -> str:
    """Return the name with all unusual fields: `resnet50 (width=0.5, stride_in_1x1=True)`."""
    other = unusual(arch)
    return arch.name + (f" ({', '.join(f'{k}={v}' for k, v in other.items())})" if other else "")


def unusual(arch: Architecture) -> dict[str, Any]:
    """Return the fields, except the name, that differ from the defaults."""
    usual = Architecture(name=arch.name)
    return {k: v for k, v in arch.model_dump(mode="json").items() if v != getattr(usual, k)}
