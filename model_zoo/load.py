"""`load(path or name) -> Backbone`: exactly one layout matches, all tensors are present and sound, none is left over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backbench.config import build as build_config
from backbench.errors import CheckpointError, ConfigError, nearest
from backbench.printable import printable, some
from model_zoo import entries, external, fetch, named_file, said, snapshot, soundness
from model_zoo.anatomy import expected_shapes
from model_zoo.architecture import Architecture, InputSpec, family, named
from model_zoo.backbone import Backbone
from model_zoo.choice import NO_CHOICE, Choice
from model_zoo.entries import Entry
from model_zoo.fetch.url_file import is_url
from model_zoo.formats import Extracted
from model_zoo.infer import infer_architecture
from model_zoo.recognise import recognise
from model_zoo.resnet import LAYERS, build
from model_zoo.said import refuse_another_function
from model_zoo.snapshot import Contents
from model_zoo.stated import plain, refuse_contradiction, sidecar

_LONGEST = 2000  # characters of an error
UNKNOWABLE = (
    "weights do not show channel order, stride placement and padding; RGB and torchvision's conventions assumed"
)
_SUFFIXES = {".pth", ".pt", ".tar", ".ckpt", ".th", ".torch", ".pkl", ".bin", ".safetensors", ".zip", ".npy", ".npz"}
_GENERIC = {"model", "checkpoint", "last", "latest", "final", "backbone", "ckpt", "best", "weights"}


def load(
    source: str | Path,
    *,
    name: str | None = None,
    seed: int = 0,
    like: Backbone | None = None,
    choice: Choice = NO_CHOICE,
) -> Backbone:
    """Read a backbone from a checkpoint file or the zoo, or initialise `random:<architecture>` with a seed.

    Args:
        source: a path, an importable `module:function`, `random:resnet50`, or, downloaded on first use, an `https://`
            address, `zoo:NAME`, or timm's `timm:NAME` and `hf-hub:OWNER/NAME`.
        name: its name in tables; default: from the path.
        seed: for a random backbone.
        like: a random backbone takes the architecture and input of this one.
        choice: the network to read in a checkpoint file (`--key`, `--prefix`), or its architecture (`--arch`).

    Raises:
        CheckpointError: one sentence on what was found and what is wrong with it.
    """
    try:
        return _load(source, name, seed, like, choice)
    except CheckpointError as error:  # it may quote names from the file
        raise CheckpointError(printable(error, _LONGEST)) from None


def _load(source: str | Path, name: str | None, seed: int, like: Backbone | None, choice: Choice) -> Backbone:
    if choice != NO_CHOICE and not is_file(source):
        raise CheckpointError(f"{source}: --key, --prefix and --arch apply to checkpoint files only; leave them out")
    if str(source).startswith("random:"):
        return _random(str(source), name, seed, like)
    if str(source).startswith("zoo:"):
        return _from_zoo(str(source), name)
    if str(source).startswith(("timm:", "hf-hub:")):
        return _from_timm(str(source), name)
    if is_url(str(source)):
        return _from_url(str(source), name, choice)
    if external.is_function(str(source)):
        return external.of_function(str(source), name)
    path = Path(source)
    try:
        return _from_file(path, name, choice=choice)
    except CheckpointError as error:
        text, shown = str(error), printable(path, 300)
        raise CheckpointError(text if text.startswith(shown) else f"{shown}: {text}") from None


def is_file(source: str | Path) -> bool:
    """Return whether a source is a checkpoint file or folder, not a zoo entry, function or random network."""
    return not str(source).startswith(("random:", "zoo:", "timm:", "hf-hub:")) and not external.is_function(str(source))


def default_name(path: Path) -> str:
    """Return the file's stem, or its folder's name if the stem is generic (`runs/photos/model.pth` -> `photos`).

    HuggingFace's cache names a folder `models--microsoft--resnet-50/snapshots/<commit>`: `resnet-50`.
    """
    if path.parent.name == "snapshots" and path.parent.parent.name.startswith("models--"):
        return path.parent.parent.name.rpartition("--")[2]
    stem = path.name
    while Path(stem).suffix.lower() in _SUFFIXES:
        stem = Path(stem).stem
    return path.resolve().parent.name if stem.lower() in _GENERIC else stem


def _random(source: str, name: str | None, seed: int, like: Backbone | None) -> Backbone:
    wanted = source.removeprefix("random:")
    usual = named(wanted)
    if usual is None:
        raise CheckpointError(f"{printable(source, 80)}: unknown architecture{nearest(wanted[:80], LAYERS)}")
    if like is not None and not like.is_resnet:
        raise CheckpointError(f"{source}: cannot be like {like.name}, which is not a ResNet")
    arch = like.arch if like is not None and like.arch.name == wanted else usual
    spec = like.input if like is not None else InputSpec()
    state = build(arch, seed).state_dict()
    return Backbone(name or source, arch, state, spec, source, "random", (f"initialised with seed {seed}",))


def _from_zoo(source: str, name: str | None) -> Backbone:
    """Load the entry's file, with the entry's architecture and input."""
    entry = entries.get(source.removeprefix("zoo:"))
    path = fetch.fetch(entry)
    try:
        backbone = _from_file(path, name or entry.name, entry)
    except CheckpointError as error:
        raise CheckpointError(f"{source} ({path}): {error}") from None
    if entry.format and backbone.format != entry.format:
        layout = f"its layout is '{backbone.format}', the source describes '{entry.format}'"
        return replace(backbone, source=source, notes=(*backbone.notes, layout))
    return replace(backbone, source=source)


def _from_url(source: str, name: str | None, choice: Choice) -> Backbone:
    """Load a file at an address, recognised from its tensors."""
    path, stem = fetch.fetch_url(source)
    try:
        backbone = _from_file(path, name or _derived_name(Path(stem), choice), choice=choice)
    except CheckpointError as error:
        raise CheckpointError(f"{source} ({path}): {error}") from None
    return replace(backbone, source=source)


def _from_timm(source: str, name: str | None) -> Backbone:
    """Load a timm model with its weights and input: as our ResNet if it is one, else as timm's own network."""
    model, spec, default = external.timm_model(source)
    try:
        recognised = recognise(model.state_dict())
        layout, found = recognised.layout, recognised.found
        arch = build_config(Architecture, infer_architecture(found.state, {}, found.leftover), where="arch")
        backbone = Backbone(name or default, arch, check(found, arch), spec, source, layout)
    except (CheckpointError, ConfigError):
        return external.of_timm(source, model, spec, name or default)
    x = external.probe(spec)
    with torch.no_grad():  # the function may differ in spite of equal names and shapes: anti-aliasing has no tensors
        alike = torch.allclose(backbone.build().eval()(x), model.eval()(x), rtol=1e-3, atol=1e-5)
    return backbone if alike else external.of_timm(source, model, spec, name or default)


