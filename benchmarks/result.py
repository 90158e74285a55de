"""Records as files: one JSON per (backbone, cell, seed); where each lies, writing, finding, reading."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from benchmarks.record import (
    SCHEMA,
    BackboneRecord,
    DataRecord,
    MetricRecord,
    Provenance,
    Result,
    TaskRecord,
)
from core.artifacts import atomic_write, atomic_write_text
from core.config import digest
from core.errors import BackbenchError
from core.progress import say

__all__ = ["SCHEMA", "BackboneRecord", "DataRecord", "MetricRecord", "Provenance", "Result", "TaskRecord"]


def marks(*, is_demo: bool, profile: str) -> str:
    """What follows a number that is no result, wherever it is shown."""
    return (" DEMO" if is_demo else "") + (" REHEARSAL" if profile == "smoke" else "")


def folder(out: Path, backbone_name: str, weights_sha256: str, cell: str, config_sha256: str) -> Path:
    """`<out>/<backbone>-<weights8>/<cell>-<config8>`."""
    safe = "".join(c if c.isalnum() or c in "._-" else "-" for c in backbone_name)
    return Path(out) / f"{safe}-{weights_sha256[:8]}" / f"{cell}-{config_sha256[:8]}"


def record_path(out: Path, result: Result) -> Path:
    """Where a record lies or will lie: `seed<k>.json` in its folder.

    Where a number of other data, or of the same weights otherwise built or fed, has that place: `seed<k>-<digest8>.json`.
    """
    backbone, task = result.backbone, result.task
    place = folder(out, backbone.name, backbone.weights_sha256, result.cell, task.config_sha256)
    first = place / f"seed{result.seed}.json"
    manifest = result.data.manifest_sha256 if result.data else None
    own = place / f"seed{result.seed}-{digest([manifest, backbone.arch, backbone.input])[:8]}.json"
    there = _number(first)
    if there is None:
        return own if own.exists() else first
    return first if _alike(result, there) else own


def write(out: Path, result: Result, items: Mapping[str, np.ndarray] | None = None) -> Path:
    """Write a record atomically to its place; returns the path.

    A number is never replaced by the lack of one: that goes beside it (`seed0.failed.json`) until there is a new number.

    Args:
        items: arrays with a row a test item (scores, top five classes), for comparisons of two backbones on the same
            items; beside the record, compressed (`seed0.items.npz`).
    """
    path = record_path(out, result)
    beside = result.status != "ok" and _number(path) is not None
    path = path.with_suffix(f".{result.status}.json") if beside else path
    if items:
        atomic_write(items_path(path), lambda file: np.savez_compressed(file, **items))
    atomic_write_text(path, json.dumps(result.model_dump(mode="json", by_alias=True), indent=1) + "\n")
    if not beside:  # only now, so that a full disk or a kill before it loses nothing
        kept = {path, items_path(path)} if items else {path}
        for stale in set(path.parent.glob(f"{path.stem}.*")) - kept:
            stale.unlink()
    if result.status == "ok":
        clear_absent(path, result)
    return path


def clear_absent(path: Path, result: Result) -> None:
    """Remove the records beside a number that say it is lacking: of its seed, and of its data where they name any."""
    for beside in path.parent.glob(f"seed{result.seed}[.-]*json"):
        try:
            other = read(beside)
        except BackbenchError:
            continue
        if beside != path and other.status != "ok" and _alike(result, other):
            beside.unlink()


def of_seed(out: Path, planned: Result) -> set[Path]:
    """The files of all records of a planned record's seed, numbers or not, on whatever data."""
    backbone, task = planned.backbone, planned.task
    place = folder(out, backbone.name, backbone.weights_sha256, planned.cell, task.config_sha256)
    return set(place.glob(f"seed{planned.seed}[.-]*json"))


def written(out: Path) -> dict[Path, int]:
    """When each record was written, to find later which are new."""
    return {path: path.stat().st_mtime_ns for path in Path(out).glob("*/*/seed*.json")}


def is_measured(out: Path, planned: Result) -> bool:
    """Whether a number of a planned record is there, on whatever data."""
    found = (_number(path) for path in of_seed(out, planned))
    return any(r.model_copy(update={"data": planned.data}).identity() == planned.identity() for r in found if r)


def run_folder(out: Path, result: Result) -> Path:
    """Where a run leaves what is more than numbers (checkpoints, pictures); what would be another number never finds it."""
    backbone, task = result.backbone, result.task
    place = folder(out, backbone.name, backbone.weights_sha256, result.cell, task.config_sha256)
    return place / f"seed{result.seed}-{result.identity()[:8]}"


def items_path(record: Path) -> Path:
    """Where a record's arrays per test item lie."""
    return record.with_suffix(".items.npz")


def read(path: Path) -> Result:
    """A record of any schema version.

    Raises:
        BackbenchError: not JSON, not a record, or of a newer version than this program knows.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BackbenchError(f"{path}: not a readable result file ({error})") from None
    version = values.get("schema") if isinstance(values, dict) else None
    if not isinstance(version, int):
        raise BackbenchError(f"{path}: not a result file (no 'schema')")
    if version > SCHEMA:
        raise BackbenchError(f"{path}: schema {version} is newer than this program's {SCHEMA}: update backbench")
    try:
        return Result.model_validate(values)
    except ValidationError as error:
        raise BackbenchError(f"{path}: does not fit schema {version}: {error.errors()[0]['loc']}") from None


def read_all(out: Path) -> Iterator[Result]:
    """Every record below a folder, in path order; one that cannot be read is named and left out."""
    for path in sorted(Path(out).glob("*/*/seed*.json")):
        try:
            yield read(path)
        except BackbenchError as error:
            say(f"left out: {error}")


def read_paths(paths: Sequence[Path]) -> dict[Path, Result]:
    """The records of files, and of all that lies below folders, by their paths; a measurement that is there twice once.

    Raises:
        BackbenchError: a path that is not there or holds no record, or a file that is none.
    """
    found: dict[Path, Result] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise BackbenchError(f"{path}: no such result file or folder")
        files = sorted(p for p in path.rglob("seed*.json") if p.is_file()) if path.is_dir() else [path]
        if not files:
            raise BackbenchError(f"{path}: no result files below it; give what run_all wrote with --out")
        for file in files:
            try:
                found[file.resolve()] = read(file)
            except BackbenchError as error:
                if not path.is_dir():
                    raise
                say(f"left out: {error}")
    kept: dict[tuple[str, str], Path] = {}
    for path, result in list(found.items()):
        key = (result.backbone.name, result.identity())  # of two names each has its row
        if result.status == "ok" and kept.setdefault(key, path) != path:
            say(f"counted once: {path} is the measurement of {kept[key]}")
            del found[path]
    return found


def _number(path: Path) -> Result | None:
    """The record at a path, if there is one that holds a number."""
    try:
        found = read(path) if path.exists() else None
    except BackbenchError:
        return None
    return found if found and found.status == "ok" else None


def _alike(result: Result, other: Result) -> bool:
    """Whether two records of one folder are of the same data, architecture and input; no data known: of any."""
    manifests = {r.data.manifest_sha256 for r in (result, other) if r.data}
    built = [(r.backbone.arch, r.backbone.input) for r in (result, other)]
    return len(manifests) < 2 and built[0] == built[1]
