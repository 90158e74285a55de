"""The convolutions and norms of an architecture, with names and shapes, without building a network."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from model_zoo.architecture import BASIC, DEEP, Architecture

NORM_TENSORS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
BLOCKS: dict[str, tuple[int, int, int, int]] = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
    "resnet26": (2, 2, 2, 2),  # timm's, with bottlenecks
    "resnet200": (3, 24, 36, 3),
}


@dataclass(frozen=True)
class Unit:
    """A convolution and the norm after it: our names (torchvision's, timm's for a deep stem) and the position."""

    conv: str
    norm: str
    stage: int  # 0: the stem; 1 to 4
    block: int
    index: int  # 1 to 3 within the block; 0: the shortcut
    shape: tuple[int, int, int, int]  # of the convolution's weight


def expansion(arch: Architecture) -> int:
    """Return a block's output channels per plane of its stage."""
    return 1 if arch.name in BASIC else 4


def planes(arch: Architecture) -> tuple[int, ...]:
    """Return the planes of the four stages; a block returns `expansion` times as many channels."""
    return tuple(round(64 * arch.width) * 2**i for i in range(4))


def inner_planes(arch: Architecture) -> tuple[int, ...]:
    """Return the channels of the 3x3 convolutions in the four stages, over all groups."""
    return tuple(each * arch.base_width // 64 * arch.groups for each in planes(arch))


def stem_planes(arch: Architecture) -> tuple[int, ...]:
    """Return the channels after each convolution of the stem; the first stage takes the last."""
    last = round(64 * arch.stem_width)
    if arch.stem not in DEEP:
        return (last,)
    return (last // 2 if arch.stem == "deep" else last // 8 * 3, last // 2, last)


def feature_dim(arch: Architecture) -> int:
    """Return C of the pooled features."""
    return planes(arch)[-1] * expansion(arch)


def first_convolution(arch: Architecture) -> str:
    """Return the name of the first convolution's weight."""
    return next(units(arch)).conv + ".weight"


def units(arch: Architecture) -> Iterator[Unit]:
    """Yield every convolution of the trunk with its norm, in the order of its tensors."""
    yield from _stem(arch)
    before = stem_planes(arch)[-1]
    for stage, (count, wide, inner) in enumerate(
        zip(BLOCKS[arch.name], planes(arch), inner_planes(arch), strict=True), 1
    ):
        after = wide * expansion(arch)
        for block in range(count):
            here = f"layer{stage}.{block}"
            for index, shape in enumerate(_block(arch, before, inner, after), start=1):
                yield Unit(f"{here}.conv{index}", f"{here}.bn{index}", stage, block, index, shape)
            if block == 0 and (stage > 1 or before != after):  # a shortcut where the shape changes
                first = 1 if arch.avg_down else 0  # after the average pooling
                path = f"{here}.downsample"
                yield Unit(f"{path}.{first}", f"{path}.{first + 1}", stage, block, 0, (after, before, 1, 1))
            before = after


def _stem(arch: Architecture) -> Iterator[Unit]:
    wide = stem_planes(arch)
    if len(wide) == 1:
        side = 7 if arch.stem == "7x7" else 3
        yield Unit("conv1", "bn1", 0, 0, 1, (wide[0], 3, side, side))
        return
    places = (("conv1.0", "conv1.1"), ("conv1.3", "conv1.4"), ("conv1.6", "bn1"))
    for index, ((conv, norm), before, after) in enumerate(zip(places, (3, *wide), wide, strict=False), start=1):
        yield Unit(conv, norm, 0, 0, index, (after, before, 3, 3))


def _block(arch: Architecture, before: int, inner: int, after: int) -> tuple[tuple[int, int, int, int], ...]:
    if arch.name in BASIC:
        return (after, before, 3, 3), (after, after, 3, 3)
    return (inner, before, 1, 1), (inner, inner // arch.groups, 3, 3), (after, inner, 1, 1)


@functools.lru_cache(maxsize=64)
def expected_shapes(arch: Architecture) -> Mapping[str, tuple[int, ...]]:
    """Return name and shape of every tensor, in the order of a state_dict. Allocates no tensors."""
    shapes: dict[str, tuple[int, ...]] = {}
    for unit in units(arch):
        shapes[f"{unit.conv}.weight"] = unit.shape
        channels = unit.shape[0]
        shapes |= {f"{unit.norm}.{leaf}": () if leaf == "num_batches_tracked" else (channels,) for leaf in NORM_TENSORS}
    return MappingProxyType(shapes)
