"""A folder from HuggingFace's hub: `config.json`, the weights in one file or in shards, and the input of the network.

`preprocessor_config.json` is transformers' (`image_mean`, `image_std`, `size`), `pretrained_cfg` in `config.json` timm's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from backbench.errors import CheckpointError
from backbench.printable import printable
from model_zoo import folders, formats, reading
from model_zoo.stated import plain

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # in the order in which transformers looks for them
_LARGEST_JSON = 16 << 20
# timm's `model_args` that do not change the features.
_HARMLESS = {"num_classes", "in_chans", "drop_rate", "drop_path_rate", "global_pool"}


@dataclass(frozen=True)
class Contents:
    """The contents of a checkpoint file or folder, with the description in files beside the weights."""

    content: Any
    arch: Mapping[str, Any] = field(default_factory=dict)
    input: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    said: tuple[str, ...] = ()  # names of the network


def contents(path: Path) -> Contents:
    """Return the contents of a checkpoint file or of a folder from HuggingFace's hub.

    Raises:
        CheckpointError: as `model_zoo.reading.read` and `read`.
    """
    notes: list[str] = []

    def read_file(file: Path) -> Any:
        found = reading.read(file, formats.pickled())
        notes.extend(found.notes)
        return found.value

    if os.path.isdir(path):  # noqa: PTH112 (which raises for long names)
        found = read(path, read_file)
    elif path.name in _WEIGHTS and _describes(path.parent / "config.json"):
        found = _described(path.parent, read_file(path))
    else:
        folders.refuse_a_part(path)
        found = Contents(read_file(path))
    return replace(found, notes=(*found.notes, *notes))


def _describes(config: Path) -> bool:
    """Return whether a `config.json` beside the weights describes a network, as transformers and timm write it."""
    if not config.is_file():
        return False
    values = _json(config)
    return values.get("model_type") in ("resnet", "timm_wrapper") or isinstance(values.get("architecture"), str)


def read(folder: Path, read_file: Callable[[Path], Any]) -> Contents:
    """Return the weights, architecture and input of a snapshot.

    Args:
        read_file: reads one checkpoint file.

    Raises:
        CheckpointError: another kind of folder (the sentence names its checkpoints), or an incomplete snapshot.
    """
    indices = [folder / f"{name}.index.json" for name in _WEIGHTS]
    files = [folder / name for name in _WEIGHTS]
    if not (folder / "config.json").is_file() or not any(path.is_file() for path in (*files, *indices)):
        raise CheckpointError(folders.what_it_is(folder))
    for single, index in zip(files, indices, strict=True):
        if single.is_file() or index.is_file():
            content = read_file(single) if single.is_file() else _sharded(index, read_file)
            break
    return _described(folder, content)


def _described(folder: Path, content: Any) -> Contents:
    """Return the weights, with the description in the files beside them."""
    config = _json(folder / "config.json")
    arch = _architecture(config)
    spec, notes = _input(folder, config)
    word = config.get("architecture")
    return Contents(content, arch, spec, tuple(notes), (word,) if isinstance(word, str) else ())


def _json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise CheckpointError(f"{path.name}: {path.stat().st_size} bytes, too large for a configuration")
        values = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path.name}: not readable as JSON ({printable(error, 100)})") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path.name}: contains a {type(values).__name__}, a mapping is needed")
    return values


def _sharded(index: Path, read_file: Callable[[Path], Any]) -> dict[str, Any]:
    """Return the tensors of all shards, after comparing them with the index."""
    table = _json(index).get("weight_map")
    if not isinstance(table, dict) or not table or not all(isinstance(name, str) for name in table.values()):
        raise CheckpointError(f"{index.name}: has no 'weight_map' from names of tensors to files")
    content: dict[str, Any] = {}
    for name in sorted(set(table.values())):
        path = index.parent / name
        if Path(name).name != name or not path.is_file():
            raise CheckpointError(f"{index.name}: names '{printable(name)}', which is not a file in this folder")
        part = read_file(path)
        wanted = {tensor for tensor, file in table.items() if file == name}
        if not isinstance(part, Mapping) or set(part) != wanted:
            raise CheckpointError(f"{printable(name)}: does not have the tensors listed in {index.name}")
        content.update(part)
    return content


def _architecture(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields from transformers' configuration that the weights do not show.

    Raises:
        CheckpointError: another kind of network, or a ResNet that computes something else from these weights.
    """
    kind, given = config.get("model_type"), config.get("model_args")
    if isinstance(given, dict) and (other := sorted(set(map(str, given)) - _HARMLESS)):
        raise CheckpointError(
            f"config.json says model_args {printable(', '.join(other), 80)}, which may change what the network computes; "
            "`--ckpt module:function` takes any network for the frozen and fine-tuning protocols"
        )
    if kind is None or kind == "timm_wrapper":
        return {}
    if kind != "resnet":
        raise CheckpointError(
            f"config.json says model_type '{printable(kind, 80)}', which is not a ResNet; `--ckpt module:function` takes any "
            "network for the frozen and fine-tuning protocols"
        )
    for key, usual in (("hidden_act", "relu"), ("downsample_in_first_stage", False)):
        if (value := config.get(key, usual)) != usual:
            raise CheckpointError(f"config.json says {key} is {printable(value, 80)}, but ResNets here have {usual}")
    bottleneck = config.get("layer_type", "bottleneck") == "bottleneck"
    return {"stride_in_1x1": True} if bottleneck and config.get("downsample_in_bottleneck") is True else {}


