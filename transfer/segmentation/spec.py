"""Specification of a semantic segmentation protocol, independent of the engine. Engines translate its fields."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from backbench.config import Config
from transfer.linear_rule import refuse_unsorted, scaled_fields

Side = Annotated[int, Field(ge=32)]
Step = Annotated[int, Field(ge=1, le=2)]
Dilation = Literal[1, 2, 4, 8]


class SegmentationSpec(Config):
    """A network and its training. Iterations and rates are for `batch` crops per step over all processes."""

    head: Literal["fcn", "upernet"]  # on C5, or on C2 to C5 with pyramid pooling
    strides: tuple[Step, Step, Step, Step] = (1, 2, 2, 2)  # of the four stages, after the stem's 4
    # Of a block's 3x3 convolution, in basic blocks the first of two: torchvision's replace_stride_with_dilation.
    dilations: tuple[Dilation, Dilation, Dilation, Dilation] = (1, 1, 1, 1)  # of the stages; half in a first block
    channels: Annotated[int, Field(gt=0)] = 512  # of the head's convolutions
    convs: Annotated[int, Field(gt=0)] = 2  # 3x3 convolutions of the FCN head
    head_dilation: Annotated[int, Field(gt=0)] = 1  # of these
    concat_input: bool = False  # C5 joins their output, and one more 3x3 convolution follows
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1  # of channels before the classifier, also of the auxiliary head
    auxiliary: bool = True  # an FCN head of one 3x3 convolution of 256 channels on C4, with loss weight 0.4
    align_corners: bool = False  # in every bilinear interpolation
    norm: Literal["sync", "frozen"] = "sync"  # of the backbone; the heads' norms are always trained
    iterations: Annotated[int, Field(gt=0)]
    batch: Annotated[int, Field(gt=0)] = 16
    lr: Annotated[float, Field(gt=0)] = 0.01
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4  # also of norms
    schedule: Literal["steps", "poly"] = "poly"
    milestones: tuple[Annotated[int, Field(gt=0)], ...] = ()  # of `steps`: after these the rate falls tenfold
    power: Annotated[float, Field(gt=0)] = 0.9  # of `poly`
    lr_min: Annotated[float, Field(ge=0)] = 1e-4  # of `poly`, at the last iteration
    resize: tuple[Side, Side]  # (longer, shorter): an image is scaled to fit into it, times a ratio
    ratio: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (0.5, 2.0)  # drawn per image
    crop: tuple[Side, Side]  # height and width; smaller images are padded with ignored pixels
    one_class: Annotated[float, Field(gt=0, le=1)] = 1.0  # a crop with more of one class is drawn again
    colour: bool = False  # brightness, contrast, saturation and hue are distorted (SSD's)
    resize_test: tuple[Side, Side] | None = None  # as `resize`; null: the image's own size
    stride_test: tuple[Side, Side] | None = None  # of sliding windows of the crop's size; null: whole images

    @property
    def precise_bn(self) -> int:
        """0: the sources do not recompute BatchNorm's statistics after the last iteration."""
        return 0

    @property
    def estimates(self) -> bool:
        """False, see `precise_bn`."""
        return False

    @model_validator(mode="after")
    def _fits(self) -> SegmentationSpec:
        if self.strides[0] != 1:
            raise ValueError("strides[0] must be 1: no ResNet has a stride in its first stage")
        if self.ratio[0] > self.ratio[1]:
            raise ValueError(f"ratio={list(self.ratio)}: give the smaller number first")
        if any(long < short for long, short in (self.resize, *([self.resize_test] if self.resize_test else []))):
            raise ValueError("resize and resize_test are (longer side, shorter side); give the longer one first")
        if self.stride_test and any(step > side for step, side in zip(self.stride_test, self.crop, strict=True)):
            raise ValueError(f"stride_test={list(self.stride_test)} leaves gaps between windows of {list(self.crop)}")
        if self.milestones and self.schedule == "poly":
            raise ValueError("schedule 'poly' takes no milestones; set schedule=steps or leave them out")
        refuse_unsorted(self.milestones)
        if self.lr_min > self.lr:
            raise ValueError(f"lr_min={self.lr_min:g} is above lr={self.lr:g}; lower it")
        if self.head == "upernet" and (self.concat_input, self.convs, self.head_dilation) != (False, 2, 1):
            raise ValueError("concat_input, convs and head_dilation are fields of head 'fcn'; leave them out")
        return self


def scaled(spec: SegmentationSpec, batch: int) -> SegmentationSpec:
    """Scale a spec to another batch: rates x k; iterations and milestones / k (k = batch / spec.batch).

    The linear rule (Goyal et al. 2017): the number of crops seen stays. BatchNorm is over the new batch.
    """
    if batch == spec.batch:
        return spec
    lr_min = spec.lr_min * (batch / spec.batch)
    return SegmentationSpec.model_validate(spec.model_dump() | scaled_fields(spec, batch) | {"lr_min": lr_min})
