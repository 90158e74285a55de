"""Store records as files, one JSON per (backbone, cell, seed): paths, writing, finding, reading."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from backbench.config import digest
from backbench.errors import BackbenchError, writing
from backbench.files.atomic import atomic_write, atomic_write_text
from backbench.progress import say
from benchmarks.records.reading import Broken, Found, fault, read, scan
from benchmarks.records.schema import SCHEMA, BackboneRecord, DataRecord, MetricRecord, Provenance, Result, TaskRecord

__all__ = ["SCHEMA", "BackboneRecord", "DataRecord", "MetricRecord", "Provenance", "Result", "TaskRecord", "read"]

_LONGEST = 200  # bytes of a backbone's name in a folder's name; file systems allow 255


def marks(*, is_demo: bool, profile: str) -> str:
    """Return the mark that follows a demo or rehearsal number wherever it is shown."""
    return (" DEMO" if is_demo else "") + (" REHEARSAL" if profile == "smoke" else "")


def folder(out: Path, backbone_name: str, weights_sha256: str, cell: str, config_sha256: str) -> Path:
    """Return `<out>/<backbone>-<weights8>/<cell>-<config8>`; a name too long for a file system ends in its hash."""
    name = file_name(backbone_name)
    if len(name.encode()) > _LONGEST:
        name = f"{name.encode()[: _LONGEST - 9].decode(errors='ignore')}-{digest(backbone_name)[:8]}"
    return Path(out) / f"{name}-{file_name(weights_sha256[:8])}" / f"{file_name(cell)}-{file_name(config_sha256[:8])}"


def file_name(word: str) -> str:
    """Return the word with a dash for every character that a file's name should not have."""
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in word)


def place_of(out: Path, result: Result) -> Path:
    """Return the folder of a record."""
    backbone, task = result.backbone, result.task
    return folder(out, backbone.name, backbone.weights_sha256, result.cell, task.config_sha256)


def record_path(out: Path, result: Result) -> Path:
    """Return the path of a record: `seed<k>.json` in its folder.

    Where another number has that place (of other data, of the same weights otherwise built or fed, or under another name
    that makes the same folder): `seed<k>-<digest8>.json`.
    """
    backbone = result.backbone
    manifest = result.data.manifest_sha256 if result.data else None
    what = [manifest, backbone.arch, backbone.input]
    own, named = (digest(fields)[:8] for fields in (what, [*what, backbone.name]))
    place = place_of(out, result)
    paths = [place / f"seed{result.seed}{end}.json" for end in ("", f"-{own}", f"-{named}")]
    there = {path: _number(path) for path in paths}
    mine = (path for path, number in there.items() if number and _alike(result, number))
    free = (path for path, number in there.items() if not number)
    return next(mine, None) or _elsewhere(place, result) or next(free, paths[-1])


def _elsewhere(place: Path, result: Result) -> Path | None:
    """Find the same number in a sibling folder, made when fields that change no number were part of the folder's name."""
    for path in sorted(place.parent.glob(f"{place.name.rpartition('-')[0]}-*/seed{result.seed}*.json")):
        number = _number(path) if path.parent != place else None
        if number and number.backbone.name == result.backbone.name and number.identity() == result.identity():
            return path
    return None


def write(out: Path, result: Result, items: Mapping[str, np.ndarray] | None = None) -> Path:
    """Write a record atomically to its place; returns the path.

    A failure never replaces a number: it is written next to it (`seed0.failed.json`) until there is a new number.
    A file that is not a record is moved aside (`seed0.json.unreadable`); a newer program's record is never touched.

    Args:
        items: arrays with one row per test item (scores, top five classes), to compare two backbones on the same
            items; written next to the record, compressed (`seed0.items.npz`).

    Raises:
        BackbenchError: the record is `ok` without its headline, a file must not be replaced, or the disk refuses.
    """
    if result.status == "ok" and result.primary not in result.metrics:
        raise BackbenchError(f"{result.cell}: a number without '{result.primary}', its headline, is not a result")
    path = record_path(out, result)
    beside = result.status != "ok" and _number(path) is not None
    path = path.with_suffix(f".{result.status}.json") if beside else path
    make_way(path)
    if items:
        atomic_write(items_path(path), lambda file: np.savez_compressed(file, **dict[str, Any](items)))
    atomic_write_text(path, json.dumps(result.model_dump(mode="json", by_alias=True), indent=1) + "\n")
    if not beside:  # only now, so that a full disk or a kill loses nothing
        if not items:
            items_path(path).unlink(missing_ok=True)
        for stale in (path.with_suffix(f".{status}.json") for status in ("failed", "skipped")):
            if _is_record(stale):
                stale.unlink()
    if result.status == "ok":
        clear_absent(path, result)
    return path


def make_way(path: Path) -> None:
    """Move aside a file that is not a record, with its items; nothing is deleted.

    Raises:
        BackbenchError: it must not be replaced: a newer program's record, or not a regular file.
    """
    try:
        if path.exists() or path.is_symlink():
            read(path)
    except Broken as error:
        aside = _free(path.with_name(f"{path.name}.unreadable"))
        with writing(aside):
            path.rename(aside)
            if items_path(path).exists():
                items_path(path).rename(aside.with_name(f"{aside.name}.items.npz"))
        say(f"{error}; moved to {aside.name}")


