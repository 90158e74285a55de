"""Paired bootstrap over test items: how much a difference of two rows depends on the choice of test images."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from backbench.errors import BackbenchError
from backbench.files import read_bytes
from benchmarks.records.schema import Result
from transfer.metrics import area_ap, class_aps, resampled_area_aps

LEVEL = 0.95
RESAMPLES = 10_000
AP_RESAMPLES = 2_000  # the most for average precisions: each is a pass over all scores
SEED = 0
_LARGEST = 2**31  # bytes of a record's scores; ImageNet's have about 10**6
_CHUNK = 50  # resamples of average precisions at a time: bounds the memory

Items = Mapping[str, Path]  # files of arrays per test item, by the record's identity


@dataclass(frozen=True)
class Interval:
    """Percentile interval of a difference; it does not include the spread of seeds or pretrainings."""

    low: float
    high: float
    items: int
    resamples: int


class _No(Exception):
    """The reason that an interval is missing."""


def interval(
    mine: Sequence[Result], other: Sequence[Result], metric: str, items: Items, *, resamples: int = RESAMPLES
) -> Interval | str:
    """Return the interval of (mine - other) in the metric's unit, or the reason for a missing one.

    Test items are drawn with replacement, the same ones for both sides; a side of several records enters by its mean, each
    backbone once, as in the tables. The draws are the same on every call.
    """
    try:
        _refuse_other_data([*mine, *other], items)
        if metric == "mAP":
            return _of_average_precision(mine, other, items, min(resamples, AP_RESAMPLES))
        scores = [_mean_correct(side, metric, items) for side in (mine, other)]
        return _of_means(scores[0] - scores[1], resamples)
    except _No as reason:
        return str(reason)


def _refuse_other_data(records: Sequence[Result], items: Items) -> None:
    if len({r.data.manifest_sha256 for r in records if r.data}) > 1:
        raise _No("measured on different data")
    first, *others = [_load(record, items, "labels")[0] for record in records]
    if not all(np.array_equal(first, labels) for labels in others):
        raise _No("the stored labels differ: measure again")


def _of_means(difference_N: np.ndarray, resamples: int) -> Interval:
    """Draw how many items of each difference: the same as drawing the items, since equal differences are alike."""
    values, counts = np.unique(difference_N.round(9), return_counts=True)
    n = len(difference_N)
    drawn = np.random.default_rng(SEED).multinomial(n, counts / n, size=resamples) @ values / n
    return _percentiles(drawn, n, resamples)


def _percentiles(drawn: np.ndarray, n: int, resamples: int) -> Interval:
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high), n, resamples)


def _weights(records: Sequence[Result]) -> list[float]:
    """Return each record's weight in its side's mean: equal for every backbone, and for every seed of a backbone."""
    backbones = [record.backbone.weights_sha256 for record in records]
    return [1 / (len(set(backbones)) * backbones.count(sha)) for sha in backbones]


def _load(record: Result, items: Items, *names: str) -> list[np.ndarray]:
    path = items.get(record.identity())
    if path is None or not path.exists():
        raise _No("no scores per test item are stored")
    try:
        data = io.BytesIO(read_bytes(path, limit=_LARGEST))
        with np.load(data, allow_pickle=False) as stored:
            if not set(names) <= set(stored.files):
                raise _No("no scores per test item are stored for this metric")
            if sum(member.file_size for member in stored.zip.infolist()) > _LARGEST:
                raise ValueError("unpacks to more than any record's scores")
            return [_numbers(stored[name]) for name in names]
    except (BackbenchError, OSError, ValueError, EOFError, MemoryError, NotImplementedError, zlib.error,
            zipfile.BadZipFile):  # fmt: skip
        raise _No(f"{path.name} of {record.backbone.name} cannot be read: measure it again") from None


def _numbers(array: object) -> np.ndarray:
    """Raise ValueError unless it is an array of rows of numbers."""
    if (
        not isinstance(array, np.ndarray)
        or array.dtype.kind not in "iufb"
        or array.ndim not in (1, 2)
        or not array.size
    ):
        raise ValueError("no rows of numbers")
    return array


def _refuse_other_form(fits: bool, record: Result) -> None:
    if not fits:
        raise _No(f"the stored scores of {record.backbone.name} do not fit their labels: measure it again")


def _mean_correct(records: Sequence[Result], metric: str, items: Items) -> np.ndarray:
    """Return (N,) the percentage of the side's records that are right about each item."""
    total = 0.0
    for record, weight in zip(records, _weights(records), strict=True):
        best, labels = _load(record, items, "best", "labels")
        _refuse_other_form(best.ndim == 2 and labels.shape == best.shape[:1], record)
        if metric == "top5":
            right = (best == labels[:, None]).any(axis=1)
        elif metric == record.primary:
            right = best[:, 0] == labels
        else:
            raise _No("no scores per test item are stored for this metric")
        _check(100 * right.mean(), record, metric, 1e-6)
        total = total + weight * 100.0 * right
    return np.asarray(total)


def _check(found: float, record: Result, metric: str, tolerance: float) -> None:
    if not abs(found - record.metrics[metric].value) <= tolerance:  # NaN is not
        raise _No("the stored scores are not those of the number: measure it again")


def _of_average_precision(
    mine: Sequence[Result], other: Sequence[Result], items: Items, resamples: int
) -> Interval | str:
    """Return the mean AP over classes of each resample; a class without a positive in a resample does not count there."""
    weighted = [
        (sign * weight, *_scores(record, items))
        for sign, side in ((1, mine), (-1, other))
        for record, weight in zip(side, _weights(side), strict=True)
    ]
    n = len(weighted[0][1])
    generator = np.random.default_rng(SEED)
    drawn = []
    for start in range(0, resamples, _CHUNK):
        rows = min(_CHUNK, resamples - start)
        draws = generator.integers(n, size=(rows, n))
        times = np.stack([np.bincount(draw, minlength=n) for draw in draws], axis=1, dtype=np.int32)
        drawn.append(sum(weight * _mean_ap(scores, truth, times) for weight, scores, truth in weighted))
    return _percentiles(np.concatenate(drawn), n, resamples)


def _scores(record: Result, items: Items) -> tuple[np.ndarray, np.ndarray]:
    """Return (N, K) scores and labels: 1 present, -1 absent, 0 not counted."""
    scores, labels = _load(record, items, "scores", "labels")
    _refuse_other_form(scores.ndim == 2 and labels.shape == scores.shape, record)
    if record.task.config.get("difficult_test") == "negative":
        labels = np.where(labels == 0, -1, labels)
    _check(100 * class_aps(area_ap, scores, labels).mean(), record, "mAP", 1e-3)
    return scores, labels


def _mean_ap(scores_NK: np.ndarray, labels_NK: np.ndarray, times_NR: np.ndarray) -> np.ndarray:
    """Return (R,) mean AP in percent."""
    each = []
    for scores, labels in zip(scores_NK.T, labels_NK.T, strict=True):
        counted = labels != 0
        each.append(resampled_area_aps(scores[counted], labels[counted] == 1, times_NR[counted]))
    return 100 * np.nanmean(each, axis=0)