def _from_file(path: Path, name: str | None, entry: Entry | None = None, choice: Choice = NO_CHOICE) -> Backbone:
    read = snapshot.contents(path)
    try:
        return _from_contents(path, read, name, entry, choice)
    except CheckpointError as error:  # an unread object may be the missing part
        raise CheckpointError("; ".join((str(error), *read.notes))) from None


def _from_contents(path: Path, read: Contents, name: str | None, entry: Entry | None, choice: Choice) -> Backbone:
    obj = read.content
    if choice == NO_CHOICE:
        _refuse_resume_state(path, obj)
    if choice.arch is not None:
        found_name = name or _derived_name(path, choice)
        return named_file.of_file(path, read, choice, found_name)
    recognised = recognise(obj, choice)
    layout, found = recognised.layout, recognised.found
    _refuse_shards(found.state)
    side = sidecar(path) if entry is None else _of_entry(entry, found)
    own_arch, own_input = {**read.arch, **plain(found.arch, "arch")}, {**read.input, **plain(found.input, "input")}
    stated = {**own_arch, **side.get("arch", {})}
    try:
        inferred = infer_architecture(found.state, stated, found.leftover)
        arch = build_config(Architecture, {**inferred, **stated}, where="arch")
        spec = build_config(InputSpec, {**own_input, **side.get("input", {})}, where="input")
        if layout == "backbench" and entry is None:
            own = build_config(Architecture, {**inferred, **own_arch}, where="arch")
            refuse_contradiction(path, "arch", own, arch)
            refuse_contradiction(path, "input", build_config(InputSpec, own_input, where="input"), spec)
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    state = check(found, arch, recognised.advice)
    if layout != "backbench":
        refuse_another_function([*said.words(obj), *read.said], arch, state)
    notes = [*read.notes, *recognised.notes, *dead_channels(state)]
    if found.dropped:
        notes.append(f"dropped {len(found.dropped)} tensors by the layout's list: {some(found.dropped, counted=False)}")
    if layout != "backbench" and not side and not read.input:
        notes.append(UNKNOWABLE)
    notes += entry.notes if entry else ()
    shown = tuple(note if note == UNKNOWABLE else printable(note, _LONGEST) for note in notes)
    return Backbone(name or _derived_name(path, choice), arch, state, spec, str(path), layout, shown)


