"""Checkpoints of a training course, for both engines: written whole or not at all, the last two kept, the newest taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from core import distributed
from core.artifacts import atomic_save, load_torch
from core.errors import BackbenchError, CheckpointError
from core.progress import say
from model_zoo.backbone import Backbone
from transfer.detection.data import DetectionSplit
from transfer.detection.spec import DetectionSpec

FINAL = "model_final.pth"
_KEPT = 2


def under_way(folder: Path) -> list[Path]:
    """Checkpoints of a course that is not finished, the newest first."""
    return sorted(folder.glob("model_[0-9]*.pth"), reverse=True)


def is_due(iteration: int, iterations: int, every: int, *, more: bool) -> bool:
    """Whether to save after `iteration`: after the last only where `more` follows before the final checkpoint."""
    return more if iteration + 1 == iterations else (iteration + 1) % every == 0


def name(iteration: int) -> str:
    """The file of what was reached after `iteration`, counted from 0."""
    return f"model_{iteration:07d}.pth"


def identity(spec: DetectionSpec, backbone: Backbone, train: DetectionSplit, seed: int) -> dict[str, Any]:
    """What a checkpoint must agree with to be gone on from."""
    return {
        "spec": spec.model_dump(mode="json"),
        "weights_sha256": backbone.weights_sha256,
        "arch": backbone.arch.model_dump(mode="json"),
        "input": backbone.input.model_dump(mode="json"),
        "manifest_sha256": train.manifest_sha256(),
        "seed": seed,
    }


def save(file: Path, iteration: int, identity: dict[str, Any], course: dict[str, Any]) -> Path:
    """Write what was reached after `iteration`: the state of each part of the course under its name.

    Raises:
        BackbenchError: a weight is not finite; what is there stays.
    """
    if distributed.is_main():
        broken = [
            name
            for part in course.values()
            if isinstance(part, nn.Module)
            for name, tensor in part.state_dict().items()
            if not torch.isfinite(tensor).all()
        ]
        if broken:
            last = next(iter(under_way(file.parent)), "not there yet")
            rate = max(group["lr"] for group in course["optimizer"].param_groups)
            raise BackbenchError(
                f"weights are not finite after iteration {iteration}, rate {rate:g}: {broken[0]} and "
                f"{len(broken) - 1} more; the last good checkpoint is {last}"
            )
        state = {name: part.state_dict() for name, part in course.items()}
        atomic_save(file, {**state, "iteration": iteration, "identity": identity})
        for old in under_way(file.parent)[_KEPT - (file.name == FINAL) :]:
            old.unlink()
    return file


def resume(folder: Path, identity: dict[str, Any], course: dict[str, Any]) -> tuple[int, bool]:
    """Put the newest readable checkpoint into the course; iterations done, 0 where there is none, and whether all is.

    After the last iteration BatchNorm's statistics may still have to be estimated.

    Raises:
        BackbenchError: none of the checkpoints can be read, or they are of another run.
    """
    files = [file for file in (folder / FINAL, *under_way(folder)) if file.exists()]
    for file in files:
        try:
            state = load_torch(file)
        except CheckpointError as error:
            say(f"{error}; going back to the one before")
            continue
        if "identity" not in state:
            raise BackbenchError(f"{file} was written by other tools; give another folder or move it away")
        other = [name for name, value in identity.items() if state["identity"].get(name) != value]
        if other:
            raise BackbenchError(f"{file} is of a run with another {other[0]}; give another folder or remove it")
        for name, part in course.items():
            part.load_state_dict(state[name])
        say(f"going on after {state['iteration'] + 1} iterations: {file}")
        return int(state["iteration"]) + 1, file.name == FINAL
    if files:
        raise BackbenchError(f"{folder}: none of its {len(files)} checkpoints can be read; remove them to start anew")
    return 0, False