def _free(path: Path) -> Path:
    """Return the path, with a number at its end if it is taken."""
    more = (path.with_name(f"{path.name}-{n}") for n in itertools.count(2))
    return next(p for p in itertools.chain([path], more) if not p.exists())


def refuse_newer(out: Path, planned: Result) -> None:
    """Check, before anything is measured, that an existing record may be replaced.

    Raises:
        BackbenchError: a newer program's record, or something other than a file, takes a place that this record may need.
    """
    for path in sorted(of_seed(out, planned)):
        with contextlib.suppress(Broken):
            read(path)


def rename(path: Path, stored: Result, planned: Result) -> None:
    """Note in a record that the user has now given the name that was taken from a file; only given names join rows."""
    if planned.backbone.named and not stored.backbone.named:
        backbone = stored.backbone.model_copy(update={"named": True, "source": planned.backbone.source})
        values = stored.model_copy(update={"backbone": backbone}).model_dump(mode="json", by_alias=True)
        atomic_write_text(path, json.dumps(values, indent=1) + "\n")


def clear_absent(path: Path, result: Result) -> None:
    """Delete stale "failed" and "skipped" records of the result's seed, and of its data if they name any."""
    for beside in path.parent.glob(f"seed{result.seed}[.-]*json"):
        try:
            other = read(beside)
        except BackbenchError:
            continue
        if beside != path and other.status != "ok" and _alike(result, other):
            beside.unlink()


def stored(path: Path, planned: Result) -> Result | None:
    """Return the record at a path if it is sound and equal in everything that decides the number, else None."""
    found = _number(path)
    return found if found and found.identity() == planned.identity() else None


def of_seed(out: Path, planned: Result) -> set[Path]:
    """Return the files of all records of a planned record's seed, with or without numbers, on any data."""
    elsewhere = _elsewhere(place_of(out, planned), planned)
    return {*place_of(out, planned).glob(f"seed{planned.seed}[.-]*json"), *([elsewhere] if elsewhere else [])}


def written(out: Path) -> dict[Path, int]:
    """Return when each record was written, to find out later which are new."""
    return {path: path.lstat().st_mtime_ns for path in Path(out).glob("*/*/seed*.json")}


def is_measured(out: Path, planned: Result) -> bool:
    """Return whether a number of a planned record exists, on any data."""
    found = (_number(path) for path in of_seed(out, planned))
    return any(r.model_copy(update={"data": planned.data}).identity() == planned.identity() for r in found if r)


def run_folder(out: Path, result: Result) -> Path:
    """Return the folder for a run's checkpoints and pictures; a run with another identity has another folder."""
    return place_of(out, result) / f"seed{result.seed}-{result.identity()[:8]}"


def items_path(record: Path) -> Path:
    """Return the path of a record's arrays per test item."""
    return record.with_suffix(".items.npz")


def scan_folder(out: Path) -> Found:
    """Read all records below a folder that `run_all` wrote, in path order; also says what is left out."""
    return scan(sorted(Path(out).glob("*/*/seed*.json")))


def read_all(out: Path) -> Iterator[Result]:
    """Yield every record below a folder, in path order; unreadable files are named and left out."""
    found = scan_folder(out)
    for words in found.left_out:
        say(words)
    yield from found.records.values()


def read_paths(paths: Sequence[Path]) -> dict[Path, Result]:
    """Read records from files and from folders, by path; a repeated measurement counts once.

    Raises:
        BackbenchError: a path does not exist or has no record, or a file is not a record.
    """
    files: dict[Path, None] = {}
    for path in map(Path, paths):
        if not path.exists():
            raise BackbenchError(f"{path}: no such result file or folder")
        below = sorted(path.rglob("seed*.json")) if path.is_dir() else [path]
        if not below:
            raise BackbenchError(f"{path}: no result files below it; give what run_all wrote with --out")
        if not path.is_dir():
            read(path)
        files |= dict.fromkeys(file.resolve() for file in below)
    found = scan(files)
    for words in found.left_out:
        say(words)
    return found.records


def _number(path: Path) -> Result | None:
    """Return the record at a path if it has a sound headline, else None."""
    try:
        found = read(path) if path.exists() else None
    except BackbenchError:
        return None
    return found if found and found.status == "ok" and fault(found) is None else None


def _is_record(path: Path) -> bool:
    try:
        return bool(read(path))
    except BackbenchError:
        return False


def _alike(result: Result, other: Result) -> bool:
    """Return whether two records of a folder share name, data, architecture and input; unknown data match any."""
    manifests = {r.data.manifest_sha256 for r in (result, other) if r.data}
    who = [(r.backbone.name, r.backbone.arch, r.backbone.input) for r in (result, other)]
    return len(manifests) < 2 and who[0] == who[1]
