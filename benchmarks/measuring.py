"""Measure one seed of a (backbone, cell) and write its record. Every number comes from here; `run_one` calls it."""

from __future__ import annotations

import contextlib
import json
import numbers
import os
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from backbench import trackers
from backbench.config import digest
from backbench.data import demo
from backbench.data.catalogue import DataPlaces, is_published
from backbench.data.overlap import in_both
from backbench.data.splits import Split
from backbench.distributed import device as find_device
from backbench.distributed import gather_words, is_main, world_size
from backbench.errors import BackbenchError
from backbench.files.atomic import atomic_write_text, make_folder
from backbench.files.locks import held
from backbench.precision import exact_float32
from backbench.printable import some
from backbench.processes import usable_cores
from backbench.progress import logged, say
from benchmarks.options import CellOptions, Options
from benchmarks.plan import Cell
from benchmarks.records import provenance, store
from benchmarks.records.energy import Meter
from benchmarks.records.reading import impossible
from benchmarks.records.schema import BackboneRecord, DataRecord, MetricRecord, Result, TaskRecord
from model_zoo.backbone import Backbone
from transfer.protocol import Metric, RunContext


def run_seed(backbone: Backbone, cell: Cell, seed: int, places: DataPlaces, options: CellOptions) -> Result:
    """Make one record unless an identical one exists; `log.txt` next to it gets what is said, logged and warned about."""
    place = store.folder(options.out, backbone.name, backbone.weights_sha256, cell.name, cell.config_sha256)
    with logged(f"[{options.place}] " if options.place else "", place / "log.txt"):
        return _run_seed(backbone, cell, seed, places, options)


def _run_seed(backbone: Backbone, cell: Cell, seed: int, places: DataPlaces, options: CellOptions) -> Result:
    """Return the record of a seed: the identical one if it exists, else a new one, made under a lock.

    In a job of several processes all of them measure; rank 0 locks, decides, writes and prints.
    """
    place = store.folder(options.out, backbone.name, backbone.weights_sha256, cell.name, cell.config_sha256)
    label = f"{backbone.name} {cell.name} seed {seed}"
    with held(make_folder(place) / ".lock") if is_main() else contextlib.nullcontext():
        store.refuse_newer(options.out, blank(backbone, cell, seed, options, status="skipped"))
        splits, planned = prepare(backbone, cell, seed, places, options)
        if planned.status != "ok":
            if is_main():
                store.write(options.out, planned)
            say(f"{'skipped' if planned.status == 'skipped' else 'FAILED'} {label}: {planned.reason}")
            return planned
        path = store.record_path(options.out, planned)
        stored = store.stored(path, planned) if is_main() else None
        if stored:
            store.rename(path, stored, planned)
            store.clear_absent(path, planned)  # left by a run that was killed after it wrote this number
        if gather_words([str(stored is not None)])[0] == "True":
            say(f"kept {label}: an identical result exists")
            return stored or planned
        with exact_float32():
            done, items = measure(planned, backbone, cell, splits, options)
        if is_main():
            path = store.write(options.out, done, items)
    if done.status == "failed":
        say(f"FAILED {label}: {done.reason}")
        return done
    if is_main() and done.data:
        headline = done.metrics[done.primary or ""]
        kind = store.marks(is_demo=done.data.is_demo, profile=done.profile)
        say(f"{label}: {done.primary} {headline.value:.2f}{headline.unit}{kind}  ({path})")
    return done


def prepare(
    backbone: Backbone, cell: Cell, seed: int, places: DataPlaces, options: Options
) -> tuple[dict[str, Split], Result]:
    """Return the data and the record without its numbers; or no data and a record with the reason for no number."""
    reason = cell.task.missing(cell.config, places) or cell.task.unfit(backbone, cell.config)
    if reason:
        return {}, blank(backbone, cell, seed, options, status="skipped", reason=reason)
    try:
        splits = cell.task.splits(cell.config, places)
        return splits, blank(backbone, cell, seed, options, status="ok", data=describe_data(cell, splits, places))
    except BackbenchError as error:
        return {}, blank(backbone, cell, seed, options, status="failed", reason=str(error))


