"""Read records from files that may be damaged, foreign, or from a later version of this program."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from backbench.errors import BackbenchError
from backbench.files import read_bytes
from backbench.printable import printable
from benchmarks.records.renamed import as_called_now
from benchmarks.records.schema import SCHEMA, MetricRecord, Result

_LARGEST = 64 * 2**20  # bytes; the largest records have about 100,000
_DEEPEST = 50
_BOUNDS = {  # of metrics that are not percentages
    "alignment": (0.0, math.inf),
    "uniformity": (-math.inf, 0.0),
    **dict.fromkeys(("rankme", "effective_rank", "lidar"), (1.0, math.inf)),
    "intrinsic_dimension": (0.0, math.inf),
}
_ROUNDING = 1e-6


class Broken(BackbenchError):
    """A file whose contents are not a record."""


class Newer(BackbenchError):
    """A record from a later version of this program; it is never replaced."""


def read(path: Path) -> Result:
    """Read a record of any schema version.

    Raises:
        Newer: its schema is newer, or it has fields that are unknown here.
        Broken: its contents are not a record.
        BackbenchError: it is not a regular file, or cannot be opened.
    """
    values = plain_json(path)
    version = values.get("schema") if isinstance(values, dict) else None
    if type(version) is not int or version < 1:
        raise Broken(f"{path}: not a result file (no 'schema')")
    if version > SCHEMA:
        raise Newer(f"{path}: schema {printable(version)} is newer than this program's {SCHEMA}: update backbench, or "
                    "give another --out; this file stays as it is")  # fmt: skip
    try:
        return Result.model_validate(as_called_now(values))
    except ValidationError as error:
        faults = error.errors(include_url=False, include_input=False)
    where = printable(".".join(str(part) for part in faults[0]["loc"]))
    if all(fault["type"] == "extra_forbidden" for fault in faults):
        raise Newer(f"{path}: does not fit schema {version}: '{where}' is not known here: update backbench, or give "
                    "another --out; this file stays as it is")  # fmt: skip
    raise Broken(f"{path}: does not fit schema {version}: '{where}': {printable(faults[0]['msg'])}")


def plain_json(path: Path, *, limit: int = _LARGEST) -> Any:
    """Return the plain values of a JSON file.

    Raises:
        Broken: it is not JSON, nests deeply, or has a number or text that cannot be shown.
        BackbenchError: it is not a regular file, or has more than `limit` bytes.
    """
    data = read_bytes(path, limit=limit)
    try:
        values = json.loads(data.decode("utf-8-sig"))
        _refuse_unusable(values)
    except (ValueError, RecursionError) as error:  # a UnicodeDecodeError and a number of 5,000 digits are ValueErrors
        reason = "nested too deeply" if isinstance(error, RecursionError) else printable(error)
        raise Broken(f"{path}: not a readable result file ({reason})") from None
    return values


def _refuse_unusable(values: Any) -> None:
    """Raise ValueError for JSON that cannot be shown: deep nesting, numbers beyond 64 bits, lone surrogates."""
    level = [values]
    for _ in range(_DEEPEST):
        below: list[Any] = []
        for value in level:
            if isinstance(value, str):
                value.encode()
            elif isinstance(value, int) and abs(value) >= 2**63:
                raise ValueError("a whole number of more than 64 bits")
            elif isinstance(value, dict):
                below += [*value, *value.values()]
            elif isinstance(value, list):
                below += value
        level = below
        if not level:
            return
    raise RecursionError


def fault(result: Result) -> str | None:
    """Return why a record marked `ok` does not count (its headline is missing or impossible), or None."""
    if result.status != "ok":
        return None
    if result.data is None or result.provenance is None:
        return f"it does not say on which {'data' if result.data is None else 'machine'} it was measured"
    if not {"train", "test"} <= set(result.data.counts):
        return "it does not say how many images there were"
    if few := [role for role in ("train", "test") if result.data.counts[role] < 1]:
        return f"it says that there were {result.data.counts[few[0]]} {few[0]} images"
    if result.primary is None or result.primary not in result.metrics:
        there = ", ".join(sorted(result.metrics)) or "nothing"
        if result.primary is None:
            return f"it does not say which number is its headline (it has {printable(there)})"
        return f"it has no '{result.primary}', its headline (it has {printable(there)})"
    return impossible(result.primary, result.metrics[result.primary])


def impossible(name: str, metric: MetricRecord) -> str | None:
    """Return why a metric's value cannot be right (not finite, or out of range), or None."""
    low, high = (0.0, 100.0) if metric.unit == "%" else _BOUNDS.get(name, (-math.inf, math.inf))
    if not math.isfinite(metric.value):
        return f"{printable(name)} is {metric.value}"
    if not low - _ROUNDING <= metric.value <= high + _ROUNDING:
        return f"{printable(name)} is {metric.value:.6g}{printable(metric.unit)}, which no measurement can give"
    return None


@dataclass(frozen=True)
class Found:
    """The contents of several files."""

    records: dict[Path, Result]
    left_out: tuple[str, ...]  # files without a record or with a repeated one, each with the reason


def scan(files: Iterable[Path]) -> Found:
    """Read the records of files; an unsound `ok` record becomes a failed one, and a repeated measurement counts once."""
    records: dict[Path, Result] = {}
    left_out: list[str] = []
    kept: dict[tuple[str, str], Path] = {}
    for path in files:
        try:
            result = read(path)
        except BackbenchError as error:
            left_out.append(f"left out: {error}")
            continue
        if why := fault(result):
            result = without_number(result, f"{why}: run the command again to measure it again")
        sound = {name: metric for name, metric in result.metrics.items() if impossible(name, metric) is None}
        if len(sound) < len(result.metrics):  # the headline is sound, other metrics are not
            left_out.append(
                f"left out: {path}: {', '.join(sorted(set(result.metrics) - set(sound)))}, which cannot be right"
            )
            result = result.model_copy(update={"metrics": sound})
        key = (result.backbone.name, result.identity())  # one row per name
        if result.status == "ok" and (first := kept.setdefault(key, path)) != path:
            same = _numbers(result) == _numbers(records[first])
            left_out.append(
                f"counted once: {path} is the measurement of {first}" + ("" if same else ", with other numbers")
            )
            continue
        records[path] = result
    return Found(records, tuple(left_out))


def without_number(result: Result, reason: str) -> Result:
    """Turn an unsound record marked `ok` into a failed one."""
    return result.model_copy(update={"status": "failed", "reason": reason, "metrics": {}, "primary": None})


def _numbers(result: Result) -> dict[str, float]:
    return {name: metric.value for name, metric in result.metrics.items()}
