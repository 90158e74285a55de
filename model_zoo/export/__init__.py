"""One module per target; the module name is the registry: a backbone leaves as weights and the settings they imply.

Each has `key_table(arch)`, `refuse(backbone)`, `export(backbone)`, `write(backbone, path)`, `settings(backbone)` and
`check_engine_state(backbone, state)`. Engines only ever see RGB: a BGR backbone is exported as `in_rgb` makes it.
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

if TYPE_CHECKING:
    from torch import Tensor

    from model_zoo.architecture import Architecture
    from model_zoo.backbone import Backbone

FEATURE_TOLERANCE = 1e-4  # of an engine's features against torchvision's, as a share of a stage's largest value
_SHOWN = 3  # names in an error


class ExportError(BackbenchError):
    """A backbone that a target cannot hold, or an engine that does not hold what was exported."""


def names() -> list[str]:
    """The names of all targets."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def get(name: str) -> ModuleType:
    """The target's module; ConfigError with the nearest name otherwise."""
    if name not in names():
        raise ConfigError(f"unknown target '{name}'{nearest(name, names())}")
    return importlib.import_module(f"model_zoo.export.{name}")


def refuse_trunk(arch: Architecture, engine: str) -> None:
    """Refuse an architecture that neither engine can build.

    Raises:
        ExportError: no ResNet, or another stem, max-pool or padding than torchvision's.
    """
    from model_zoo.architecture import DEEP, Architecture

    if not isinstance(arch, Architecture):
        raise ExportError(f"{engine} is given ResNets only, which {arch.name} is not")
    if arch.name in ("resnet26", "resnet200"):
        raise ExportError(
            f"{engine} builds ResNets of 18, 34, 50, 101 and 152 layers, this backbone is a {arch.name}; the frozen and "
            "fine-tuning protocols take it"
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
    """The same function of an RGB image: the input channels of conv1, mean and std of a BGR backbone turned around."""
    if backbone.input.order == "rgb":
        return backbone
    from model_zoo.anatomy import first_convolution

    spec = backbone.input.model_copy(
        update={"order": "rgb", "mean": backbone.input.mean[::-1], "std": backbone.input.std[::-1]}
    )
    first = first_convolution(backbone.arch)
    state = {**backbone.state, first: backbone.state[first].flip(1).contiguous()}
    notes = (*backbone.notes, "conv1's input channels turned from BGR to RGB")
    return dataclasses.replace(backbone, state=state, input=spec, notes=notes)


def pixel_scale(values: Sequence[float]) -> list[float]:
    """Mean or std of images in [0, 1] as engines want it, in 0-255."""
    return [round(255 * value, 6) for value in values]


def sidecars(path: Path) -> tuple[Path, Path]:
    """Beside an exported file: `.yaml`, what `model_zoo.load` reads, and `.settings.yaml`, the engine's."""
    return path.with_name(f"{path.name}.yaml"), path.with_name(f"{path.name}.settings.yaml")


def write_sidecars(backbone: Backbone, path: Path, settings: Mapping[str, Any]) -> None:
    """What weights cannot tell, for us and for the engine; written before the weights, which are nothing without."""
    from backbench.files.atomic import atomic_write_text
    from backbench.yaml_text import write_yaml

    fields = {"arch": backbone.arch.model_dump(mode="json"), "input": in_rgb(backbone).input.model_dump(mode="json")}
    for file, values in zip(sidecars(path), (fields, dict(settings)), strict=True):
        atomic_write_text(file, write_yaml(values, lists_in_line=True))


@dataclass(frozen=True)
class Places:
    """Where an engine's models keep the tensors of a backbone."""

    engine: str
    prefixes: tuple[str, ...]  # before the ResNet's names: none, or a detector's
    stems: tuple[str, ...]  # every backbone has one of these tensors, to find the prefix by
    last_stage: str  # what a C4 detector keeps elsewhere,
    c4_head: str  # under this prefix
    own: re.Pattern[str]  # the start of a ResNet's names, without prefix


def check_state(exported: Mapping[str, Tensor], state: Mapping[str, Tensor], places: Places) -> None:
    """Whether the engine's model holds exactly the exported tensors; num_batches_tracked does not count.

    Raises:
        ExportError: names the first tensors that are missing, were not exported, or are different.
    """
    import torch

    engine, stems = places.engine, places.stems
    found = [prefix for prefix in places.prefixes if any(prefix + stem in state for stem in stems)]
    if len(found) != 1:
        raise ExportError(
            f"{engine}'s model has no {' or '.join(stems)} under {', '.join(map(repr, places.prefixes))}; its tensors start "
            f"with {', '.join(list(state)[:2]) or 'none'}"
        )
    c4 = any(name.startswith(places.c4_head + places.last_stage) for name in state)
    expected = {
        (places.c4_head if c4 and name.startswith(places.last_stage) else found[0]) + name: tensor
        for name, tensor in exported.items()
        if not name.endswith("num_batches_tracked")
    }
    missing = [name for name in expected if name not in state]
    if missing:
        raise ExportError(f"{engine} has no place for {len(missing)} of {len(expected)} tensors: {_some(missing)}")
    surplus = [name for name in _backbone_names(state, (found[0], places.c4_head), places.own) if name not in expected]
    if surplus:
        raise ExportError(f"{engine}'s backbone has {len(surplus)} tensors that were not exported: {_some(surplus)}")
    different = [n for n, tensor in expected.items() if not torch.equal(state[n].detach().cpu().float(), tensor)]
    if different:
        raise ExportError(
            f"{len(different)} of {len(expected)} tensors in {engine} are not the exported ones (not loaded, or "
            f"changed since): {_some(different)}"
        )


def _backbone_names(state: Mapping[str, Tensor], prefixes: Sequence[str], own: re.Pattern[str]) -> list[str]:
    return [
        name
        for name in state
        if any(name.startswith(prefix) and own.match(name, len(prefix)) for prefix in prefixes)
        and not name.endswith("num_batches_tracked")
    ]


def feature_difference(backbone: Backbone, stages_fn: Callable[[Tensor], Sequence[Tensor]]) -> float:
    """Largest difference between an engine's C2..C5 and torchvision's, as a share of a stage's largest value.

    Args:
        backbone: the one that was exported.
        stages_fn: normalised RGB (2, 3, 64, 96) -> the engine's (C2, C3, C4, C5), norms in evaluation mode.

    Raises:
        ExportError: a stage is absent or has another shape.
    """
    import torch

    x = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    trunk: Any = in_rgb(backbone).build().eval()
    with torch.no_grad():
        expected = trunk.stages(x)
        found = tuple(stages_fn(x))
    shapes = [tuple(stage.shape) for stage in found], [tuple(stage.shape) for stage in expected]
    if shapes[0] != shapes[1]:
        raise ExportError(f"the engine's stages have shapes {shapes[0]}, torchvision's {shapes[1]}")
    shares = [(a - b).abs().max() / b.abs().max() for a, b in zip(found, expected, strict=True)]
    return float(torch.stack(shares).max())


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
