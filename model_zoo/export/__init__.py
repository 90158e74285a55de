"""Export of a backbone as weights and the settings they imply: one module per target, found by its name.

Each has `key_table(arch)`, `refuse(backbone)`, `export(backbone)`, `write(backbone, path)`, `settings(backbone)`,
`check_engine_state(backbone, state)` and `trunk_sha256(backbone, state)`. Engines always get RGB images: `in_rgb` converts a
BGR backbone before its export.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from backbench.errors import BackbenchError, ConfigError, nearest
from backbench.printable import some

if TYPE_CHECKING:
    from torch import Tensor, nn

    from model_zoo.architecture import Architecture
    from model_zoo.backbone import Backbone

FEATURE_TOLERANCE = 1e-4  # between an engine's features and torchvision's, as a fraction of a stage's largest value


class ExportError(BackbenchError):
    """A target cannot represent a backbone, or an engine's weights differ from the exported ones."""


def names() -> list[str]:
    """Return the names of all targets."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def get(name: str) -> ModuleType:
    """Return a target's module. Raises ConfigError: unknown name (with the nearest one)."""
    if name not in names():
        raise ConfigError(f"unknown target '{name}'{nearest(name, names())}")
    return importlib.import_module(f"model_zoo.export.{name}")


def refuse_trunk(arch: Architecture, engine: str) -> None:
    """Raise ExportError for an architecture that no engine can build.

    Raises:
        ExportError: not a ResNet, or a stem, max-pool or padding that differs from torchvision's.
    """
    from model_zoo.architecture import DEEP, Architecture

    if not isinstance(arch, Architecture):
        raise ExportError(f"{engine} takes ResNets only, and {arch.name} is not one")
    if arch.name in ("resnet26", "resnet200"):
        raise ExportError(
            f"{engine} builds ResNets of 18, 34, 50, 101 and 152 layers, this backbone is a {arch.name}; the frozen and "
            "fine-tuning protocols support it"
        )
    if arch.stem not in ("7x7", *DEEP):
        raise ExportError(
            f"{engine}'s ResNet starts with a 7x7 convolution of stride 2 and a max-pool, this backbone with stem "
            f"'{arch.stem}'; pretrain with stem 7x7 to use it there"
        )
    if arch.pool_padding != "symmetric":
        raise ExportError(
            f"{engine}'s ResNet pads its max-pool on all sides, this backbone does not (pool_padding: "
            f"{arch.pool_padding}); it would compute other features there, and no setting changes that"
        )
    if arch.conv_padding != "symmetric":
        raise ExportError(
            f"{engine}'s ResNet pads its convolutions on all sides, this backbone does not (conv_padding: "
            f"{arch.conv_padding}); it would compute other features there, and no setting changes that"
        )


def in_rgb(backbone: Backbone) -> Backbone:
    """Return a backbone for RGB images: for a BGR backbone, reverse the input channels of conv1, the mean and the std."""
    if backbone.input.order == "rgb":
        return backbone
    from model_zoo.anatomy import first_convolution

    spec = backbone.input.model_copy(
        update={"order": "rgb", "mean": backbone.input.mean[::-1], "std": backbone.input.std[::-1]}
    )
    first = first_convolution(backbone.arch)
    state = {**backbone.state, first: backbone.state[first].flip(1).contiguous()}
    notes = (*backbone.notes, "conv1's input channels reversed from BGR to RGB")
    return dataclasses.replace(backbone, state=state, input=spec, notes=notes)


def pixel_scale(values: Sequence[float]) -> list[float]:
    """Return a mean or std for images in [0, 1] on the engines' scale, 0-255."""
    return [round(255 * value, 6) for value in values]


def sidecars(path: Path) -> tuple[Path, Path]:
    """Return the two files beside an exported one: `.yaml` for `model_zoo.load`, `.settings.yaml` for the engine."""
    return path.with_name(f"{path.name}.yaml"), path.with_name(f"{path.name}.settings.yaml")


def write_sidecars(backbone: Backbone, path: Path, settings: Mapping[str, Any]) -> None:
    """Write what the weights do not show, for us and for the engine. Call it before the weights are written."""
    from backbench.files.atomic import atomic_write_text
    from backbench.yaml_text import write_yaml

    fields = {"arch": backbone.arch.model_dump(mode="json"), "input": in_rgb(backbone).input.model_dump(mode="json")}
    for file, values in zip(sidecars(path), (fields, dict(settings)), strict=True):
        atomic_write_text(file, write_yaml(values, lists_in_line=True))


@dataclass(frozen=True)
class Places:
    """Where an engine's models store a backbone's tensors."""

    engine: str
    prefixes: tuple[str, ...]  # of the ResNet's names: none, or a detector's
    stems: tuple[str, ...]  # every backbone has one of these tensors; used to find the prefix
    last_stage: str  # a C4 detector stores this stage elsewhere,
    c4_head: str  # under this prefix
    own: re.Pattern[str]  # the start of a ResNet's names, without prefix