def measure(
    planned: Result,
    backbone: Backbone,
    cell: Cell,
    splits: dict[str, Split],
    options: CellOptions,
) -> tuple[Result, dict[str, Any]]:
    """Run the task; returns the record and the arrays per test item. A failure becomes a record; other seeds go on."""
    device = find_device()
    torch.manual_seed(planned.seed)
    workers = options.workers if options.workers is not None else default_workers()
    cache, folder = options.out / ".features", store.run_folder(options.out, planned)
    ctx = RunContext(splits=splits, seed=planned.seed, device=device, cache=cache, folder=folder, workers=workers)
    note_seen(splits, ctx.notes)
    start, meter = time.monotonic(), Meter(device)
    try:
        with trackers.opened(trackers.chosen(), folder.parent / f"curves-seed{planned.seed}", *_told(planned)):
            metrics = cell.task.run(backbone, cell.config, ctx)
            _keep(ctx)
            records = checked(metrics, cell.task.primary(cell.config), ctx.notes)
            trackers.log({f"final/{name}": record.value for name, record in records.items()}, 0)
    except Exception as error:
        reason = str(error) or type(error).__name__
        text = None if isinstance(error, BackbenchError) else traceback.format_exc()
        fields = {"status": "failed", "reason": reason, "error": text}
        if world_size() > 1:
            raise  # the other processes wait for this one: the job must end, and run_all writes a record
        return planned.model_copy(
            update=fields | {"provenance": provenance.collect(device, time.monotonic() - start, meter.joules())}
        ), {}
    task = planned.task.model_copy(update={"tuned": ctx.tuned, "notes": ctx.notes})
    done = planned.model_copy(
        update={
            "task": task,
            "metrics": records,
            "primary": cell.task.primary(cell.config),
            "artefacts": {f"{folder.name}/{name}": sha for name, sha in ctx.artefacts.items()},
            "provenance": provenance.collect(device, time.monotonic() - start, meter.joules()).model_copy(
                update={"resumed_at": ctx.resumed_at}
            ),
        }
    )
    return done, ctx.items


def _keep(ctx: RunContext[Split]) -> None:
    """Write the learning curve to the run's folder: `losses.jsonl`, a line for each point, as detectors have it."""
    if ctx.curve and is_main():
        atomic_write_text(ctx.folder / "losses.jsonl", "".join(json.dumps(point) + "\n" for point in ctx.curve))


def _told(planned: Result) -> tuple[str, dict[str, Any]]:
    """The name and the configuration of a tracker's run."""
    name = f"{planned.backbone.name} {planned.cell} seed {planned.seed}"
    return name, {**planned.task.config, "weights_sha256": planned.backbone.weights_sha256}


def note_seen(splits: Mapping[str, Split], notes: list[str]) -> None:
    """Say, also in the record, that some test images are training images too."""
    if seen := in_both(splits["train"], splits["test"]):
        notes.append(f"of {len(splits['test'])} test images these are training images too: {some(seen)}; this number is "
                     "not one of unseen images")  # fmt: skip
        if is_main():
            say(f"warning: {notes[-1]}")


def checked(metrics: Mapping[str, Metric], primary: str, notes: list[str]) -> dict[str, MetricRecord]:
    """Return the metrics of a record; impossible ones other than the headline are left out, with a note.

    Raises:
        BackbenchError: the headline is missing or impossible.
    """
    records: dict[str, MetricRecord] = {}
    wrong: dict[str, str] = {}
    for name, metric in metrics.items():
        if isinstance(metric.value, bool) or not isinstance(metric.value, numbers.Real):
            wrong[name] = f"{name} is a {type(metric.value).__name__}, not a number"
            continue
        value = float(metric.value)
        number = MetricRecord.model_construct(value=value, unit=metric.unit, higher_is_better=metric.higher_is_better)
        if why := impossible(name, number):
            wrong[name] = why
        else:
            records[name] = MetricRecord.model_validate(number.model_dump())
    if primary not in records:
        there = wrong.get(primary) or f"it gave {', '.join(sorted(metrics)) or 'nothing'}"
        raise BackbenchError(f"the protocol gave no '{primary}', its headline, so there is no result ({there})")
    notes += [f"left out: {why}" for name, why in sorted(wrong.items())]
    return records


def default_workers() -> int:
    """Return how many processes decode images: half the cores this process may use, divided by the machine's ranks."""
    return max(1, usable_cores() // (2 * int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def blank(
    backbone: Backbone,
    cell: Cell,
    seed: int,
    options: Options,
    *,
    status: Literal["ok", "failed", "skipped"],
    reason: str | None = None,
    data: DataRecord | None = None,
) -> Result:
    """Return a record without a number."""
    config = cell.config.model_dump(mode="json")
    task = TaskRecord(
        name=cell.task_name,
        version=cell.task.version,
        config=config,
        config_sha256=cell.config_sha256,
        engine=cell.task.engine_version(cell.config) if status != "skipped" else None,
    )
    return Result(
        status=status,
        reason=reason,
        profile=options.profile,
        suite=options.suite or "none",
        seed=seed,
        backbone=BackboneRecord(**backbone.record(), named=backbone.named, source=backbone.source),
        cell=cell.name,
        task=task,
        data=data,
    )


def describe_data(cell: Cell, splits: dict[str, Split], places: DataPlaces) -> DataRecord:
    """Return the `data` of a record."""
    name = cell.config.data.name
    train, test = splits["train"], splits["test"]
    return DataRecord(
        name=name,
        train=train.split,
        test=test.split,
        counts={role: len(split) for role, split in splits.items()} | {"classes": len(train.classes)},
        manifest_sha256=digest({role: split.manifest_sha256() for role, split in splits.items()}),
        is_published=is_published(name, splits),
        is_demo=demo.is_demo(places.of(name) or Path()),
        repaired={
            f"{split.split}: {what}": count for split in splits.values() for what, count in split.repaired.items()
        },
        passed_over={
            split.split: {reason: count for reason, (count, _) in split.passed_over.items()}
            for split in splits.values()
            if split.passed_over
        },
    )
