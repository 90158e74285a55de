"""What a checkpoint is, and whether anything about it looks wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from core.artifacts import file_sha256
from core.embeddings import effective_rank
from model_zoo.architecture import architecture_fields
from model_zoo.backbone import Backbone
from model_zoo.load import load
from model_zoo.resnet import build


def card(source: str | Path) -> dict[str, Any]:
    """Facts about a checkpoint, in order; every check of `load` has passed when this returns.

    Raises:
        CheckpointError: the file does not hold a sound backbone.
    """
    backbone = load(source)
    path = _file(source)
    parameters = sum(t.numel() for n, t in backbone.state.items() if n.endswith(("weight", "bias")))
    spec = backbone.input
    return {
        "file": str(path),
        "layout": backbone.format,
        "architecture": architecture_fields(backbone.arch),
        "input": f"{spec.order.upper()}, {spec.size} px, mean {list(spec.mean)}, std {list(spec.std)}",
        "parameters": f"{parameters:,}",
        "weights_sha256": backbone.weights_sha256,
        "file_sha256": file_sha256(path),
        "features": _features(backbone),
        "batchnorm": _batchnorm(backbone),
        "notes": list(backbone.notes) or ["none"],
    }


def _file(source: str | Path) -> Path:
    """The file itself; `load` has fetched a zoo entry's already."""
    if not str(source).startswith("zoo:"):
        return Path(source)
    from model_zoo import download, entries

    return download.fetch(entries.get(str(source).removeprefix("zoo:")))


def _features(backbone: Backbone) -> str:
    """Spread of the features of 16 random images: a dead network has none."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, 3, backbone.input.size, backbone.input.size, generator=generator)
    module = backbone.build().eval()
    with torch.no_grad():
        features = module(x)
    rank = float(effective_rank(features))
    return f"{features.shape[1]} dimensions, effective rank {rank:.1f} of 15 on noise, norm {features.norm(dim=1).mean():.3g}"


def _batchnorm(backbone: Backbone) -> str:
    """Whether the running statistics were ever updated, and whether the weights left their initialisation."""
    means = torch.cat([t for n, t in backbone.state.items() if n.endswith("running_mean")])
    variances = torch.cat([t for n, t in backbone.state.items() if n.endswith("running_var")])
    if bool((means == 0).all()) and bool((variances == 1).all()):
        return "UNTRAINED: all running statistics are those of a fresh network"
    fresh = build(backbone.arch, seed=0).state_dict()
    ratio = float(backbone.state["layer4.1.conv1.weight"].std() / fresh["layer4.1.conv1.weight"].std())
    return f"trained statistics; last stage's weights {ratio:.2f} times a fresh network's spread"
