"""A backbone from a network in memory: a ResNet if its tensors and features are a ResNet's, else the network itself."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from backbench.config import build as build_config
from backbench.errors import CheckpointError, ConfigError
from model_zoo import code_identity, external
from model_zoo.architecture import Architecture, InputSpec
from model_zoo.backbone import Backbone
from model_zoo.infer import infer_architecture
from model_zoo.load import check
from model_zoo.recognise import recognise


def of_module(module: nn.Module, name: str | None = None, input_fields: Mapping[str, Any] | None = None) -> Backbone:
    """Return a backbone with a copy of the module's weights; the module itself is not changed.

    A torchvision or timm ResNet becomes a ResNet with stages, without its classifier. Any other module must
    return features (N, C).

    Args:
        name: the row's name; default: the class's name.
        input_fields: fields of InputSpec (size, mean, std, order); default: the module's `input_spec`, else ImageNet's.

    Raises:
        CheckpointError: the module does not return features (N, C), or returns different ones each time.
    """
    module = copy.deepcopy(module).cpu().eval()
    label = name or type(module).__name__
    stated = input_fields if input_fields is not None else getattr(module, "input_spec", None)
    try:
        spec = build_config(InputSpec, dict(stated or {}), where="input")
    except ConfigError as error:
        raise CheckpointError(f"{label}: {error}") from None
    found = _as_resnet(module, label, spec)
    if found is None:
        library, files = code_identity.of_network(type(module), module)
        arch = external.ExternalArchitecture(name=type(module).__qualname__, library=library, source_sha256=files)
        found = external.of_network(label, module, arch, spec)
    assumed = () if stated is not None else (f"RGB, {spec.size} px, ImageNet's mean and std assumed",)
    return replace(found, notes=(*found.notes, *assumed), named=name is not None)


def _as_resnet(module: nn.Module, label: str, spec: InputSpec) -> Backbone | None:
    """Return the ResNet with the same tensors and features (without a classifier `fc`), or None."""
    try:
        recognised = recognise(module.state_dict())
        found = recognised.found
        arch = build_config(Architecture, infer_architecture(found.state, {}, found.leftover), where="arch")
        backbone = Backbone(label, arch, check(found, arch), spec, "module", recognised.layout)
    except (CheckpointError, ConfigError):
        return None
    x = external.probe(spec)
    with torch.no_grad():
        features, given = backbone.build().eval()(x), module(x)
        heads: tuple[Any, ...] = (nn.Identity(), getattr(module, "fc", None))
        same = (
            head(features)
            for head in heads
            if isinstance(head, nn.Identity) or (isinstance(head, nn.Linear) and head.in_features == features.shape[1])
        )
        alike = isinstance(given, Tensor) and any(
            given.shape == own.shape and torch.allclose(own, given, rtol=1e-3, atol=1e-5) for own in same
        )
    return backbone if alike else None
