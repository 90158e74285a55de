"""Describe a checkpoint, and report what looks wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from backbench.files.hashes import file_sha256
from backbench.printable import printable
from backbench.spectra import effective_rank
from model_zoo import entries, fetch
from model_zoo.anatomy import stem_planes
from model_zoo.architecture import DEEP, Architecture, InputSpec, architecture_fields
from model_zoo.backbone import Backbone
from model_zoo.choice import NO_CHOICE, Choice
from model_zoo.fetch import url_file
from model_zoo.load import UNKNOWABLE, dead_channels, load
from model_zoo.resnet import build

IMAGES = 16
_LOWEST_RANK = 2.0  # of at most 15; with a lower rank, features hardly distinguish the images
_LIKE_FRESH = 0.02  # a layer this close to a fresh network's spread is hardly trained


def card(source: str | Path, choice: Choice = NO_CHOICE) -> dict[str, Any]:
    """Return facts about a checkpoint, `zoo:NAME`, `timm:NAME` or `module:function`, after every check of `load`.

    Args:
        choice: the network to read in a checkpoint file.

    Raises:
        CheckpointError: the file does not contain a sound backbone.
    """
    backbone = load(source, choice=choice)
    if not backbone.is_resnet:
        return _external_card(backbone)
    path = _file(source)
    fresh = build(backbone.arch, seed=0)
    x = images(backbone.input)
    warnings: list[str] = dead_channels(backbone.state)
    rows = {
        "file": printable(path or source, 1000),
        "layout": backbone.format,
        "architecture": architecture_fields(backbone.arch),
        "input": _input(backbone.input),
        "parameters": f"{sum(t.numel() for n, t in backbone.state.items() if n.endswith(('weight', 'bias'))):,}",
        "weights_sha256": backbone.weights_sha256,
        "file_sha256": file_sha256(path) if path else "no file",
        "features": _spread(_features(backbone.build(), x), _features(fresh, x), warnings),
        "batchnorm": _batchnorm(backbone, fresh.state_dict(), warnings),
        "weights": _weights(backbone, fresh.state_dict(), warnings),
        "conventions": conventions(backbone) or [f"torchvision's{', assumed' if UNKNOWABLE in backbone.notes else ''}"],
        "notes": list(backbone.notes) or ["none"],
    }
    return {**rows, "warnings": warnings or ["none"]}


def conventions(backbone: Backbone) -> list[str]:
    """Return the differences from torchvision's conventions; ignoring one changes numbers."""
    usual, arch, spec = InputSpec(), backbone.arch, backbone.input
    plain = Architecture(name=arch.name)
    found = []
    if arch.stride_in_1x1:
        found.append("a block's stride is in its first 1x1 convolution (Caffe2, MSRA)")
    if arch.pool_padding == "end":
        found.append("max-pooling is padded at the end (TensorFlow's SAME at even sides, Caffe)")
    if arch.pool_padding == "same":
        found.append("max-pooling has TensorFlow's SAME padding")
    if arch.conv_padding == "same":
        found.append("strided convolutions have TensorFlow's SAME padding")
    if arch.stem in DEEP:
        planes = ", ".join(map(str, stem_planes(arch)))
        found.append(f"the stem is three 3x3 convolutions of {planes} planes (ResNet-C, ResNet-D and similar)")
    elif arch.stem != plain.stem:
        found.append(f"the stem is {arch.stem}, for small images")
    if arch.avg_down:
        found.append("strided shortcuts average 2x2 (ResNet-D)")
    if spec.order == "bgr":
        found.append("channels are BGR")
    if tuple(spec.std) != tuple(usual.std) or tuple(spec.mean) not in (tuple(usual.mean), tuple(usual.mean)[::-1]):
        swav = " (SwAV's code)" if spec.std == (0.228, 0.224, 0.225) else ""
        found.append(f"mean {list(spec.mean)} and std {list(spec.std)} are not ImageNet's usual ones{swav}")
    return found


def _input(spec: InputSpec) -> str:
    return f"{spec.order.upper()}, {spec.size} px, mean {list(spec.mean)}, std {list(spec.std)}"


def _external_card(backbone: Backbone) -> dict[str, Any]:
    """Return the rows for a network that is not our ResNet; statistics of BatchNorm and weights do not apply."""
    warnings: list[str] = []
    arch, module = backbone.arch.model_dump(mode="json", exclude_none=True), backbone.build()
    rows = {
        "source": printable(backbone.source, 1000),
        "architecture": ", ".join(printable(value) for value in arch.values()),
        "input": _input(backbone.input),
        "parameters": f"{sum(p.numel() for p in module.parameters()):,}",
        "weights_sha256": backbone.weights_sha256,
        "features": _rank(_features(module, images(backbone.input)), warnings),
        "not checked": "layout, conventions, BatchNorm and weight statistics, which apply to ResNets only",
        "notes": list(backbone.notes) or ["none"],
    }
    return {**rows, "warnings": warnings or ["none"]}


