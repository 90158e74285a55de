"""MMDetection 3: its ResNet has torchvision's names; they stand under `backbone.`, where a detector keeps them.

Under that prefix the file works as `load_from` and, with `prefix: backbone.`, as `init_cfg`; without it mmengine only
warns and trains from noise (mmengine/runner/checkpoint.py, mmdet/models/backbones/resnet.py). A C4 detector keeps layer4
in `roi_head.shared_head`, which needs the same `init_cfg` for itself: `load_from` leaves it as initialised.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.artifacts import atomic_save
from model_zoo.export import (
    NORM_TENSORS,
    Places,
    base_planes,
    check_state,
    in_rgb,
    pixel_scale,
    refuse_trunk,
    units,
    write_sidecars,
)

if TYPE_CHECKING:
    from torch import Tensor

    from model_zoo.architecture import Architecture
    from model_zoo.backbone import Backbone

PREFIX = "backbone."
_PLACES = Places(
    engine="MMDetection",
    prefixes=("", PREFIX),
    stem="conv1.weight",
    last_stage="layer4.",
    c4_head="roi_head.shared_head.",
    own=re.compile(r"(?:conv1|bn1|layer[1-4])\."),
)


def key_table(arch: Architecture) -> dict[str, str]:
    """torchvision's name -> the name in the file, for every tensor."""
    table = {}
    for unit in units(arch):
        tensors = [f"{unit.conv}.weight", *(f"{unit.norm}.{tensor}" for tensor in NORM_TENSORS)]
        table |= {name: PREFIX + name for name in tensors}
    return table


def refuse(backbone: Backbone) -> None:
    """What mmdet's ResNet cannot be built as.

    Raises:
        ExportError: another stem or max-pool than it has a field for.
    """
    refuse_trunk(backbone.arch, "MMDetection")


def export(backbone: Backbone) -> dict[str, Any]:
    """What the file holds: mmengine's {"state_dict", "meta"}."""
    meta = {"author": "backbench", "backbone": backbone.name}
    return {"state_dict": _tensors(backbone), "meta": meta}


def _tensors(backbone: Backbone) -> dict[str, Tensor]:
    refuse(backbone)
    table = key_table(backbone.arch)
    return {table[name]: tensor for name, tensor in in_rgb(backbone).state.items()}


def write(backbone: Backbone, path: Path) -> None:
    """Write the file, and beside it what it cannot tell: FILE.yaml for us, FILE.settings.yaml for MMDetection."""
    payload = export(backbone)
    write_sidecars(backbone, path, settings(backbone))
    atomic_save(path, payload)


def settings(backbone: Backbone) -> dict[str, Any]:
    """What these weights imply: `model.backbone`, `model.data_preprocessor` and the `init_cfg`'s `prefix`.

    `bgr_to_rgb` is true because mmdet decodes images as BGR; mean and std are then RGB's, in 0-255.
    """
    refuse(backbone)
    arch, spec = backbone.arch, in_rgb(backbone).input
    from model_zoo.resnet import stem_planes

    caffe = arch.stride_in_1x1 and arch.name not in ("resnet18", "resnet34")
    return {
        "backbone": {
            "type": "ResNet",
            "depth": int(arch.name.removeprefix("resnet")),
            "stem_channels": stem_planes(arch),  # else base_channels would widen the stem too
            "base_channels": base_planes(arch),
            "style": "caffe" if caffe else "pytorch",
        },
        "data_preprocessor": {"mean": pixel_scale(spec.mean), "std": pixel_scale(spec.std), "bgr_to_rgb": True},
        "prefix": PREFIX,
    }


def check_engine_state(backbone: Backbone, state: Mapping[str, Tensor]) -> None:
    """Whether an mmdet model (a ResNet or a detector around one) holds exactly the exported tensors.

    Raises:
        ExportError: names the first tensors that are missing, different or were not exported.
    """
    check_state({name.removeprefix(PREFIX): tensor for name, tensor in _tensors(backbone).items()}, state, _PLACES)
