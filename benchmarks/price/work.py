"""The work of a cell, counted from its configuration: images, floating point operations, bytes."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from backbench.data import catalogue
from backbench.data.catalogue import DataPlaces
from backbench.errors import BackbenchError
from benchmarks.plan import Cell
from model_zoo.backbone import Backbone
from transfer.detection.spec import DetectionSpec
from transfer.pooling import CELLS

_BATCH = 128  # images of a forward pass
_NEWTON = 25  # products with the features that a fit of SVMs takes (VOC07: 35 s on a core of 20 Gflop/s in float64)
_FPN = 256  # channels of a feature pyramid, its RPN and its mask head
PER_FLOP = 0.0105  # the same, bytes per operation: ResNet-50 at 224 px keeps 86 MB for its 8.2 GFLOP

_counted: dict[tuple[str, int], tuple[float, float]] = {}  # operations, those of res5 apart, by weights and size


@dataclass(frozen=True)
class Work:
    """What a cell asks of a machine. Operations count multiplications and additions apart."""

    views: float = 0.0  # images that are decoded, resized and cropped at test time's size
    crops: float = 0.0  # images that are decoded and cropped at random for training
    forward: float = 0.0  # operations of networks without gradient
    training: float = 0.0  # operations of networks with gradient: three times a forward pass
    products: float = 0.0  # operations of matrix products on features
    machines: float = 0.0  # operations of SVMs, in float64 on the processor
    detection: float = 0.0  # operations of detectors; in training thrice those of a forward pass
    disk: float = 0.0  # bytes
    memory: float = 0.0  # bytes on the device, at the peak
    library: str = ""  # that the protocol imports and others do not

    def __add__(self, other: Work) -> Work:
        added = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        library = self.library or other.library
        return Work(**added | {"memory": max(self.memory, other.memory), "library": library})


def forward_operations(backbone: Backbone, size: int) -> float:
    """Operations of a forward pass of one image; nothing is computed."""
    return _operations_of(backbone, size)[0]


def _operations_of(backbone: Backbone, size: int) -> tuple[float, float]:
    """(operations of a forward pass of one image; those of a ResNet's last stage among them)."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    key = (backbone.weights_sha256, size)
    if key not in _counted:
        network = backbone.build().eval().to("meta")
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(torch.empty(1, 3, size, size, device="meta"))
        by_module = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
        last = sum(count for name, count in by_module.items() if name.endswith(".layer4"))
        _counted[key] = (float(counter.get_total_flops()), float(last))
    return _counted[key]


def images_of(cell: Cell, places: DataPlaces) -> tuple[int, int, int]:
    """(training images, test images, classes): of the data where they are, else as published.

    Raises:
        BackbenchError: the data are absent, and no numbers are published.
    """
    if cell.task.missing(cell.config, places) is None:
        splits = cell.task.splits(cell.config, places)
        return len(splits["train"]), len(splits["test"]), len(splits["train"].classes)
    name = cell.config.data.name
    info = catalogue.info(name)
    train, test = (getattr(cell.config, role, None) or getattr(info, role) for role in ("train", "test"))
    if not {train, test, "classes"} <= set(info.counts):
        raise BackbenchError(f"{cell.name}: '{name}' has no published numbers of images; give its folder by --data")
    share = float(getattr(cell.config, "share", "100%").rstrip("%")) / 100
    limit = cell.config.data.limit or 10**12
    return min(round(info.counts[train] * share), limit), min(info.counts[test], limit), info.counts["classes"]


def work_of(cell: Cell, backbone: Backbone, places: DataPlaces) -> tuple[Work, Work]:
    """(the work that all seeds of a backbone share: its cached features; the work of each seed).

    Raises:
        BackbenchError: the protocol is one that cannot be estimated, or the numbers of images are unknown.
    """
    from benchmarks.price.segmentation import segmentation

    counted: dict[str, Callable[..., tuple[Work, Work]]] = {
        "knn": _knn,
        "linear_probe": _linear,
        "robustness": _robustness,
        "attentive": _attentive,
        "semi_supervised": _semi,
        "uniformity": _uniformity,
        "diagnostics": _diagnostics,
        "voc07_svm": _svm,
        "voc07_lowshot": _svm,
        "voc_detection": _detection,
        "coco_instance_segmentation": _detection,
        "semantic_segmentation": segmentation,
    }
    if cell.task_name not in counted:
        raise BackbenchError(f"{cell.name}: the work of protocol '{cell.task_name}' is not known")
    return counted[cell.task_name](cell.config, backbone, images_of(cell, places))


def _operations(config: Any, backbone: Backbone) -> float:
    return forward_operations(backbone, config.size or backbone.input.size)


def _features(config: Any, backbone: Backbone, images: int) -> Work:
    width = backbone.feature_dim * CELLS[getattr(config, "feature", "gap")]
    one = _operations(config, backbone)
    weights = sum(t.numel() for t in backbone.state.values()) * 4
    memory = weights + _BATCH * one * PER_FLOP / 8  # without gradient a few layers live at a time
    return Work(views=images, forward=images * one, disk=images * width * 4, memory=memory)


def _knn(config: Any, backbone: Backbone, counts: tuple[int, int, int]) -> tuple[Work, Work]:
    train, test, _ = counts
    width = backbone.feature_dim
    chunk = min(config.chunk, train)
    memory = 4.0 * (chunk * width + 3 * min(2048, test) * chunk)
    return _features(config, backbone, train + test), Work(products=2.0 * train * test * width, memory=memory)


def _linear(config: Any, backbone: Backbone, counts: tuple[int, int, int]) -> tuple[Work, Work]:
    train, test, classes = counts
    held_out = min(round(train * config.holdout), config.holdout_max)
    seen = config.epochs * (train - held_out)
    width = backbone.feature_dim * CELLS[config.feature]
    weights = width * classes * len(config.rates)
    steps = seen / config.batch
    heads = Work(products=4.0 * seen * weights + 20.0 * steps * weights, memory=12.0 * weights)  # update: 20 a weight
    if config.features == "cached":
        return _features(config, backbone, train + test), heads
    one = _operations(config, backbone)
    images = Work(crops=seen, forward=seen * one, memory=config.batch * one * PER_FLOP / 8)
    return _features(config, backbone, held_out + test), heads + images


def _robustness(config: Any, backbone: Backbone, counts: tuple[int, int, int]) -> tuple[Work, Work]:
    """The linear probe, and the features of the test sets; ReaL has the images of the test split."""
    shared, heads = _linear(config, backbone, counts)
    limit = config.data.limit or 10**12
    sets = [catalogue.info(f"imagenet_{name}") for name in config.sets if name != "real"]
    images = sum(min(each.counts[each.test], limit) for each in sets)
    return shared + _features(config, backbone, images), heads


def _attentive(config: Any, backbone: Backbone, counts: tuple[int, int, int]) -> tuple[Work, Work]:
    train, test, classes = counts
    aside = int(config.holdout * train)
    batch = min(config.batch, train - aside)
    seen, one, width = config.steps * batch, _operations(config, backbone), backbone.feature_dim
    probes = len(config.rates) * len(config.decays)
    tokens = ((config.size or backbone.input.size) / (32 if backbone.is_resnet else 16)) ** 2
    pool = 2 * tokens * width * width / config.head_width  # scores of the tokens, and their mean
    products = 6.0 * seen * probes * (pool + width * (width + classes))
    weights = probes * width * (2 * width + classes)
    memory = 16.0 * weights + batch * one * PER_FLOP / 8 + 8.0 * batch * probes * width * width / config.head_width
    images = Work(views=aside + test, crops=seen, forward=(seen + aside + test) * one)
    return Work(), images + Work(products=products + 20.0 * config.steps * weights, memory=memory)


def _semi(config: Any, backbone: Backbone, counts: tuple[int, int, int]) -> tuple[Work, Work]:
    train, test, _ = counts
    seen, one = config.epochs * train, _operations(config, backbone)
    if config.rate_encoder:
        images = Work(crops=seen, training=3 * seen * one, memory=config.batch * one * PER_FLOP)
    else:
        images = Work(crops=seen, forward=seen * one, memory=config.batch * one * PER_FLOP / 8)
    found = _features(config, backbone, test)
    return Work(), found + images + Work(disk=-found.disk)  # its features are not kept


def _uniformity(config: Any, backbone: Backbone, counts: tuple[int, int, int]) -> tuple[Work, Work]:
    test, width = counts[1], backbone.feature_dim
    one = _operations(config, backbone)
    memory = 4.0 * (2 * test * width + 3 * 1024 * test)
    return Work(), Work(crops=2 * test, forward=2 * test * one, products=4.0 * test * test * width, memory=memory)


def _diagnostics(config: Any, backbone: Backbone, counts: tuple[int, int, int]) -> tuple[Work, Work]:
    images, width = min(counts[1], config.images), backbone.feature_dim
    crops = min(images, config.lidar_images) * (config.lidar_views or 0)
    # Pairs: all for uniformity, all for the two neighbours, half of them for the clusters' neighbours; 25 rounds of k-means.
    pairs = 5.0 * images * images * width + 100.0 * images**1.5 * width
    grams = 6.0 * images * width * width + 2.0 * crops * width * width  # three spectra, LiDAR's covariance
    memory = 4.0 * width * (3 * images + crops) + 8.0 * width * width
    one = _operations(config, backbone)
    own = Work(crops=crops, forward=crops * one, products=pairs, machines=grams, memory=memory)
    return _features(config, backbone, counts[1]), own


def _svm(config: Any, backbone: Backbone, counts: tuple[int, int, int]) -> tuple[Work, Work]:
    train, test, classes = counts
    width = backbone.feature_dim * CELLS[config.feature]
    if hasattr(config, "folds"):
        problems = classes * (1 + (config.folds * len(config.costs) if len(config.costs) > 1 else 0))
        rows = float(train * problems)
    else:
        rows = float(sum(config.k) * (1 + config.negatives) * config.samples * classes)
    machines = Work(machines=_NEWTON * 4.0 * rows * width, library="scikit-learn")
    return _features(config, backbone, train + test), machines


def _detection(config: Any, backbone: Backbone, counts: tuple[int, int, int]) -> tuple[Work, Work]:
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
    whole, last = _operations_of(backbone, 224)
    pixels = side * min(side * 4 / 3, spec.side_max)
    return (whole - last if spec.head == "c4" else whole) * pixels / 224**2


def detector_operations(spec: DetectionSpec, backbone: Backbone, side: int, proposals: int) -> float:
    """Operations of a forward pass of one image whose shorter side is `side`, with the head on `proposals` of them."""
    pixels = side * min(side * 4 / 3, spec.side_max)
    trunk, last = trunk_operations(spec, backbone, side), _operations_of(backbone, 224)[1]
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
