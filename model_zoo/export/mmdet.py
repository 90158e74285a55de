"""MMDetection 3: its ResNet has torchvision's names; the file has them under `backbone.`, as a detector does.

MMSegmentation 1 reads the same file: its ResNet has the same names and fields.

With that prefix, the file works as `load_from` and, with `prefix: backbone.`, as `init_cfg`. Without it, mmengine only
warns and trains from random weights (mmengine/runner/checkpoint.py, mmdet/models/backbones/resnet.py). A C4 detector has
layer4 in `roi_head.shared_head`, which needs the same `init_cfg`: `load_from` does not load it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backbench.files.atomic import atomic_save
from model_zoo.anatomy import NORM_TENSORS, inner_planes, planes, stem_planes, units
from model_zoo.architecture import BASIC
from model_zoo.export import (
    ExportError,
    Places,
    check_state,
    in_rgb,
    pixel_scale,
    refuse_trunk,
    trunk_digest,
    write_sidecars,
)

if TYPE_CHECKING:
    from torch import Tensor

    from model_zoo.architecture import Architecture
    from model_zoo.backbone import Backbone

PREFIX = "backbone."
PLACES = Places(
    engine="MMDetection",
    prefixes=("", PREFIX),
    stems=("conv1.weight", "stem.0.weight"),
    last_stage="layer4.",
    c4_head="roi_head.shared_head.",
    own=re.compile(r"(?:conv1|bn1|stem|layer[1-4])\."),
)


def key_table(arch: Architecture) -> dict[str, str]:
    """Return our name -> the name in the file, for every tensor."""
    deep = len(stem_planes(arch)) > 1
    table = {}
    for unit in units(arch):
        conv, norm = unit.conv, unit.norm
        if unit.stage == 0 and deep:  # mmdet has a deep stem in one Sequential
            conv, norm = conv.replace("conv1.", "stem."), norm.replace("conv1.", "stem.").replace("bn1", "stem.7")
        table[f"{unit.conv}.weight"] = f"{PREFIX}{conv}.weight"
        table |= {f"{unit.norm}.{leaf}": f"{PREFIX}{norm}.{leaf}" for leaf in NORM_TENSORS}
    return table


def refuse(backbone: Backbone) -> None:
    """Raise ExportError for a backbone that mmdet's ResNet cannot build.

    Raises:
        ExportError: a stem, max-pool or width for which it has no field.
    """
    arch = backbone.arch
    refuse_trunk(arch, "MMDetection")
    if arch.stem == "deep-tiered":
        raise ExportError(
            f"MMDetection's deep stem has as many planes after its first convolution as after its second, this backbone "
            f"has {', '.join(map(str, stem_planes(arch)))} (stem 'deep-tiered')"
        )
    if arch.groups == 1 and arch.base_width != 64:
        raise ExportError(
            f"MMDetection widens the 3x3 convolutions of grouped blocks (ResNeXt) only, this backbone is a Wide ResNet "
            f"(base_width {arch.base_width}, one group)"
            + ("; Detectron2 can build it" if arch.stem == "7x7" and not arch.avg_down else "")
        )


def export(backbone: Backbone) -> dict[str, Any]:
    """Return the file's contents: mmengine's {"state_dict", "meta"}."""
    meta = {"author": "backbench", "backbone": backbone.name}
    return {"state_dict": _tensors(backbone), "meta": meta}


def bare(backbone: Backbone) -> dict[str, Tensor]:
    """Return the exported tensors under the names of the engine's ResNet, without the file's prefix."""
    return {name.removeprefix(PREFIX): tensor for name, tensor in _tensors(backbone).items()}


def _tensors(backbone: Backbone) -> dict[str, Tensor]:
    refuse(backbone)
    table = key_table(backbone.arch)
    return {table[name]: tensor for name, tensor in in_rgb(backbone).state.items()}


def write(backbone: Backbone, path: Path) -> None:
    """Write the file and two beside it: FILE.yaml for backbench, FILE.settings.yaml for MMDetection."""
    payload = export(backbone)
    write_sidecars(backbone, path, settings(backbone))
    atomic_save(path, payload)


def settings(backbone: Backbone) -> dict[str, Any]:
    """Return the settings that the weights imply: `model.backbone`, `model.data_preprocessor` and the `init_cfg`'s `prefix`.

    `bgr_to_rgb` is true because mmdet decodes images as BGR; mean and std are in RGB order, in 0-255.
    """
    refuse(backbone)
    arch, spec = backbone.arch, in_rgb(backbone).input
    caffe = arch.stride_in_1x1 and arch.name not in BASIC
    backbone_fields = {
        "type": "ResNeXt" if arch.groups > 1 else "ResNet",
        "depth": int(arch.name.removeprefix("resnet")),
        "stem_channels": stem_planes(arch)[-1],  # otherwise base_channels would widen the stem too
        "base_channels": planes(arch)[0],
        "style": "caffe" if caffe else "pytorch",
    }
    if arch.groups > 1:
        backbone_fields |= {"groups": arch.groups, "base_width": inner_planes(arch)[0] // arch.groups}
    if arch.stem == "deep":
        backbone_fields["deep_stem"] = True
    if arch.avg_down:
        backbone_fields["avg_down"] = True
    return {
        "backbone": backbone_fields,
        "data_preprocessor": {"mean": pixel_scale(spec.mean), "std": pixel_scale(spec.std), "bgr_to_rgb": True},
        "prefix": PREFIX,
    }


def check_engine_state(backbone: Backbone, state: Mapping[str, Tensor]) -> None:
    """Check that an mmdet model (a ResNet or a detector with one) has exactly the exported tensors.

    Raises:
        ExportError: names the first tensors that are missing, differ, or were not exported.
    """
    check_state(bare(backbone), state, PLACES)


def trunk_sha256(backbone: Backbone, state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of a detector's frozen trunk. Raises ExportError: it is not the exported one any more."""
    return trunk_digest(bare(backbone), state, PLACES)
