"""Keep the intervals of a report in a file beside the results, under the hashes of all that they are computed from.

Nothing else decides an interval: the arrays per test item, the records' numbers, the metric and the resamples. Other inputs
have another key, so an old file does no harm; a damaged one is not used. Every failure to keep one costs time only.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from backbench.config import digest
from backbench.errors import BackbenchError
from backbench.files import read_bytes
from backbench.progress import say
from benchmarks.records.schema import Result
from benchmarks.report import paired
from benchmarks.report.paired import RESAMPLED, Interval
from benchmarks.report.scores import SEED, Items, Scores

FILE = ".intervals"  # in the folder of results
_VERSION = 2  # raise it when the same inputs would give another interval
_MOST = 100_000  # intervals of a file; each takes some 150 bytes
_LARGEST = 2**26  # bytes of the file


def folder_of(paths: Iterable[Path]) -> Path | None:
    """Return the folder that keeps the intervals of a comparison of these results: the first folder, if there is one."""
    return next((path for path in paths if path.is_dir()), None)


class Intervals:
    """Intervals of differences: from the file where it has them, else computed. `save` writes the new ones."""

    def __init__(self, items: Items, resamples: int, folder: Path | None = None) -> None:
        """Read the folder's file, if there is one.

        Args:
            items: the files of arrays per test item, by the record's identity.
            folder: where intervals are kept; None keeps none.
        """
        self._scores, self._resamples = Scores(items), resamples
        self._file = folder / FILE if folder is not None else None
        self._kept = _read(self._file) if self._file is not None else {}
        self._used: dict[str, Interval] = {}
        self._is_changed = False

    def between(self, mine: Sequence[Result], other: Sequence[Result], metric: str) -> Interval | str:
        """Return the interval of (mine - other), or the reason for a missing one: see `paired.interval`."""
        key = self._key(mine, other, metric)
        found = self._found(key)
        if found is None and metric in RESAMPLED and (back := self._found(self._key(other, mine, metric))):
            found = Interval(0.0 - back.high, 0.0 - back.low, back.items, back.resamples, back.p, back.error)
        if found is None:
            made = paired.interval(mine, other, metric, self._scores, resamples=self._resamples)
            key = self._key(mine, other, metric)  # of the arrays as they were read: a file may have changed
            if isinstance(made, str) or key is None:
                return made
            found, self._is_changed = made, True
        self._used[str(key)] = found
        return found

    def _found(self, key: str | None) -> Interval | None:
        return (self._used.get(key) or self._kept.get(key)) if key else None

    def save(self) -> None:
        """Write the file if there are new intervals: those that were used, and before them others, the latest last."""
        from backbench.files.atomic import atomic_write

        if self._file is None or not self._is_changed:
            return
        others = [pair for pair in self._kept.items() if pair[0] not in self._used]
        pairs = [*others, *self._used.items()][-_MOST:]
        body = json.dumps({key: dataclasses.astuple(interval) for key, interval in pairs}).encode()
        try:
            atomic_write(self._file, lambda file: file.write(_checksum(body) + b"\n" + body))
        except (BackbenchError, OSError) as error:
            say(f"the intervals are not kept for the next report: {error}")
        self._is_changed = False

    def _key(self, mine: Sequence[Result], other: Sequence[Result], metric: str) -> str | None:
        """Hash everything that decides an interval; None where arrays are absent."""
        sides = [[self._inputs(record, metric) for record in side] for side in (mine, other)]
        if any(inputs is None for side in sides for inputs in side):
            return None
        constants = [_VERSION, np.__version__, SEED, paired.LEVEL, paired.AP_RESAMPLES, self._resamples]
        return digest([*constants, metric, sides])

    def _inputs(self, record: Result, metric: str) -> list[object] | None:
        arrays = self._scores.hash_of(record)
        if arrays is None:
            return None
        manifest = record.data.manifest_sha256 if record.data else None
        protocol = record.task.config.get("difficult_test")
        number = record.metrics[metric].value
        return [arrays, record.backbone.weights_sha256, manifest, record.primary, protocol, number]


def _read(file: Path) -> dict[str, Interval]:
    """Return the intervals in a file by their keys; none if it is absent or damaged."""
    try:
        data = read_bytes(file, limit=_LARGEST)
    except BackbenchError:
        return {}
    checksum, _, body = data.partition(b"\n")
    if checksum != _checksum(body):
        say(f"computing the intervals again: {file} is damaged")
        return {}
    return {key: Interval(*numbers) for key, numbers in json.loads(body).items()}


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(b"%d %b" % (_VERSION, body)).hexdigest().encode()
