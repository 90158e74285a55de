"""How the numbers were made: records that differ in the seed only, together, for the page's provenance."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.records import store
from benchmarks.records.schema import Provenance, Result


@dataclass(frozen=True)
class Batch:
    """Records of one backbone and cell that were made alike, but for the seed."""

    cell: str
    seeds: str  # `0-2`
    config: str
    data: str  # name, splits, counts, manifest; corrections and skipped files
    chosen: str
    code: str  # commit and protocol version
    device: str
    wall_s: float  # of all of them, like the energy
    energy_j: float  # 0 where the machine does not count it
    peak_memory: int  # bytes, of the largest


@dataclass(frozen=True)
class Origin:
    """A backbone and how its numbers were made."""

    name: str
    weights_sha256: str
    facts: str  # format, architecture, input, source
    batches: tuple[Batch, ...]
    records: int
    wall_s: float


def origins(results: Sequence[Result]) -> list[Origin]:
    """Group measured records by backbone, then by all that they share."""
    by_backbone: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        by_backbone.setdefault((result.backbone.name, result.backbone.weights_sha256), []).append(result)
    return [_origin(name, sha, records) for (name, sha), records in sorted(by_backbone.items())]


def packages(results: Sequence[Result]) -> list[str]:
    """Return every set of package versions; with the number of records if there are several."""
    sets = Counter(", ".join(f"{k} {v}" for k, v in r.provenance.packages.items()) for r in results if r.provenance)
    return [line if len(sets) == 1 else f"{line} ({count} records)" for line, count in sets.most_common()]


def commands(results: Sequence[Result]) -> list[str]:
    """Return every command line once."""
    return sorted({shlex.join(r.provenance.argv) for r in results if r.provenance})


def _origin(name: str, sha: str, records: Sequence[Result]) -> Origin:
    alike: dict[tuple[str, ...], list[Result]] = {}
    for record in records:
        alike.setdefault(_key(record), []).append(record)
    facts = sorted({_facts(record) for record in records})
    batches = tuple(_batch(key, group) for key, group in sorted(alike.items()))
    wall_s = sum(batch.wall_s for batch in batches)
    return Origin(name, sha, "; ".join(facts), batches, len(records), wall_s)


def _facts(record: Result) -> str:
    backbone = record.backbone
    built = ", ".join(f"{key} {_word(value)}" for key, value in {**backbone.arch, **backbone.input}.items())
    return ", ".join(filter(None, (f"layout {backbone.format}", built, backbone.source and f"from {backbone.source}")))


def _key(record: Result) -> tuple[str, ...]:
    """Return what a batch shares, in the order of its columns."""
    task, made = record.task, record.provenance
    assert record.data is not None and made is not None, "an ok record has data and provenance"
    marks = store.marks(is_demo=record.data.is_demo, profile=record.profile)
    chosen = ", ".join(f"{key} {_word(value)}" for key, value in task.tuned.items() if not isinstance(value, Mapping))
    return (
        f"{record.cell}{marks}",
        task.config_sha256[:8],
        _data(record),
        chosen,
        f"{made.commit[:8]}{'+' if made.dirty else ''}, protocol {task.version}{f', {task.engine}' if task.engine else ''}",
        _device(made),
    )


def _data(record: Result) -> str:
    data = record.data
    assert data is not None
    counts = ", ".join(f"{count} {name}" for name, count in data.counts.items())
    odd = [f"{what} {json.dumps(found)}" for what in ("repaired", "passed_over") if (found := getattr(data, what))]
    return "; ".join((f"{data.name} {data.train}/{data.test} ({counts}), manifest {data.manifest_sha256[:8]}", *odd))


def _device(made: Provenance) -> str:
    tf32 = ", TF32 on" if made.tf32 else ""
    resumed = f", resumed at {', '.join(map(str, made.resumed_at))}" if made.resumed_at else ""
    return f"{made.device}, {made.processes} x {made.threads} threads{tf32}{resumed}"


def _batch(key: tuple[str, ...], group: Sequence[Result]) -> Batch:
    cell, config, data, chosen, code, device = key
    made = [record.provenance for record in group if record.provenance]
    seeds = _ranges(sorted({record.seed for record in group}))
    wall_s, memory = sum(one.wall_s for one in made), max(one.peak_memory for one in made)
    energy_j = sum(sum((one.energy_j or {}).values()) for one in made)
    return Batch(cell, seeds, config, data, chosen, code, device, wall_s, energy_j, memory)


def _ranges(seeds: Sequence[int]) -> str:
    """Return `0-2, 5` for 0, 1, 2, 5."""
    runs: list[list[int]] = []
    for seed in seeds:
        if runs and seed == runs[-1][-1] + 1:
            runs[-1].append(seed)
        else:
            runs.append([seed])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _word(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
