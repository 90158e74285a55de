"""Diagnostics that follow from several metrics of a record, or from several backbones."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.records.schema import MetricRecord, Result


def with_derived(records: Sequence[Result]) -> list[Result]:
    """Return the records with `alpha_req_gap` and `clid` beside the metrics that they follow from.

    `alpha_req_gap` is |alpha - 1|: alpha-ReQ's paper finds the best backbones at 1 (Agrawal et al. 2022). `clid` is
    cluster learnability + intrinsic dimension, each standardised over the records of one cell (Lu et al. 2023).
    """
    parts = ("cluster_learnability", "intrinsic_dimension")
    groups: dict[tuple[Any, ...], list[Result]] = {}
    for record in records:
        if record.task.name == "diagnostics" and set(parts) <= set(record.metrics):
            groups.setdefault(_measured_alike(record), []).append(record)
    scales = {key: [_mean_and_spread(group, part) for part in parts] for key, group in groups.items()}
    found = []
    for record in records:
        metrics: dict[str, MetricRecord] = dict(record.metrics)
        if "alpha_req" in metrics:
            gap = abs(metrics["alpha_req"].value - 1)
            metrics["alpha_req_gap"] = MetricRecord(value=gap, unit="", higher_is_better=False)
        scale = scales.get(_measured_alike(record)) if set(parts) <= set(metrics) else None
        if scale is not None and all(spread > 0 for _, spread in scale):
            standardised = [
                (metrics[part].value - mean) / spread for part, (mean, spread) in zip(parts, scale, strict=True)
            ]
            metrics["clid"] = MetricRecord(value=sum(standardised), unit="", higher_is_better=True)
        found.append(record.model_copy(update={"metrics": metrics}))
    return found


def _measured_alike(record: Result) -> tuple[Any, ...]:
    task, data = record.task, record.data
    return record.cell, record.profile, task.version, task.config_sha256, data and data.manifest_sha256


def _mean_and_spread(records: Sequence[Result], metric: str) -> tuple[float, float]:
    values = [record.metrics[metric].value for record in records]
    return statistics.fmean(values), statistics.pstdev(values)