def check_state(exported: Mapping[str, Tensor], state: Mapping[str, Tensor], places: Places) -> None:
    """Check that the engine's model has exactly the exported tensors; num_batches_tracked does not count.

    Raises:
        ExportError: names the first tensors that are missing, were not exported, or differ.
    """
    import torch

    engine = places.engine
    prefix, expected = _placed(exported, state, places)
    missing = [name for name in expected if name not in state]
    if missing:
        raise ExportError(
            f"{engine} has no place for {len(missing)} of {len(expected)} tensors: {some(missing, counted=False)}"
        )
    surplus = [name for name in _backbone_names(state, (prefix, places.c4_head), places.own) if name not in expected]
    if surplus:
        raise ExportError(
            f"{engine}'s backbone has {len(surplus)} tensors that were not exported: {some(surplus, counted=False)}"
        )
    different = [n for n, tensor in expected.items() if not torch.equal(state[n].detach().cpu().float(), tensor)]
    if different:
        raise ExportError(
            f"{len(different)} of {len(expected)} tensors in {engine} differ from the exported ones (not loaded, or "
            f"changed since): {some(different, counted=False)}"
        )


def trunk_digest(exported: Mapping[str, Tensor], state: Mapping[str, Tensor], places: Places) -> str:
    """Return the SHA-256 of a detector's trunk after comparing it with the exported one, for a trunk that stays frozen.

    A C4 detector's head, the last stage, does not belong to the trunk.

    Raises:
        ExportError: names the first tensors that differ.
    """
    import torch

    from backbench.files.hashes import tensors_sha256

    head = places.c4_head + places.last_stage
    expected = {name: t for name, t in _placed(exported, state, places)[1].items() if not name.startswith(head)}
    there = {name: state[name].detach().cpu().float() for name in expected}
    digest = tensors_sha256(there)
    if digest != tensors_sha256(expected):
        moved = [name for name, tensor in expected.items() if not torch.equal(there[name], tensor)]
        raise ExportError(
            f"{len(moved)} of {len(expected)} tensors of {places.engine}'s frozen backbone changed while the detector was "
            f"trained: {some(moved, counted=False)}"
        )
    return digest


def _placed(
    exported: Mapping[str, Tensor], state: Mapping[str, Tensor], places: Places
) -> tuple[str, dict[str, Tensor]]:
    """Return the prefix of the engine's ResNet, and the exported tensors under the engine's names.

    Raises:
        ExportError: the engine's model has no ResNet, or several.
    """
    engine, stems = places.engine, places.stems
    found = [prefix for prefix in places.prefixes if any(prefix + stem in state for stem in stems)]
    if len(found) != 1:
        raise ExportError(
            f"{engine}'s model has no {' or '.join(stems)} under {', '.join(map(repr, places.prefixes))}; its tensors start "
            f"with {', '.join(list(state)[:2]) or 'none'}"
        )
    c4 = any(name.startswith(places.c4_head + places.last_stage) for name in state)
    return found[0], {
        (places.c4_head if c4 and name.startswith(places.last_stage) else found[0]) + name: tensor
        for name, tensor in exported.items()
        if not name.endswith("num_batches_tracked")
    }


def _backbone_names(state: Mapping[str, Tensor], prefixes: Sequence[str], own: re.Pattern[str]) -> list[str]:
    return [
        name
        for name in state
        if any(name.startswith(prefix) and own.match(name, len(prefix)) for prefix in prefixes)
        and not name.endswith("num_batches_tracked")
    ]


def feature_difference(
    backbone: Backbone, stages_fn: Callable[[Tensor], Sequence[Tensor]], reference: nn.Module | None = None
) -> float:
    """Return the largest difference between an engine's C2..C5 and torchvision's, relative to a stage's largest value.

    Args:
        backbone: the exported one.
        stages_fn: normalised RGB (2, 3, 64, 96) -> the engine's (C2, C3, C4, C5), norms in evaluation mode.
        reference: a trunk for RGB to compare with, if not the backbone as it was exported (dilated, for segmentation).

    Raises:
        ExportError: a stage is absent or has another shape.
    """
    import torch

    x = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    trunk: Any = (in_rgb(backbone).build() if reference is None else reference).eval()
    with torch.no_grad():
        expected = trunk.stages(x)
        found = tuple(stages_fn(x))
    shapes = [tuple(stage.shape) for stage in found], [tuple(stage.shape) for stage in expected]
    if shapes[0] != shapes[1]:
        raise ExportError(f"the engine's stages have shapes {shapes[0]}, torchvision's {shapes[1]}")
    shares = [(a - b).abs().max() / b.abs().max() for a, b in zip(found, expected, strict=True)]
    return float(torch.stack(shares).max())
