"""The work of cells that segment, counted from their configuration."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from benchmarks.price.work import PER_FLOP, Work
from model_zoo.backbone import Backbone
from transfer.segmentation.spec import SegmentationSpec

if TYPE_CHECKING:
    from torch import nn


def semantic(config: Any, backbone: Backbone, counts: tuple[int, int, int]) -> tuple[Work, Work]:
    """Operations of the network's convolutions. Test images are taken as 4:3."""
    spec: SegmentationSpec = config.course()
    train = segmenter_operations(spec, backbone, spec.crop, counts[2])
    longer, shorter = spec.resize_test or spec.resize
    size = shorter, min(longer, round(shorter * 4 / 3))
    test = segmenter_operations(spec, backbone, size, counts[2], test=True)
    area = spec.crop[0] * spec.crop[1] / 224**2
    memory = spec.batch / config.accumulate * PER_FLOP * _dilated_operations(spec, backbone) * area
    return Work(), Work(
        detection=3 * spec.batch * spec.iterations * train + counts[1] * test, disk=2e9, memory=memory, library="mmseg"
    )


def segmenter_operations(
    spec: SegmentationSpec, backbone: Backbone, size: tuple[int, int], classes: int, *, test: bool = False
) -> float:
    """Operations of a forward pass of one image of (height, width), without the auxiliary head in a test."""
    pixels, width, wide = size[0] * size[1], backbone.feature_dim, spec.channels
    sides = [4 * math.prod(spec.strides[: i + 1]) for i in range(4)]
    c2, _, c4, c5 = (pixels / side**2 for side in sides)
    if spec.head == "fcn":
        again = 18 * (width + wide) * wide if spec.concat_input else 0
        head = c5 * (18 * wide * (width + (spec.convs - 1) * wide) + again + 2 * wide * classes)
    else:  # lateral convolutions, pyramid pooling, a 3x3 convolution per level, one over all levels, the classifier
        levels = list(zip((width / 8, width / 4, width / 2), sides[:3], strict=True))
        head = sum((2 * channels * wide + 18 * wide**2) * pixels / side**2 for channels, side in levels)
        head += c5 * 18 * (width + 4 * wide) * wide + c2 * (18 * 4 * wide**2 + 2 * wide * classes)
    auxiliary = c4 * (18 * width / 2 * 256 + 2 * 256 * classes) if spec.auxiliary and not test else 0
    return _dilated_operations(spec, backbone) * pixels / 224**2 + head + auxiliary


def linear(config: Any, backbone: Backbone, counts: tuple[int, int, int]) -> tuple[Work, Work]:
    """A head on the map of a frozen backbone. Test images are taken as 4:3 for windows, or squashed to one crop."""
    from transfer.segmentation import dense
    from transfer.segmentation.inference import windows

    _, test, classes = counts
    side, wide = config.crop, round(config.crop * 4 / 3)
    one = _operations(dense.build(backbone, config.stride, side), side)
    looks = len(list(windows(side, wide, side, config.window_stride))) if config.inference == "slide" else 1
    seen = config.iterations * config.batch
    head = 2.0 * backbone.feature_dim * classes * (side / config.stride) ** 2
    memory = config.batch * (one * PER_FLOP / 8 + 8.0 * classes * (config.loss_side or side) ** 2)
    return Work(), Work(
        views=test,
        crops=seen,
        forward=(seen + test * looks) * one,
        products=(3 * seen + test * looks) * head,
        memory=memory,
    )


def _dilated_operations(spec: SegmentationSpec, backbone: Backbone) -> float:
    """Operations of the trunk with the spec's strides on an image of 224 px."""
    from transfer.segmentation.dilation import dilated

    trunk: Any = backbone.build()
    return _operations(dilated(trunk, spec.strides, spec.dilations), 224)


def _operations(network: nn.Module, side: int) -> float:
    """Operations of a forward pass of one square image; nothing is computed."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    network = network.eval().to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.empty(1, 3, side, side, device="meta"))
    return float(counter.get_total_flops())
