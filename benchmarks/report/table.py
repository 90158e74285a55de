"""Group records into one table: a row per backbone or per NAME, a column per (cell, configuration, metric)."""

from __future__ import annotations

import functools
import itertools
import json
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import ValidationError

from backbench.config import digest
from backbench.data import catalogue
from benchmarks.naming import Who, labels
from benchmarks.records.renamed import INDIFFERENT
from benchmarks.records.schema import Result
from model_zoo.architecture import Architecture, unusual


@dataclass(frozen=True)
class Column:
    """A column: what was measured, on which data."""

    cell: str
    config8: str
    metric: str
    unit: str
    higher_is_better: bool
    primary: bool
    data: str  # e.g. "ImageNet layout, 3000/1000 images"; the data set's name when the images are the published ones
    is_published: bool
    is_demo: bool
    profile: str
    manifest: str  # of the data: numbers from different data are never averaged, even under one name
    fields: tuple[tuple[str, str], ...] = ()  # configuration fields that may change a number: `a.b` and its value
    dataset: str = ""  # the data set's plain name, for any images
    engine: str = ""  # library and version that run the protocol, if any
    version: int = 1  # of the protocol: numbers of different versions differ
    task: str = ""  # the protocol, for any name of the cell


@dataclass(frozen=True)
class Value:
    """Mean and spread of a row's numbers for a column."""

    mean: float
    spread: float | None  # standard deviation; None for a single number
    numbers: tuple[float, ...]  # one per backbone (mean over its seeds), or one per seed of a single backbone
    over: str  # what they differ in: "backbones", "seeds" or "" for one number
    items: int = 0  # the test images that a single number is a percentage of; 0 for means and other metrics
    records: tuple[Result, ...] = field(default=(), compare=False, repr=False)  # the records behind it


@dataclass(frozen=True)
class Row:
    """A backbone's name with its numbers."""

    name: str
    arch: str  # with its unusual fields
    backbones: int
    values: dict[Column, Value]

    @property
    def label(self) -> str:
        """The name with its architecture."""
        return self.name if self.arch in self.name else f"{self.name} ({self.arch})"


@dataclass(frozen=True)
class Absent:
    """A cell without a number, and why."""

    name: str
    cell: str
    status: str
    reason: str
    task: str = ""
    config8: str = ""


@dataclass(frozen=True)
class Table:
    """Everything that the renderers need."""

    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    absent: tuple[Absent, ...]


def gather(results: Iterable[Result]) -> Table:
    """Group records into a table; every number counts once."""
    results = list(results)
    whos = _who(results)
    names = labels(whos)
    by_row: dict[str, dict[Column, dict[str, list[Result]]]] = {}
    archs: dict[str, str] = {}
    titles = {name: known.title for name, known in catalogue.described().found.items()}
    for result, who in zip(results, whos, strict=True):
        if result.status != "ok":
            continue
        row = names[who.key]
        archs[row] = architecture(result.backbone.arch)
        blank = _column(result, titles)
        for name, metric in result.metrics.items():
            column = replace(
                blank,
                metric=name,
                unit=metric.unit,
                higher_is_better=metric.higher_is_better,
                primary=name == result.primary,
            )
            records = by_row.setdefault(row, {}).setdefault(column, {})
            records.setdefault(result.backbone.weights_sha256, []).append(result)
    columns = sorted(  # frozen and fine-tuned backbones before detectors
        {column for row in by_row.values() for column in row},
        key=lambda c: (
            bool(c.engine),
            c.cell,
            c.config8,
            c.engine,
            c.task,
            c.version,
            c.data,
            c.manifest,
            not c.primary,
            _natural(c.metric),
        ),
    )
    rows = []
    for name in sorted(by_row, key=lambda n: (n.startswith("random:"), n)):
        per_seed = name.startswith("random:")  # a random baseline has new weights for every seed
        values = {column: _value(column.metric, records, per_seed=per_seed) for column, records in by_row[name].items()}
        backbones = {sha for records in by_row[name].values() for sha in records}
        rows.append(Row(name, archs[name], len(backbones), values))
    absent = sorted(
        {
            (
                names[who.key],
                r.cell,
                r.status,
                r.reason or "no reason recorded",
                r.task.name,
                r.task.config_sha256[:8],
            )
            for r, who in zip(results, whos, strict=True)
            if r.status != "ok"
        }
    )
    return Table(tuple(rows), tuple(columns), tuple(Absent(*item) for item in absent))


def architecture(fields: Mapping[str, Any]) -> str:
    """Return a record's architecture in short: `resnet50`, `resnet50, width 0.5`, or the name of another network."""
    try:
        arch = Architecture.model_validate(fields)
    except ValidationError:
        return str(fields.get("name", ""))
    return ", ".join([arch.name, *(k if v is True else f"{k} {v}" for k, v in unusual(arch).items())])


def in_words(arch: Mapping[str, Any], spec: Mapping[str, Any]) -> str:
    """Return architecture and image size, which tell rows with one name apart."""
    return f"{architecture(arch)} {spec.get('size')} px"