def _derived_name(path: Path, choice: Choice) -> str:
    """Return a name from the path and from the choice of one network."""
    said = [printable(part) for part in (choice.key, choice.prefix) if part]
    return printable(default_name(path)) + (f"[{' '.join(said)}]" if said else "")


def _refuse_resume_state(path: Path, obj: Any) -> None:
    """Raise CheckpointError for our pretraining's resume state: it has two networks, `model.pth` the right one."""
    kind = obj.get("kind") if isinstance(obj, Mapping) else None
    if isinstance(kind, str) and kind.startswith("backbench-pretrain-"):
        model = path.parent / "model.pth"
        there = "" if model.exists() else ", which is written when the run ends"
        raise CheckpointError(f"is the resume state of a pretraining run; give {model}{there}")


def dead_channels(state: Mapping[str, Tensor]) -> list[str]:
    """Return a note on running variances of 0. BatchNorm accepts them (it adds eps), but no image moved such a channel."""
    found = {n: int((t == 0).sum()) for n, t in state.items() if n.endswith("running_var") and bool((t == 0).any())}
    if not found:
        return []
    why = "dead channels, or a copy in half precision"
    return [f"{sum(found.values())} running variances are 0 ({why}): {some(list(found), counted=False)}"]


def check(found: Extracted, arch: Architecture, advice: str = "") -> dict[str, Tensor]:
    """Return the state in float32, after checking names, shapes, finite values and variances, and for leftovers.

    Args:
        advice: text after the names of leftover tensors.

    Raises:
        CheckpointError: names the first wrong tensors.
    """
    expected, known = expected_shapes(arch), family(arch)
    counters = {name for name in expected if name.endswith("num_batches_tracked")}
    missing = [name for name in expected if name not in found.state and name not in counters]
    if missing:
        whole, named = len(expected) - len(counters), some(missing, counted=False)
        raise CheckpointError(f"{len(missing)} of {whole} tensors missing: {named}")
    surplus = [name for name in found.state if name not in expected] + list(found.leftover)
    if surplus:
        named = some(surplus, counted=False)
        raise CheckpointError(f"{len(surplus)} tensors left over that {known} does not have: {named}{advice}")
    return {
        name: soundness.counter(name, found.state.get(name, torch.zeros(())))
        if name in counters
        else soundness.weight(name, found.state[name], shape, known)
        for name, shape in expected.items()
    }


def _refuse_shards(state: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError for names without values: ZeRO-3 and FSDP store them in the files of the ranks."""
    empty = [name for name, tensor in state.items() if isinstance(tensor, Tensor) and not tensor.numel()]
    if len(empty) > len(state) // 2:
        raise CheckpointError(
            f"{len(empty)} of {len(state)} tensors are empty: {some(empty, counted=False)}; "
            "their values are in other files (ZeRO-3, FSDP): "
            "gather them first, with DeepSpeed by `python zero_to_fp32.py . weights.pth` in the checkpoint's folder"
        )


def _of_entry(entry: Entry, found: Extracted) -> dict[str, dict[str, Any]]:
    """Return an entry's `arch` and `input`; the layout may state only fields that the entry leaves at the defaults."""
    parts = {"arch": (entry.arch, found.arch), "input": (entry.input, found.input)}
    return {
        part: {key: value for key, value in config if key in config.model_fields_set or key not in stated}
        for part, (config, stated) in parts.items()
    }
