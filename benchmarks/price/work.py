"""Work that a machine is asked to do: images, floating point operations, bytes; and the work of a network's forward pass."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from model_zoo.backbone import Backbone
from transfer.pooling import CELLS

_BATCH = 128  # images of a forward pass
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
    return operations_of(backbone, size)[0]


def operations_of(backbone: Backbone, size: int) -> tuple[float, float]:
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


def operations_at(config: Any, backbone: Backbone) -> float:
    """Operations of a forward pass of one image of a cell's size."""
    return forward_operations(backbone, config.size or backbone.input.size)


def features_of(config: Any, backbone: Backbone, images: int) -> Work:
    """Cached features of some images."""
    width = backbone.feature_dim * CELLS[getattr(config, "feature", "gap")]
    one = operations_at(config, backbone)
    weights = sum(t.numel() for t in backbone.state.values()) * 4
    memory = weights + _BATCH * one * PER_FLOP / 8  # without gradient a few layers live at a time
    return Work(views=images, forward=images * one, disk=images * width * 4, memory=memory)
