"""The work of cells that train a detector, counted from their configuration."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.price.work import PER_FLOP, Work, forward_operations, operations_of
from model_zoo.backbone import Backbone
from transfer.detection.spec import DetectionSpec

_FPN = 256  # channels of a feature pyramid, its RPN and its mask head


def detection(config: Any, backbone: Backbone, counts: tuple[int, int, int]) -> tuple[Work, Work]:
    """Operations of the detector's convolutions and linear layers. Images are taken as 4:3.

    At six tenths of a V100's float32 peak, as other networks reach, R50-C4 takes 0.62 s an iteration on eight of them and Mask
    R-CNN with an FPN 0.26; Detectron2's MODEL_ZOO has 0.551 and 0.261.
    """
    spec = config.course()
    train = statistics.fmean(detector_operations(spec, backbone, side, spec.rois) for side in spec.sides_train)
    test = detector_operations(spec, backbone, spec.side_test, spec.proposals_test[1])
    estimating = spec.precise_bn if spec.estimates else 0
    operations = spec.batch * train * (3 * spec.iterations + estimating) + counts[1] * test
    if config.frozen:  # no gradient of the trunk: two thirds of its work in training
        trunk = statistics.fmean(trunk_operations(spec, backbone, side) for side in spec.sides_train)
        operations -= 2 * spec.batch * spec.iterations * trunk
    area = (statistics.fmean(spec.sides_train) / 640) ** 2
    memory = spec.batch * PER_FLOP * forward_operations(backbone, 224) * (800 * 1333) / (224 * 224) * area
    return Work(), Work(detection=operations, disk=2e9, memory=memory, library=config.engine)


def trunk_operations(spec: DetectionSpec, backbone: Backbone, side: int) -> float:
    """Operations of the backbone in a forward pass of an image whose shorter side is `side`; in C4 without its last stage."""
    whole, last = operations_of(backbone, 224)
    pixels = side * min(side * 4 / 3, spec.side_max)
    return (whole - last if spec.head == "c4" else whole) * pixels / 224**2


def detector_operations(spec: DetectionSpec, backbone: Backbone, side: int, proposals: int) -> float:
    """Operations of a forward pass of one image whose shorter side is `side`, with the head on `proposals` of them."""
    pixels = side * min(side * 4 / 3, spec.side_max)
    trunk, last = trunk_operations(spec, backbone, side), operations_of(backbone, 224)[1]
    width = backbone.feature_dim
    if spec.head == "c4":  # res5 is the head: of 14 x 14 cells a proposal, as of an image of 224 px
        rpn = 18 * (width / 2) ** 2 * pixels / 16**2
        return trunk + rpn + proposals * last
    levels = [(width / 8, 4), (width / 4, 8), (width / 2, 16), (width, 32)]  # channels and stride of C2 to C5
    pyramid = sum((2 * channels * _FPN + 18 * _FPN**2) * pixels / stride**2 for channels, stride in levels)
    rpn = sum(18 * _FPN**2 * pixels / stride**2 for stride in (4, 8, 16, 32, 64))
    boxes = proposals * 2 * (_FPN * 7 * 7 * 1024 + 1024**2)
    masked = min(proposals / 4, spec.detections) if spec.masks else 0  # a quarter of the sampled proposals are positive
    masks = masked * 14 * 14 * (4 * 18 * _FPN**2 + 8 * _FPN**2)
    return trunk + pyramid + rpn + boxes + masks
