"""Write checkpoints atomically and resume from them exactly."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from backbench import jsonl
from backbench.config import indifferent_keys
from backbench.data.splits import ImageSplit
from backbench.errors import CheckpointError, ConfigError
from backbench.files.atomic import atomic_save
from backbench.printable import printable
from backbench.progress import say
from model_zoo.reading import load_torch
from pretrain.config import PretrainConfig, recipe
from pretrain.networks import Online, Target
from pretrain.probe import Probe
from pretrain.views import VERSION as VIEWS

_KIND = "backbench-pretrain-1"
_CURE = "restore the file from a copy, or start again in another --out"


class Trained(NamedTuple):
    """Networks of a run, with optimizer and scaler."""

    online: Online
    target: Target | None
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler


def save(
    path: Path,
    trained: Trained,
    probe: Probe,
    *,
    step: int,
    config: PretrainConfig,
    split: ImageSplit,
    corrupt: list[str],
) -> None:
    """Write everything that the next step depends on. `step` is the number of steps done."""
    online, target, optimizer, scaler = trained
    payload = {
        "kind": _KIND,
        "step": step,
        "online": online.state_dict(),
        "target": target.state_dict() if target is not None else {},
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),
        "config": config.model_dump(mode="json"),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "data": data_identity(split),
        "views": VIEWS,
        "corrupt": corrupt,
        "probe": probe.state(),
    }
    atomic_save(path, payload)


def restore(path: Path, trained: Trained, probe: Probe, *, config: PretrainConfig, split: ImageSplit) -> dict[str, Any]:
    """Load a checkpoint into the modules and return it.

    Raises:
        CheckpointError: the file is unreadable, of another kind, or of a run with another configuration or other images
            (the difference is named).
    """
    online, target, optimizer, scaler = trained
    saved = load_torch(path)
    if not isinstance(saved, dict) or saved.get("kind") != _KIND:
        raise CheckpointError(f"{path}: not a checkpoint of a pretraining run; {_CURE}")
    _refuse_odd(saved, path)
    changed = _changes(saved["config"], config)
    if changed:
        raise CheckpointError(
            f"{path}: the run was started with another configuration ({'; '.join(changed)}); "
            "resume with the same one, or start again in another --out"
        )
    if saved.get("views", 1) != VIEWS:
        raise CheckpointError(
            f"{path}: the run was started by a version of backbench that makes other views (version "
            f"{printable(saved.get('views', 1), 20)} then, {VIEWS} now); start again in another --out"
        )
    if saved["data"] != data_identity(split):
        had = saved["data"].get("images", "other")
        raise CheckpointError(f"{path}: the run was started on other images: {had} then, {len(split)} now")
    try:
        online.load_state_dict(saved["online"])
        (target or nn.Module()).load_state_dict(saved["target"])
        optimizer.load_state_dict(saved["optimizer"])
        scaler.load_state_dict(saved["scaler"])
        probe.load(saved.get("probe", {}))  # absent in older checkpoints
    except Exception as error:  # torch raises many types
        raise CheckpointError(f"{path}: does not fit this recipe ({printable(error)}); {_CURE}") from None
    for key, now in (("threads", torch.get_num_threads()), ("torch", str(torch.__version__))):
        if saved[key] != now:
            say(f"resuming with {key} {now}, started with {saved[key]}: results agree, but not bit for bit")
    return saved


def _refuse_odd(saved: dict[str, Any], path: Path) -> None:
    """Raise CheckpointError if a field of a checkpoint has another type than `save` writes."""
    kinds = {"step": int, "online": dict, "target": dict, "optimizer": dict, "scaler": dict, "config": dict}
    kinds |= {"data": dict, "corrupt": list, "threads": int, "torch": str}
    odd = [name for name, kind in kinds.items() if not isinstance(saved.get(name), kind)]
    if odd or saved["step"] < 0:
        raise CheckpointError(f"{path}: damaged, {printable(', '.join(odd or ['step']))} is invalid; {_CURE}")


def data_identity(split: ImageSplit) -> dict[str, Any]:
    """Return the number of images and a hash of their names. Their order depends on both."""
    names = "\n".join(split.source.name(i) for i in range(len(split)))
    return {"images": len(split), "names_sha256": hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()}


def _changes(saved: dict[str, Any], config: PretrainConfig) -> list[str]:
    """Return the fields that differ and must match before a checkpoint can be resumed."""
    with contextlib.suppress(ConfigError):  # fields that an older version did not have are at their defaults
        saved = recipe(saved).model_dump(mode="json")
    free = {*indifferent_keys(type(config)), "run.threads"}  # `restore` announces another number of threads
    return _differences(saved, config.model_dump(mode="json"), free)


def _differences(old: dict[str, Any], new: dict[str, Any], free: set[str], prefix: str = "") -> list[str]:
    changed = []
    for key in sorted(old.keys() | new.keys()):
        name, before, after = f"{prefix}{key}", old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            changed += _differences(before, after, free, f"{name}.")
        elif before != after and name not in free:
            changed.append(f"{name}: {before} then, {after} now")
    return changed


def cut_metrics(path: Path, step: int) -> None:
    """Drop the lines of steps after the checkpoint, and an incomplete last line of a killed run."""
    if foreign := jsonl.cut(path, "step", step):
        say(f"{path}: dropped {foreign} lines that are not records of steps")
