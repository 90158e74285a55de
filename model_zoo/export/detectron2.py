"""Detectron2 0.6: its ResNet's names without prefix, in a pickle of numpy arrays, as its own converters write them.

With `matching_heuristics`, Detectron2 matches the names' ends wherever a detector has its backbone (`backbone.`,
`backbone.bottom_up.`, `roi_heads.res5`). Without it, a detector ignores bare names with a warning and trains from random
weights (detectron2/checkpoint/detection_checkpoint.py, tools/convert-torchvision-to-d2.py).
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backbench.files.atomic import atomic_write
from model_zoo.anatomy import NORM_TENSORS, Unit, expansion, inner_planes, planes, stem_planes, units
from model_zoo.architecture import BASIC, DEEP
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

_PLACES = Places(
    engine="Detectron2",
    prefixes=("", "backbone.", "backbone.bottom_up."),  # the ResNet itself, C4 and DC5, FPN
    stems=("stem.conv1.weight",),
    last_stage="res5.",
    c4_head="roi_heads.",
    own=re.compile(r"stem\.|res[2-5]\.\d+\."),  # roi_heads.res5.norm is MoCo's extra norm, not a part of the backbone
)


def key_table(arch: Architecture) -> dict[str, str]:
    """Return our name -> Detectron2's, for every tensor; deep stems have the names of its DeepLab project."""
    table = {}
    for unit in units(arch):
        target = _target(unit)
        table[f"{unit.conv}.weight"] = f"{target}.weight"
        table |= {f"{unit.norm}.{tensor}": f"{target}.norm.{tensor}" for tensor in NORM_TENSORS}
    return table


def _target(unit: Unit) -> str:
    if unit.stage == 0:
        return f"stem.conv{unit.index}"
    return f"res{unit.stage + 1}.{unit.block}." + (f"conv{unit.index}" if unit.index else "shortcut")


def refuse(backbone: Backbone) -> None:
    """Raise ExportError for a backbone that `build_resnet_backbone` cannot build (detectron2/modeling/backbone/resnet.py).

    Raises:
        ExportError: a stem, max-pool or width for which it has no field.
    """
    arch = backbone.arch
    refuse_trunk(arch, "Detectron2")
    elsewhere = (
        "" if arch.stem == "deep-tiered" or (arch.groups == 1 and arch.base_width != 64) else "; mmdet can build it"
    )
    if arch.stem in DEEP:
        raise ExportError(
            f"Detectron2's ResNet starts with one 7x7 convolution, this backbone with three of 3x3 (stem '{arch.stem}')"
            + elsewhere
        )
    if arch.avg_down:
        raise ExportError(
            "Detectron2's ResNet has a stride in its shortcuts' convolutions, this backbone an average before them "
            "(avg_down)" + elsewhere
        )
    if arch.name in BASIC and (arch.width, arch.stem_width) != (1, 1):
        raise ExportError(
            f"Detectron2 builds ResNet-18 and 34 at width 1 only (RES2_OUT_CHANNELS must be 64), this backbone has "
            f"width {arch.width:g}, stem_width {arch.stem_width:g}{elsewhere}"
        )


def export(backbone: Backbone) -> dict[str, Any]:
    """Return the file's contents: {"model": {name: float32 array}, "__author__", "matching_heuristics"}."""
    return {
        "model": {name: tensor.numpy() for name, tensor in _tensors(backbone).items()},
        "__author__": "backbench",
        "matching_heuristics": True,
    }


def _tensors(backbone: Backbone) -> dict[str, Tensor]:
    """Return the exported tensors, without num_batches_tracked: Detectron2's norms do not need it, FrozenBN has none."""
    refuse(backbone)
    state = in_rgb(backbone).state
    table = key_table(backbone.arch)
    return {table[name]: state[name] for name in state if not name.endswith("num_batches_tracked")}


def write(backbone: Backbone, path: Path) -> None:
    """Write the pickle and two files beside it: FILE.yaml for backbench, FILE.settings.yaml for Detectron2.

    Raises:
        ExportError: Detectron2 cannot build the backbone, or would not read the file as a pickle.
    """
    if path.suffix != ".pkl":
        raise ExportError(f"{path}: Detectron2 reads a pickle only from a file named .pkl; name it {path.stem}.pkl")
    payload = export(backbone)
    write_sidecars(backbone, path, settings(backbone))
    atomic_write(path, lambda file: pickle.dump(payload, file, protocol=4))


def settings(backbone: Backbone) -> dict[str, Any]:
    """Return the configuration that the weights imply, for `cfg.merge_from_other_cfg(CfgNode(...))` or `merge_from_file`."""
    refuse(backbone)
    arch, spec = backbone.arch, in_rgb(backbone).input
    return {
        "INPUT": {"FORMAT": "RGB"},
        "MODEL": {
            "PIXEL_MEAN": pixel_scale(spec.mean),
            "PIXEL_STD": pixel_scale(spec.std),
            "RESNETS": {
                "DEPTH": int(arch.name.removeprefix("resnet")),
                "STEM_OUT_CHANNELS": stem_planes(arch)[-1],
                "RES2_OUT_CHANNELS": planes(arch)[0] * expansion(arch),
                "NUM_GROUPS": arch.groups,
                "WIDTH_PER_GROUP": inner_planes(arch)[0] // arch.groups,
                "STRIDE_IN_1X1": arch.stride_in_1x1 and arch.name not in BASIC,
            },
        },
    }


def check_engine_state(backbone: Backbone, state: Mapping[str, Tensor]) -> None:
    """Check that a Detectron2 model (a ResNet or a detector with one) has exactly the exported tensors.

    Raises:
        ExportError: names the first tensors that are missing, differ, or were not exported.
    """
    check_state(_tensors(backbone), state, _PLACES)


def trunk_sha256(backbone: Backbone, state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of a detector's frozen trunk. Raises ExportError: it is not the exported one any more."""
    return trunk_digest(_tensors(backbone), state, _PLACES)
