"""Linear semantic segmentation: one linear classifier of pixels on a frozen backbone's map; mIoU on the test split.

The map is C5 of a ResNet, dilated to stride 16, or the patch tokens of a timm ViT after its last norm. Presets follow two
published protocols and report the last iteration; nothing is chosen on the test split.

- `dinov3`: facebookresearch/dinov3 dinov3/eval/segmentation (configs/config-ade20k-linear-training.yaml, train.py,
  schedulers.py, transforms.py, models/heads/linear_head.py). Dropout of channels, BatchNorm and a 1x1 convolution; AdamW, 16
  crops of 512 pixels, 40,000 iterations with warm-up and cosine; sliding windows, scored at the images' own size. Published
  for ADE20K and ViTs. The source evaluates every 5,000 iterations and prints the best on the test split. It pads after
  normalising, we before it with the nearest 8-bit colour.
- `leopart`: MkuuWaUjinga/leopart experiments/linear_probing (linear_finetune.py, eval_linear.py, configs/pascal/*.yml). A 1x1
  convolution on features at 100 x 100; SGD, batches of 120 (two GPUs of 60), 25 epochs of 88 batches, the rate a tenth
  after the 20th; images and masks squashed to 448 x 448. Published for VOC 2012 with ViTs and ResNet-50. The source keeps the
  checkpoint that is best on the test split, leaves out the last, smaller batch of an epoch, trains some ResNets for 30
  epochs, and takes SBD's masks for the images of `train` too.
- `demo`: a minute on the rendered scenes; it measures nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator
from torch import nn

from backbench.data.catalogue import DataPlaces
from backbench.distributed import is_main
from backbench.files.hashes import tensors_sha256
from backbench.precision import in_precision
from model_zoo.backbone import Backbone, identity_tensors
from transfer.features import FrozenMoved
from transfer.heads import HeadInit
from transfer.presets import Preset
from transfer.protocol import DataSpec, ForwardConfig, Metric, RunContext, Task
from transfer.segmentation import dense, linear, views
from transfer.segmentation.annotations.reading import confirm, read_splits
from transfer.segmentation.annotations.split import SegmentationSplit
from transfer.segmentation.inference import Inference, Looking, segment
from transfer.segmentation.scoring import draw
from transfer.supervised import Order

_PICTURES = 8
_LEOPART = {"view": "resized_crop", "crop": 448, "scale": [0.8, 1.0], "photometric": False, "head_norm": False,
            "dropout": 0.0, "head_init": "linear", "loss_side": 100, "loss_over": "counted", "optimizer": "sgd", "rate": 0.01,
            "weight_decay": 1e-4, "batch": 120, "iterations": 2200, "warmup": 0, "schedule": "steps", "milestones": [0.8],
            "inference": "squash"}  # fmt: skip
_DEMO = {"stride": 8, "crop": 96, "scale": [0.8, 1.5], "photometric": False, "rate": 0.01, "batch": 8,
         "iterations": 120, "warmup": 10, "window_stride": 64}  # fmt: skip


class Config(ForwardConfig):
    """Fields of the cell."""

    PRESETS: ClassVar[Mapping[str, Preset]] = {"dinov3": Preset(), "leopart": Preset(_LEOPART), "demo": Preset(_DEMO)}

    data: DataSpec = DataSpec(name="ade20k")
    preset: str = "dinov3"
    train: str = "training"  # splits, as the layout names them
    test: str = "validation"
    stride: Literal[8, 16, 32] = 16  # of a ResNet's C5, in pixels; a ViT has its patch
    view: Literal["scaled_crop", "resized_crop"] = (
        "scaled_crop"  # of a training image: see transfer/segmentation/views.py
    )
    crop: Annotated[int, Field(ge=32)] = 512  # side of the squares that the backbone sees, in pixels
    scale: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (
        0.5,
        2.0,
    )  # scaled_crop: shorter side / crop; resized_crop: share of the image's area
    photometric: bool = True  # scaled_crop: brightness, contrast, saturation and hue are changed
    head_norm: bool = True  # a BatchNorm before the 1x1 convolution
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1  # of channels, before the BatchNorm
    head_init: HeadInit = "normal"  # N(0, 0.01) and bias 0; linear: PyTorch's default
    loss_side: Annotated[int, Field(gt=0)] | None = (
        None  # logits and masks are resized to this square; none: to the crop
    )
    loss_over: Literal["all", "counted"] = "all"  # pixels in the loss's mean; ignored ones add 0
    optimizer: Literal["adamw", "sgd"] = "adamw"
    rate: Annotated[float, Field(gt=0)] = 1e-3  # at `batch`
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9  # of sgd
    weight_decay: Annotated[float, Field(ge=0)] = 1e-3  # of all parameters of the head
    batch: Annotated[int, Field(gt=0)] = 16
    iterations: Annotated[int, Field(gt=0)] = 40_000
    warmup: Annotated[int, Field(ge=0)] = 1500  # iterations, of `cosine`
    schedule: Literal["cosine", "steps"] = "cosine"
    milestones: tuple[
        Annotated[float, Field(gt=0, lt=1)], ...
    ] = ()  # of `steps`: shares of all iterations; a tenth each
    inference: Inference = "slide"  # see transfer/segmentation/inference.py
    window_stride: Annotated[int, Field(gt=0)] = 341  # of `slide`, in pixels

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.train == self.test:
            raise ValueError(f"train and test are both '{self.train}': give different splits")
        for name in (self.train, self.test):
            if not name or "/" in name or "\\" in name or name.startswith("."):
                raise ValueError(f"'{name}' is not the name of a split")
        low, high = self.scale
        if low > high or (self.view == "resized_crop" and high > 1):
            raise ValueError(f"scale={list(self.scale)}: give the smaller number first, and of resized_crop at most 1")
        if (self.schedule == "steps") != bool(self.milestones):
            raise ValueError("schedule 'steps' needs milestones, e.g. milestones=[0.8]; cosine takes none")
        if self.schedule == "steps" and self.warmup:
            raise ValueError("warmup belongs to schedule 'cosine': set warmup=0")
        if self.inference == "slide" and self.window_stride > self.crop:
            raise ValueError(f"window_stride={self.window_stride} leaves gaps between windows of {self.crop} pixels")
        return self

    def factor(self, step: int) -> float:
        """Return the factor on the rate at an iteration (0-based).

        `cosine` is WarmupOneCycleLR of DINOv3's schedulers.py: a linear warm-up from 1e-6, times (1 - t / T), then
        0.5 (1 + cos(pi (t + 1) / T)). Its train.py first steps it after the second iteration, so t is one less than the
        iteration.
        """
        if self.schedule == "steps":
            return 0.1 ** sum(step >= share * self.iterations - 1e-6 for share in self.milestones)
        t, total = max(step - 1, 0), self.iterations
        if t < self.warmup:
            return (1 - (1 - t / self.warmup) * (1 - 1e-6)) * (1 - t / total)
        return 0.5 * (1 + math.cos(math.pi * (t + 1) / total))


def primary(config: Config) -> str:
    """Return the name of the headline metric."""
    return "mIoU"


def smoke(config: Config) -> dict[str, Any]:
    """Return fields for a few iterations on a few small images."""
    return {"data": {"limit": 8}, "crop": 112, "window_stride": 75, "batch": 4, "iterations": 3,
            "warmup": min(config.warmup, 1)}  # fmt: skip


def splits(config: Config, places: DataPlaces) -> dict[str, SegmentationSplit]:
    """Return the images and masks of both splits.

    Raises:
        DataError: the data are incomplete, or not the published images although `expect` asks for them.
    """
    return read_splits(config.data, (config.train, config.test), places)


def unfit(backbone: Backbone, config: Config) -> str | None:
    """Return why the backbone gives no map of features, or None."""
    return dense.unfit(backbone, config.stride, config.crop)


def run(backbone: Backbone, config: Config, ctx: RunContext[SegmentationSplit]) -> dict[str, Metric]:
    """Return `mIoU`, `mAcc` and `aAcc`. Stores the pixels of every test image by class; writes pictures and losses.

    Raises:
        DataError: a mask does not fit its image.
        FrozenMoved: the backbone changed while the head was trained.
    """
    train, test = ctx.splits["train"], ctx.splits["test"]
    for split in (train, test):
        confirm(split)
    frozen = dense.build(backbone, config.stride, config.crop)
    before, channels = tensors_sha256(identity_tensors(frozen.state_dict())), dense.width_of(frozen, config.crop)
    encoder = in_precision(frozen.to(ctx.device), config.precision)
    head = linear.PixelHead(
        channels, len(train.classes), ctx.seed, norm=config.head_norm, dropout=config.dropout, init=config.head_init
    )
    _fit(head, encoder, backbone, config, ctx)
    shown = np.linspace(0, len(test) - 1, min(_PICTURES, len(test))).astype(int).tolist()
    looking = Looking(config.inference, config.crop, config.window_stride)
    found = segment(head, encoder, test, looking, backbone.input, ctx, shown)
    if tensors_sha256(identity_tensors(frozen.state_dict())) != before:
        raise FrozenMoved("the frozen backbone changed while the head was trained")
    if is_main():
        draw.grid(test, [found.shown[row] for row in shown], shown, ctx.folder / "pictures.png")
    ctx.items |= {**found.areas, "per_class_IoU": found.confusion.iou().astype(np.float32)}
    return {name: Metric(value) for name, value in found.confusion.scores().items()}


def _fit(
    head: linear.PixelHead,
    encoder: nn.Module,
    backbone: Backbone,
    config: Config,
    ctx: RunContext[SegmentationSplit],
) -> None:
    train, spec = ctx.splits["train"], backbone.input
    view = (
        views.resized_crop(config.crop, config.scale)
        if config.view == "resized_crop"
        else views.scaled_crop(config.crop, config.scale, spec, photometric=config.photometric)
    )
    epochs = -(-config.iterations // -(-len(train) // config.batch))
    order = Order(len(train), config.batch, epochs, ctx.seed, most=config.iterations)
    ctx.resumed_at += linear.fit(
        head,
        encoder,
        views.pair_batches(train, view, spec, order, ctx, config.crop),
        config,
        order,
        device=ctx.device,
        resume=ctx.resume_file(backbone, config, TASK.version),
        log=ctx.folder / "losses.jsonl",
    )


TASK = Task(
    name="linear_segmentation",
    version=1,
    Config=Config,
    primary=primary,
    smoke=smoke,
    splits=splits,
    run=run,
    unfit=unfit,
)
