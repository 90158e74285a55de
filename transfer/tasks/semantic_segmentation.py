"""Semantic segmentation with all layers trained, on MMSegmentation: FCN on VOC12 and Cityscapes, UPerNet on ADE20K.

Sources of the presets' fields:

- `moco_voc12`, `moco_cityscapes`: CVMI-Lab/SlotCon transfer/segmentation/configs, `fcn_d6_r50-d16_513x513_30k_voc12aug_moco.py`
  and `fcn_d6_r50-d16_769x769_90k_cityscapes_moco.py` with their `_base_` files: MoCo's protocol (He et al. 2020, appendix) in
  MMSegmentation. FCN with two 3x3 convolutions of 256 channels at dilation 6, conv5 at dilation 2 and stride 16, no auxiliary
  head, drops after 70% and 90%. The paper tests at the images' own size (its appendix was read in a quotation only); these
  files resize, and slide a window over Cityscapes. They normalise images in 0-255 by a mean and std for 0-1; here every
  backbone gets the input that it was trained with.
- `mmseg_voc12`, `mmseg_cityscapes`: open-mmlab/mmsegmentation configs `fcn_r50-d8_4xb4-20k_voc12aug-512x512.py` and
  `fcn_r50-d8_4xb2-40k_cityscapes-769x769.py` with `_base_/{models/fcn_r50-d8,schedules/*,datasets/*}.py`. DenseCL names the
  latter in its older spelling (WXinlong/DenseCL benchmarks/detection/README.md); its modified copy could not be read.
- `mmseg_ade20k`, `mmseg_ade20k_80k`: `upernet_r50_4xb4-160k_ade20k-512x512.py` and its 80k twin, with
  `_base_/models/upernet_r50.py`, `_base_/datasets/ade20k.py`.

MMSegmentation's own files build a ResNet with a deep stem (V1c); here the backbone has its own. Its 1.x file for VOC12 pads
small crops with black; here, as in its other files and in 0.x, they are padded with the mean colour. `demo` is a short training
on the rendered scenes. Scores are those of MMSegmentation's IoUMetric: the mean over classes of the intersection over union of
all test pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import model_validator

from backbench.data.catalogue import DataPlaces
from model_zoo.backbone import Backbone
from transfer.presets import Preset
from transfer.protocol import DataSpec, Metric, RunContext, Task
from transfer.segmentation import run as segmentation
from transfer.segmentation.annotations.reading import read_splits
from transfer.segmentation.annotations.split import SegmentationSplit
from transfer.segmentation.run import SegmentationConfig
from transfer.segmentation.scoring.confusion import Confusion, areas_of
from transfer.segmentation.spec import SegmentationSpec

_MOCO_VOC12 = SegmentationSpec(
    head="fcn",
    strides=(1, 2, 2, 1),
    dilations=(1, 1, 1, 2),
    channels=256,
    convs=2,
    head_dilation=6,
    dropout=0.0,
    auxiliary=False,
    align_corners=True,
    iterations=30_000,
    batch=16,
    lr=0.003,
    weight_decay=1e-4,
    schedule="steps",
    milestones=(21_000, 27_000),
    lr_min=0.0,
    resize=(2049, 513),
    crop=(513, 513),
    resize_test=(2049, 513),
)
_MOCO_CITYSCAPES = _MOCO_VOC12.model_copy(
    update={
        "iterations": 90_000,
        "lr": 0.01,
        "milestones": (63_000, 81_000),
        "resize": (2049, 1025),
        "crop": (769, 769),
        "resize_test": (2049, 1025),
        "stride_test": (513, 513),
    }
)
_MMSEG_VOC12 = SegmentationSpec(
    head="fcn",
    strides=(1, 2, 1, 1),
    dilations=(1, 1, 2, 4),
    concat_input=True,
    iterations=20_000,
    resize=(2048, 512),
    crop=(512, 512),
    one_class=0.75,
    colour=True,
    resize_test=(2048, 512),
)
_MMSEG_CITYSCAPES = _MMSEG_VOC12.model_copy(
    update={
        "align_corners": True,
        "iterations": 40_000,
        "batch": 8,
        "resize": (2049, 1025),
        "crop": (769, 769),
        "resize_test": (2049, 1025),
        "stride_test": (513, 513),
    }
)
_MMSEG_ADE20K = SegmentationSpec(
    head="upernet",
    iterations=160_000,
    resize=(2048, 512),
    crop=(512, 512),
    one_class=0.75,
    colour=True,
    resize_test=(2048, 512),
)
_MMSEG_ADE20K_80K = _MMSEG_ADE20K.model_copy(update={"iterations": 80_000})
# Half a minute on two idle CPU cores for a ResNet-18: narrow head, small crops. It shows that training, masks and metric work;
# it is too short to find anything but background.
_DEMO = _MOCO_VOC12.model_copy(
    update={
        "channels": 64,
        "iterations": 60,
        "batch": 4,
        "lr": 0.01,
        "milestones": (45,),
        "resize": (160, 96),
        "ratio": (0.75, 1.25),
        "crop": (96, 96),
        "resize_test": (160, 96),
    }
)
_PRESETS = {
    "moco_voc12": Preset({"spec": _MOCO_VOC12}),
    "moco_cityscapes": Preset({"spec": _MOCO_CITYSCAPES}),
    "mmseg_voc12": Preset({"spec": _MMSEG_VOC12}),
    "mmseg_cityscapes": Preset({"spec": _MMSEG_CITYSCAPES}),
    "mmseg_ade20k": Preset({"spec": _MMSEG_ADE20K}),
    "mmseg_ade20k_80k": Preset({"spec": _MMSEG_ADE20K_80K}),
    "demo": Preset({"spec": _DEMO, "checkpoint_every": 20, "log_every": 1}),
}


class Config(SegmentationConfig):
    """Fields of the cell."""

    PRESETS: ClassVar[Mapping[str, Preset]] = _PRESETS

    data: DataSpec = DataSpec(name="voc12")
    preset: str = "moco_voc12"
    spec: SegmentationSpec = _MOCO_VOC12
    train: str = "train_aug"  # the splits, as the data's layout names them
    test: str = "val"

    @model_validator(mode="after")
    def _fits(self) -> Config:
        if self.train == self.test:
            raise ValueError(f"train and test are both '{self.train}': give different splits")
        return self


def primary(config: Config) -> str:
    """Return the name of the headline metric."""
    return "mIoU"


def splits(config: Config, places: DataPlaces) -> dict[str, SegmentationSplit]:
    """Return the images and masks of both splits.

    Raises:
        DataError: the data are incomplete, or not the published images although `expect` asks for them.
    """
    return read_splits(config.data, (config.train, config.test), places)


def run(backbone: Backbone, config: Config, ctx: RunContext[SegmentationSplit]) -> dict[str, Metric]:
    """Return `mIoU`, `mAcc` (mean accuracy of classes) and `aAcc` (accuracy of pixels). Stores every image's areas."""
    counts_NCC = segmentation.counts(backbone, config, ctx)
    total = Confusion(counts_NCC.shape[-1])
    total.counts += counts_NCC.sum(0)
    ctx.items.update(areas_of(counts_NCC), per_class_IoU=total.iou())
    return {name: Metric(value) for name, value in total.scores().items()}


TASK = Task(
    name="semantic_segmentation",
    version=1,
    Config=Config,
    primary=primary,
    smoke=segmentation.smoke_fields,
    splits=splits,
    run=run,
    missing=segmentation.missing,
    unfit=segmentation.unfit,
    engine_version=segmentation.engine_version,
)
