"""A folder given as a checkpoint: suggest the file in it, or the command that joins its parts."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from backbench.errors import CheckpointError

_CHECKPOINTS = (".pth", ".pt", ".tar", ".ckpt", ".th", ".torch", ".pkl", ".bin", ".safetensors", ".npz", ".zip")
# Files that trainers write beside the weights: optimizer.bin, scheduler.pt, random_states_0.pkl, training_args.bin,
# zero_pp_rank_0_mp_rank_00_optim_states.pt.
_NO_WEIGHTS = re.compile(r"(?i)optim|sched|rng_state|random_states|training_args|trainer_state|scaler")
_MOST_FILES = 10_000
_MOST_FOLDERS = 100  # subfolders to inspect
_SHOWN = 5


def refuse_a_part(path: Path) -> None:
    """Raise CheckpointError for the data.pkl of an unpacked checkpoint, which has the names without the numbers."""
    if path.name == "data.pkl" and (found := _in_parts(path.parent, _names(path.parent)[0])):
        raise CheckpointError(f"is in a folder that {found}")


def what_it_is(folder: Path) -> str:
    """Return `is a folder; give the checkpoint file in it: a/model.pth or a/last.ckpt`, or advice on its parts."""
    files, folders = _names(folder)
    if found := _in_parts(folder, files):
        return found
    names = _checkpoints(files)
    if "model.pth" in names:  # a folder of our pretraining
        names = ["model.pth"]
    paths = [folder / name for name in names] or list(_below(folder, folders))
    if not paths:
        return "is a folder without a checkpoint; give the checkpoint file itself"
    more = f" or {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    return f"is a folder; give the checkpoint file in it: {' or '.join(map(str, paths[:_SHOWN]))}{more}"


def _names(folder: Path) -> tuple[list[str], list[str]]:
    """Return the files and folders in a folder, sorted."""
    files: list[str] = []
    folders: list[str] = []
    with os.scandir(folder) as entries:
        for entry in islice(entries, _MOST_FILES):
            try:
                (folders if entry.is_dir() else files if entry.is_file() else []).append(entry.name)
            except OSError:  # links in a circle
                continue
    return sorted(files), sorted(folders)


def _in_parts(folder: Path, files: list[str]) -> str | None:
    """Return the sentence for a folder with the parts of one checkpoint, or None."""
    if ".metadata" in files and any(name.endswith(".distcp") for name in files):
        command = (
            f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {shlex.quote(str(folder))} weights.pth"
        )
        return (
            f"is a checkpoint in parts (torch.distributed.checkpoint): join them with `{command}` and give weights.pth"
        )
    if "data.pkl" in files and {"version", "byteorder"} & set(files):
        where, name = shlex.quote(str(folder.parent)), folder.name
        packed = shlex.quote(f"{name}.pth")
        return (
            "is an unpacked checkpoint (browsers unpack them): pack it again, "
            f"`cd {where} && zip -0 -r {packed} {shlex.quote(name)}`, and give {folder}.pth"
        )
    return None


def _checkpoints(files: list[str]) -> list[str]:
    """Return the names that look like checkpoints; optimizers and the like only if there are no others."""
    named = [name for name in files if name.lower().endswith(_CHECKPOINTS) and not name.startswith(".")]
    return [name for name in named if not _NO_WEIGHTS.search(name)] or named


def _below(folder: Path, folders: list[str]) -> Iterator[Path]:
    """Yield checkpoints in subfolders: `version_0/last.ckpt`, `global_step100/mp_rank_00_model_states.pt`."""
    for name in folders[:_MOST_FOLDERS]:
        try:
            files, _ = _names(folder / name)
        except OSError:  # not readable
            continue
        if _in_parts(folder / name, files):
            yield folder / name
        else:
            yield from (folder / name / file for file in _checkpoints(files))