def _file(source: str | Path) -> Path | None:
    """Return the file, if there is one; `load` has already fetched a zoo entry's."""
    if url_file.is_url(str(source)):
        return fetch.fetch_url(str(source))[0]
    if not str(source).startswith("zoo:"):
        return Path(source) if Path(source).is_file() else None
    return fetch.fetch(entries.get(str(source).removeprefix("zoo:")))


def images(spec: InputSpec) -> Tensor:
    """Return rendered scenes (16, 3, size, size), normalised for the backbone."""
    import numpy as np

    from backbench.data.demo.render import CLASSES, render_single

    rng = np.random.default_rng(0)
    pixels = np.stack([render_single(i % len(CLASSES), rng) for i in range(IMAGES)])
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    x = F.interpolate(x, (spec.size, spec.size), mode="bilinear", antialias=True)
    x = x.flip(1) if spec.order == "bgr" else x
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (spec.mean, spec.std))
    return (x - mean) / std


@torch.no_grad()
def _features(module: torch.nn.Module, x: Tensor) -> Tensor:
    """Return the pooled features, (16, C)."""
    return module.eval()(x)


def _spread(features: Tensor, fresh: Tensor, warnings: list[str]) -> str:
    """Describe how well the features distinguish the rendered scenes, compared with a fresh network."""
    return _rank(features, warnings, f" (fresh network: {effective_rank(fresh):.1f})")


def _rank(features: Tensor, warnings: list[str], beside: str = "") -> str:
    """Describe how well the features distinguish the rendered scenes."""
    if not bool(torch.isfinite(features).all()):
        warnings.append("features of ordinary images are NaN or infinite")
        return f"{features.shape[1]} dimensions, not finite"
    rank, dead = effective_rank(features), float((features.std(dim=0) == 0).float().mean())
    if rank < _LOWEST_RANK:
        warnings.append(f"COLLAPSED: {IMAGES} different images have features of effective rank {rank:.1f}")
    return (
        f"{features.shape[1]} dimensions, effective rank {rank:.1f} of {IMAGES - 1} on {IMAGES} rendered scenes{beside}, "
        f"{100 * dead:.0f}% constant, norm {features.norm(dim=1).mean():.3g}"
    )


def _batchnorm(backbone: Backbone, fresh: dict[str, Tensor], warnings: list[str]) -> str:
    """Describe whether the running statistics were ever updated, and whether the weights left their initialisation."""
    layers = [name.removesuffix(".running_mean") for name in backbone.state if name.endswith("running_mean")]
    untouched = [
        layer
        for layer in layers
        if bool(
            (backbone.state[f"{layer}.running_mean"] == 0).all() and (backbone.state[f"{layer}.running_var"] == 1).all()
        )
    ]
    if len(untouched) == len(layers):
        affine = all(bool((backbone.state[f"{layer}.weight"] == 1).all()) for layer in layers)
        how = "those of a fresh network" if affine else "those of a fresh network, perhaps folded into scale and shift"
        warnings.append(f"BatchNorm statistics are {how}")
        return f"UNTRAINED: all running statistics are {how}"
    if untouched:
        warnings.append(
            f"BatchNorm statistics of {len(untouched)} of {len(layers)} layers are untrained: {untouched[0]}, ..."
        )
    last = "layer4.1.conv1.weight"
    ratio = float(backbone.state[last].std() / fresh[last].std())
    some = f" in {len(layers) - len(untouched)} of {len(layers)} layers" if untouched else ""
    return f"trained statistics{some}; last stage's weights {ratio:.2f} times a fresh network's spread"


def _weights(backbone: Backbone, fresh: dict[str, Tensor], warnings: list[str]) -> str:
    """Describe the spread of the convolutions' weights relative to random initialisation, and count zero filters."""
    convolutions = [name for name, tensor in backbone.state.items() if tensor.ndim == 4]
    ratios = sorted(float(backbone.state[name].std() / fresh[name].std()) for name in convolutions)
    empty = sum(int((backbone.state[name].flatten(1).norm(dim=1) == 0).sum()) for name in convolutions)
    middle = ratios[len(ratios) // 2]
    if all(abs(ratio - 1) < _LIKE_FRESH for ratio in ratios[len(ratios) // 4 : -len(ratios) // 4]):
        warnings.append("the weights have the spread of a random initialisation: hardly trained")
    if empty:
        warnings.append(f"{empty} filters are all zero")
    return (
        f"{len(ratios)} convolutions, spread {ratios[0]:.2f} to {ratios[-1]:.2f} (middle {middle:.2f}) times random "
        f"initialisation, {empty} filters all zero"
    )
