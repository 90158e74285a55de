"""Lines of `run --dry-run`: whether each cell is kept, runs, fails or is skipped, and why. Downloads nothing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from backbench.data import catalogue, subsets
from backbench.errors import BackbenchError
from backbench.files.folders import cache_folder
from backbench.progress import say
from benchmarks import measuring
from benchmarks.records import store
from benchmarks.subjects import Subject, by_seed, split_name
from model_zoo import entries, fetch
from model_zoo.choice import NO_CHOICE
from model_zoo.fetch import url_file
from transfer.protocol import labelled_splits

if TYPE_CHECKING:
    from backbench.data.catalogue import DataPlaces
    from backbench.data.splits import Split
    from benchmarks.options import RunOptions
    from benchmarks.plan import Cell
    from benchmarks.records.schema import DataRecord

# Tasks that keep features of whole splits.
_ON_DISK = ("knn", "linear_probe", "robustness", "voc07_svm", "voc07_lowshot")


def without_absent(options: RunOptions) -> tuple[RunOptions, list[str]]:
    """Split off the checkpoints that a run would download, and announce them; returns the other options and these."""
    absent = [ckpt for ckpt in options.ckpt if _announced(ckpt, split_name(ckpt)[1])]
    kept = [ckpt for ckpt in options.ckpt if ckpt not in absent]
    named = [name for name in (word.strip() for word in options.baselines.split(",")) if name]
    far = [name for name in named if _announced(name, name if ":" in name else f"zoo:{name}")]
    left = kept or not absent  # `random` follows checkpoints: it cannot be made while all of them are absent
    near = [name for name in named if name not in far and (left or name != "random")]
    choice = NO_CHOICE if absent else options.choice
    return replace(options, ckpt=tuple(kept), baselines=",".join(near), choice=choice), [*absent, *far]


def _announced(word: str, source: str) -> bool:
    """Return whether a source's file must be downloaded; if so, say it."""
    what = None if source == "zoo:random" else _download(source)
    if what:
        say(f"fetch {word}: a download {what}")
    return bool(what)


def _download(source: str) -> str | None:
    """Describe the download that reading a source needs; None if its file is on this machine."""
    if source.startswith("zoo:"):
        known = {entry.name: entry for entry in entries.all_entries()}
        entry = known.get(source.removeprefix("zoo:"))
        if entry is None or not entry.has_weights or fetch.is_here(entry):
            return None
        return f"of {entry.size_mb:g} MB" if entry.size_mb else "of unknown size"
    if url_file.is_url(source):
        return None if fetch.is_here(url_file.parse(source)) else "of unknown size"
    if source.startswith(("timm:", "hf-hub:")) and "pretrained=false" not in source:
        return "unless timm has it in its cache"
    return None


def lines(
    subjects: Sequence[Subject],
    absent: Sequence[str],
    cells: Sequence[Cell],
    skipped: Mapping[tuple[Subject, str], str],
    repeats: Mapping[str, int],
    places: DataPlaces,
    options: RunOptions,
) -> Iterator[str]:
    """Yield a line for each backbone and cell, then one for the disk space of the features."""
    why: dict[str, str | None] = {}
    states: dict[tuple[Subject, str], tuple[str, int]] = {}
    with catalogue.reading_once():
        for cell in cells:
            splits, why[cell.name] = read(cell, places)
            if splits:
                data = measuring.describe_data(cell, splits, places)
                going = [subject for subject in subjects if (subject, cell.name) not in skipped]
                states |= {(s, cell.name): _state(s, cell, repeats[cell.name], splits, data, options) for s in going}
    for name in absent:
        for cell in cells:
            gap, where = cell.task.missing(cell.config, places), f"{name:<28} {cell.name}"
            yield (f"skip  {where}: {gap}" if gap else f"fails {where}: {why[cell.name]}" if why[cell.name]
                   else f"run   {where}: after the download")  # fmt: skip
    features: dict[tuple[str, str, int], int] = {}
    for subject in subjects:
        for cell in cells:
            where = f"{subject.name:<28} {cell.name}"
            if reason := skipped.get((subject, cell.name)):
                yield f"skip  {where}: {reason}"
            elif reason := why[cell.name]:
                yield f"fails {where}: {reason}"
            elif need := needed_list(cell):
                yield f"run   {where}: fetches {need}"
            else:
                kept, size = states[subject, cell.name]
                yield f"{'kept' if kept == 'all' else 'run':<5} {where}" + (
                    f": {kept}" if kept not in ("", "all") else ""
                )
                if size and kept != "all":
                    key = (subject.backbones[0].weights_sha256, cell.config.data.name, cell.config.data.limit)
                    features[key] = max(size, features.get(key, 0))
    if total := sum(features.values()):
        yield _disk(total, options.out)


def read(cell: Cell, places: DataPlaces) -> tuple[dict[str, Split], str | None]:
    """Return a cell's data, or why they are refused; neither if they are absent or need a list to be fetched first."""
    if cell.task.missing(cell.config, places):
        return {}, None
    try:
        if share := _absent_share(cell):
            images = labelled_splits(cell.config.data.model_copy(update={"limit": 0}), places)["train"]
            subsets.check_official(share, len(images))
            return {}, None
        return cell.task.splits(cell.config, places), None
    except BackbenchError as error:
        return {}, str(error)


def needed_list(cell: Cell) -> str | None:
    """Name the official list of images that a cell would fetch, with the command that fetches it now."""
    share = _absent_share(cell)
    return f"the {share} list (`backbench data lists` fetches it now)" if share else None


def _absent_share(cell: Cell) -> str | None:
    """Return the share, `1%` or `10%`, of the official list that a cell needs, if the list is not on this machine."""
    share: str | None = getattr(cell.config, "share", None)
    if share not in subsets.OFFICIAL or getattr(cell.config, "list", None):
        return None
    return None if (cache_folder() / "lists" / subsets.OFFICIAL[share].file).exists() else share


def _state(
    subject: Subject, cell: Cell, seeds: int, splits: Mapping[str, Split], data: DataRecord, options: RunOptions
) -> tuple[str, int]:
    """Return `all` if every seed has an identical result, else how many have one; and the bytes of both splits' features."""
    kept = size = 0
    pairs = by_seed(subject.backbones, seeds, cell)
    for seed, backbone in pairs:
        planned = measuring.blank(backbone, cell, seed, options, status="ok", data=data)
        kept += store.stored(store.record_path(options.out, planned), planned) is not None
    if cell.task_name in _ON_DISK:
        images = sum(len(split) for split in {id(split): split for split in splits.values()}.values())
        size = images * subject.backbones[0].feature_dim * 4 * len({b.weights_sha256 for _, b in pairs})
    return ("all" if kept == len(pairs) else f"{kept} of {len(pairs)} seeds reused" if kept else ""), size


def _disk(need: int, out: Path) -> str:
    """Estimate the disk space of the features below `out` (float32, uncompressed) and say whether it is free."""
    there = next(folder for folder in (out.resolve(), *out.resolve().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    text = f"features: {size_text(need)} estimated in {out / '.features'}, {size_text(free)} free"
    return f"{text}: too little; give --out a folder on a larger disk" if need > free else text


def size_text(count: float) -> str:
    """Bytes in words, three digits: `5.25 GB`."""
    unit = "bytes"
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:.3g} {unit}"
