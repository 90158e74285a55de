"""What makes a record fit for a public board. The same checks run before it is submitted and where the board is built."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence

from backbench.config import build, digest
from backbench.data import catalogue
from backbench.errors import BackbenchError
from backbench.printable import printable
from benchmarks import plan
from benchmarks.records.reading import fault, impossible
from benchmarks.records.schema import Result
from transfer.protocol import TaskConfig

_SHA256 = re.compile(r"[0-9a-f]{64}")


def unfit(result: Result) -> str | None:
    """Return why an honest record has no place on a board (no number, a rehearsal, other data), or None."""
    if result.status != "ok":
        return f"it is {result.status}: {printable(result.reason or 'no reason recorded')}"
    if result.profile != "full":
        return "it is a rehearsal"
    if result.data is not None and (result.data.is_demo or not result.data.is_published):
        return "it was not measured on the published data set, so nobody else's number can be compared with it"
    return None


def wrong(result: Result) -> str | None:
    """Return the first contradiction in a record, in one clause, or None."""
    checks: tuple[Callable[[Result], str | None], ...] = (fault, _metrics, _hashes, _protocol, _data)
    return next((why for check in checks if (why := check(result))), None)


def contradiction(results: Sequence[Result]) -> str | None:
    """Return how records of one backbone contradict each other: other weights under one seed, or other data; or None."""
    manifests: dict[tuple[str, str, str], str] = {}
    seen: set[str] = set()
    for result in results:
        if result.identity() in seen:
            return f"{result.cell} seed {result.seed} is given twice"
        seen.add(result.identity())
        if result.data is None:
            continue
        key = result.data.name, result.data.train, result.data.test
        if manifests.setdefault(key, result.data.manifest_sha256) != result.data.manifest_sha256:
            return f"two data manifests for {result.data.name}: its images differ between two of the records"
    return None


def _metrics(result: Result) -> str | None:
    return next((why for name, metric in result.metrics.items() if (why := impossible(name, metric))), None)


def _hashes(result: Result) -> str | None:
    manifest = result.data.manifest_sha256 if result.data else ""
    for what, value in (("hash of the weights", result.backbone.weights_sha256), ("data manifest", manifest)):
        if not _SHA256.fullmatch(value):
            return f"its {what} is not a SHA-256"
    return None


def _protocol(result: Result) -> str | None:
    """Compare the record's protocol with this program's: task, version, fields, hash of the fields, headline."""
    try:
        cell = _cell(result.cell)
        task = cell.task
        if result.task.name != cell.task_name:
            return f"{result.cell} is measured by task {cell.task_name}, not by the record's"
        if result.task.version != task.version:
            return (f"it was measured by version {result.task.version} of {cell.task_name}, and this program has version "
                    f"{task.version}: measure it again")  # fmt: skip
        config: TaskConfig = build(task.Config, result.task.config, where="its configuration")
    except BackbenchError as error:
        return str(error)
    if digest(config.identity()) != result.task.config_sha256:
        return "its configuration is not the one that its hash was made of"
    if config.data.limit or config.data.name != cell.config.data.name:
        return "it used other images than the cell's"
    if result.primary != task.primary(config):
        return f"its headline is not '{task.primary(config)}', the protocol's"
    return None


@functools.lru_cache(maxsize=256)
def _cell(name: str) -> plan.Cell:
    return plan.load_cell(name)


def _data(result: Result) -> str | None:
    """Compare the counts of images with the published ones."""
    data = result.data
    assert data is not None, "`fault` finds a record without data"
    known = catalogue.info(_cell(result.cell).config.data.name)
    if data.name != _cell(result.cell).config.data.name:
        return f"its data are not those of {result.cell}"
    published = known.counts.get(data.test)
    expected = {"test": set() if published is None else {published}, "classes": known.class_counts()}
    for role, counts in expected.items():
        if counts and data.counts.get(role) not in counts:
            return (
                f"it says {data.counts.get(role)} {role} where {data.name} has {' or '.join(map(str, sorted(counts)))}"
            )
    return None