def _who(results: Iterable[Result]) -> list[Who]:
    """Return what decides each record's row; an older record without a name takes it from others with its weights."""
    results = list(results)
    known: dict[tuple[str, str], tuple[bool, str]] = {}
    for result in results:
        backbone = result.backbone
        if (said := named_and_source(result)) is not None:
            known.setdefault((backbone.name, backbone.weights_sha256), said)
    found = []
    for result in results:
        backbone = result.backbone
        named, source = known.get((backbone.name, backbone.weights_sha256), (True, ""))
        found.append(
            Who(
                name=backbone.name,
                joins=named or backbone.format == "random",
                weights=backbone.weights_sha256,
                arch=digest(backbone.arch),
                input=digest(backbone.input),
                source=source,
                build=in_words(backbone.arch, backbone.input),
            )
        )
    return found


def named_and_source(result: Result) -> tuple[bool, str] | None:
    """Return whether the user gave the name, and the origin; an older record's command line may tell both."""
    backbone = result.backbone
    if backbone.named is not None:
        return backbone.named, backbone.source
    argv = result.provenance.argv if result.provenance else []
    given = [word.removeprefix("--ckpt=") for word in argv if word.startswith("--ckpt=")]
    given += [after for word, after in itertools.pairwise(argv) if word == "--ckpt"]
    if not given:
        return None
    named = given[-1].startswith(f"{backbone.name}=")
    return named, given[-1].removeprefix(f"{backbone.name}=" if named else "")


def _column(result: Result, titles: Mapping[str, str]) -> Column:
    """Return the column of a record's numbers, without the metric.

    Args:
        titles: titles of the data sets that a file describes; a user's own data set has none.
    """
    data = result.data
    assert data is not None, "an ok record has data"
    if data.is_published:
        label = data.name
    else:
        title = titles.get(data.name)
        what = "demo scenes" if data.is_demo else f"{title} layout" if title else data.name
        label = f"{what}, {data.counts['train']}/{data.counts['test']} images"
    sha = result.task.config_sha256[:8]
    return Column(
        cell=result.cell,
        config8=sha,
        metric="",
        unit="",
        higher_is_better=True,
        primary=False,
        data=label,
        is_published=data.is_published,
        is_demo=data.is_demo,
        profile=result.profile,
        manifest=data.manifest_sha256[:8],
        fields=_fields(result.task.name, json.dumps(result.task.config)),
        dataset=data.name,
        engine=result.task.engine or "",
        version=result.task.version,
        task=result.task.name,
    )


@functools.lru_cache(maxsize=1024)
def _fields(task: str, config: str) -> tuple[tuple[str, str], ...]:
    """Return the fields of a configuration, given as JSON, that may change a number. Many records share few of them."""
    return tuple(flat({k: v for k, v in json.loads(config).items() if k not in INDIFFERENT.get(task, {})}))


def made_apart(table: Table) -> list[str]:
    """List means over several devices or versions of torch: that difference may be part of the spread."""
    found = []
    for row in table.rows:
        for column, value in row.values.items():
            made = {(r.provenance.device, r.provenance.packages.get("torch")) for r in value.records if r.provenance}
            if column.primary and len(made) > 1:
                places = " and ".join(sorted(f"{device} (torch {torch})" for device, torch in made))
                found.append(f"{row.name}, {column.cell} {column.metric}: measured on {places}")
    return found


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield `a.b` and its value as JSON, for every field of a configuration."""
    for key, value in sorted(config.items()):
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(value)


def _value(metric: str, records: dict[str, list[Result]], *, per_seed: bool) -> Value:
    """Average over backbones if there are several (each by the mean of its seeds), else over the seeds of the one."""
    numbers = {sha: [result.metrics[metric].value for result in seeds] for sha, seeds in records.items()}
    if len(numbers) > 1:
        each, over = [statistics.fmean(seeds) for seeds in numbers.values()], "seeds" if per_seed else "backbones"
    else:
        each = next(iter(numbers.values()))
        over = "seeds" if len(each) > 1 else ""
    spread = statistics.stdev(each) if len(each) > 1 else None
    made_of = tuple(result for seeds in records.values() for result in seeds)
    data = made_of[0].data
    of_test = is_share(metric) and data and metric.partition("_")[2] not in data.counts  # not of a further test set
    items = data.counts["test"] if len(made_of) == 1 and data and of_test else 0
    return Value(statistics.fmean(each), spread, tuple(each), over, items, made_of)


def is_share(metric: str) -> bool:
    """Return whether a metric is the percentage of test images whose class is right; few-shot numbers are of episodes."""
    return metric.startswith(("top1", "top5")) and "way_" not in metric


def _natural(name: str) -> tuple[object, ...]:
    """Return a sort key that puts `top1_k5` before `top1_k20`."""
    digits = "".join(c if c.isdigit() else " " for c in name).split()
    return (name.rstrip("0123456789"), int(digits[-1]) if digits else 0, name)