def _input(folder: Path, config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return `mean`, `std` and `size` from the files, and a note if some are missing."""
    path = folder / "preprocessor_config.json"
    if path.is_file():
        values = _json(path)
        spec = _of_transformers(values)
    elif isinstance(published := config.get("pretrained_cfg"), dict):
        spec = _of_timm(published)
    else:
        return {}, ["no preprocessor_config.json: ImageNet's mean and std and 224 px are assumed"]
    if lacking := [key for key in ("mean", "std", "size") if key not in spec]:
        said = f"{path.name if path.is_file() else 'config.json'} does not say {', '.join(lacking)}"
        return plain(spec, "input"), [f"{said}: ImageNet's usual values are assumed"]
    return plain(spec, "input"), []


def _of_transformers(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return mean, std and size from an image processor's settings; pixels must be scaled by 1/255."""
    factor = values.get("rescale_factor", 1 / 255)
    if values.get("do_rescale", True) is not True or not isinstance(factor, float) or abs(factor * 255 - 1) > 1e-3:
        raise CheckpointError("preprocessor_config.json does not scale pixels by 1/255, as every protocol here does")
    spec = {"mean": values.get("image_mean"), "std": values.get("image_std")}
    if values.get("do_normalize", True) is False:
        spec = {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}
    crop = values.get("crop_size") if values.get("do_center_crop") else None
    spec["size"] = _side(crop) or _side(values.get("size"))
    return {key: value for key, value in spec.items() if value is not None}


def _side(size: Any) -> int | None:
    """Return 224 for `224`, `{"height": 224, "width": 224}` or `{"shortest_edge": 224}`."""
    if isinstance(size, dict):
        sides = [size[key] for key in ("height", "width", "shortest_edge") if key in size]
        size = sides[0] if sides and all(side == sides[0] for side in sides) else None
    return size if isinstance(size, int) and not isinstance(size, bool) else None


def _of_timm(values: Mapping[str, Any]) -> dict[str, Any]:
    shape = values.get("input_size")
    spec = {"mean": values.get("mean"), "std": values.get("std")}
    spec["size"] = shape[-1] if isinstance(shape, list) and len(shape) == 3 else None
    return {key: value for key, value in spec.items() if value is not None}
