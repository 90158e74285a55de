"""The work of a cell that trains a segmentation network, counted from its configuration."""

from __future__ import annotations

import math
from typing import Any

from benchmarks.price.work import PER_FLOP, Work
from model_zoo.backbone import Backbone
from transfer.segmentation.spec import SegmentationSpec


def segmentation(config: Any, backbone: Backbone, counts: tuple[int, int, int]) -> tuple[Work, Work]:
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


def _dilated_operations(spec: SegmentationSpec, backbone: Backbone) -> float:
    """Operations of the trunk with the spec's strides on an image of 224 px; nothing is computed."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from transfer.segmentation.dilation import dilated

    trunk: Any = backbone.build().to("meta")
    network = dilated(trunk, spec.strides, spec.dilations).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.empty(1, 3, 224, 224, device="meta"))
    return float(counter.get_total_flops())
