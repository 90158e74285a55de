"""Training checkpoints of all engines: written atomically, the last two kept, the newest resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from backbench import distributed
from backbench.config import Config
from backbench.data.splits import Split
from backbench.errors import BackbenchError, CheckpointError
from backbench.files.atomic import atomic_save
from backbench.printable import printable
from backbench.progress import say
from model_zoo.backbone import Backbone
from model_zoo.reading import load_torch
from transfer.detection.job import Job
from transfer.detection.training.draws import PART

FINAL = "model_final.pth"
_KEPT = 2


def under_way(folder: Path) -> list[Path]:
    """Return the checkpoints of an unfinished training, newest first."""
    return sorted((file for file in folder.glob("model_[0-9]*.pth") if file.is_file()), reverse=True)


def is_due(iteration: int, iterations: int, every: int, *, more: bool) -> bool:
    """True if a checkpoint follows `iteration`. After the last one, only if `more` work precedes the final checkpoint."""
    return more if iteration + 1 == iterations else (iteration + 1) % every == 0


def name(iteration: int) -> str:
    """Return the file name of the checkpoint after `iteration`, counted from 0."""
    return f"model_{iteration:07d}.pth"


def identity(spec: Config, backbone: Backbone, train: Split, job: Job) -> dict[str, Any]:
    """Fields that must match before a checkpoint can be resumed."""
    return {
        "spec": spec.model_dump(mode="json"),
        "weights_sha256": backbone.weights_sha256,
        "arch": backbone.arch.model_dump(mode="json"),
        "input": backbone.input.model_dump(mode="json"),
        "manifest_sha256": train.manifest_sha256(),
        "seed": job.seed,
        "accumulate": job.accumulate,
        "frozen": job.frozen,
    }


def save(file: Path, iteration: int, identity: dict[str, Any], course: dict[str, Any]) -> Path:
    """Write the state after `iteration`, each part of the course under its name. Every rank must call it.

    Raises:
        BackbenchError: a weight is not finite, or the file cannot be written. Existing checkpoints stay.
    """
    state = {name: part.state_dict() for name, part in course.items()}
    if distributed.is_main():
        _refuse_not_finite(file, iteration, course)
        atomic_save(file, {**state, "iteration": iteration, "identity": identity})
        for old in under_way(file.parent)[_KEPT - (file.name == FINAL) :]:
            old.unlink()
    return file


def _refuse_not_finite(file: Path, iteration: int, course: dict[str, Any]) -> None:
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


def resume(folder: Path, identity: dict[str, Any], course: dict[str, Any]) -> tuple[int, bool]:
    """Load the newest readable checkpoint into the course. Return the iterations done (0 without one) and True if finished.

    After the last iteration PreciseBN may still have to run. An incomplete file of a killed run is removed.

    Raises:
        BackbenchError: none of the checkpoints can be read, or they are of another run.
    """
    if distributed.is_main():
        for unfinished in folder.glob(".*.tmp"):
            unfinished.unlink(missing_ok=True)
    files = [file for file in (folder / FINAL, *under_way(folder)) if file.is_file()]
    for file in files:
        try:
            state = _read(file, course)
            stored = {"accumulate": 1, "frozen": False} | state["identity"]  # older checkpoints lack these fields
            other = [name for name, value in identity.items() if stored.get(name) != value]
            if other:
                raise BackbenchError(f"{file} is of a run with another {other[0]}; give another folder or remove it")
            _put_in(state, course, file)
        except CheckpointError as error:
            say(f"{error}; trying the previous checkpoint")
            continue
        say(f"resuming after {state['iteration'] + 1} iterations: {file}")
        return int(state["iteration"]) + 1, file.name == FINAL
    if files:
        raise BackbenchError(f"{folder}: none of its {len(files)} checkpoints can be read; remove them to start again")
    return 0, False


def _read(file: Path, course: dict[str, Any]) -> dict[str, Any]:
    """Read a checkpoint with every part of the course; older ones may lack `draws.PART`.

    Raises:
        CheckpointError: the file is damaged.
        BackbenchError: another tool wrote it.
    """
    state = load_torch(file)  # compares the checksums that torch.save wrote
    if not isinstance(state, dict) or not isinstance(state.get("identity"), dict):
        raise BackbenchError(f"{file} was written by other tools; give another folder or move it away")
    lacking = [name for name in course if name not in state and name != PART]
    if lacking or type(state.get("iteration")) is not int:
        raise CheckpointError(f"{file}: has no '{[*lacking, 'iteration'][0]}'")
    return state


def _put_in(state: dict[str, Any], course: dict[str, Any], file: Path) -> None:
    """Load every part. Raises CheckpointError if one does not fit; then none of the parts may be trained further."""
    try:
        for name, part in course.items():
            if name in state:
                part.load_state_dict(state[name])
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise CheckpointError(f"{file}: does not fit the network ({printable(error)})") from None
