"""Read the arrays per test item that lie beside records, and what they say about each item."""

from __future__ import annotations

import functools
import hashlib
import io
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import sparse

from backbench.errors import BackbenchError
from backbench.files import read_bytes
from backbench.files.hashes import file_sha256
from benchmarks.records.schema import Result
from transfer.metrics import ResampledAreaAp, area_ap, class_aps

SEED = 0
_LARGEST = 2**31  # bytes of a record's arrays; ImageNet's have about 10**6
_CHUNK = 50  # resamples of average precisions at a time: bounds the memory
_DRAWS = 2**24  # the most numbers of drawn items that are kept for the next record
_RECENT = 64  # records whose answers stay in memory: a baseline is compared with every row

Items = Mapping[str, Path]  # files of arrays per test item, by the record's identity


class NoScores(Exception):
    """The reason that a record's arrays cannot be used."""


@dataclass(frozen=True)
class Answers:
    """What a record's arrays say."""

    labels: np.ndarray  # (N,) or (N, K), as stored; for masks the true pixels of each class
    values: np.ndarray  # (N,) whether each item is right; or (R,) the metric in percent of each resample of the items:
    # the mean over classes of average precisions, of intersections over unions, or of shares that are right


class Scores:
    """The arrays of records, with the hash of each file as it was last read."""

    def __init__(self, items: Items) -> None:
        self._items = {identity: path for identity, path in items.items() if path.exists()}
        self._identities: dict[
            int, tuple[Result, str]
        ] = {}  # hashing a record takes longer than all else without a file
        self._hashes: dict[Path, str] = {}
        self._recent: dict[tuple[str, str, int], Answers] = {}

    def hash_of(self, record: Result) -> str | None:
        """Return the SHA-256 of the record's file, as it was last read; None if there is none to read."""
        path = self._path(record)
        if path is None:
            return None
        if path not in self._hashes:
            try:
                self._hashes[path] = file_sha256(path)
            except BackbenchError:
                return None
        return self._hashes[path]

    def answers(self, record: Result, metric: str, resamples: int) -> Answers:
        """Return what the record's arrays say about a metric.

        Args:
            resamples: of the items, for average precisions.

        Raises:
            NoScores: the arrays are absent, damaged, of another metric, or not those of the record's number.
        """
        if not self._items:
            raise NoScores("no scores per test item are stored")
        key = (self._identity(record), metric, resamples)
        found = self._recent.pop(key, None) or self._answers(record, metric, resamples)
        self._recent[key] = found
        if len(self._recent) > _RECENT:
            del self._recent[next(iter(self._recent))]
        return found

    def arrays(self, record: Result, *names: str) -> list[np.ndarray] | None:
        """Return stored arrays of a record, a row per test item or class; None where one is absent or damaged."""
        path = self._path(record)
        if path is None or not path.exists():
            return None
        try:
            return self._arrays(record, path, *names)
        except NoScores:
            return None

    def _path(self, record: Result) -> Path | None:
        return self._items.get(self._identity(record)) if self._items else None

    def _identity(self, record: Result) -> str:
        known = self._identities.get(id(record))
        if known is None or known[0] is not record:
            known = self._identities[id(record)] = record, record.identity()
        return known[1]

    def _answers(self, record: Result, metric: str, resamples: int) -> Answers:
        path = self._path(record)
        if path is None or not path.exists():
            raise NoScores("no scores per test item are stored")
        part = _part(metric, record)
        if not part and metric not in ("mAP", "mIoU", "top1", "top5", "mean_per_class", record.primary):
            raise NoScores("no scores per test item are stored for this metric")
        if metric == "mAP":
            scores, labels = self._arrays(record, path, "scores", "labels")
            return Answers(labels, _resampled(scores, _counted(record, scores, labels), resamples))
        if metric == "mIoU":
            shared, union, truth = self._arrays(record, path, "intersection", "union", "truth")
            return Answers(truth, _class_ious(record, shared, union, resamples))
        best, labels = self._arrays(record, path, f"best{part}", f"labels{part}")
        right = _right(record, metric, best, labels)
        return Answers(labels, _class_means(right, labels, resamples) if metric == "mean_per_class" else right)

    def _arrays(self, record: Result, path: Path, *names: str) -> list[np.ndarray]:
        try:
            data = read_bytes(path, limit=_LARGEST)
            self._hashes[path] = hashlib.sha256(data).hexdigest()
            with np.load(io.BytesIO(data), allow_pickle=False) as stored:
                if not set(names) <= set(stored.files):
                    raise NoScores("no scores per test item are stored for this metric")
                if sum(member.file_size for member in stored.zip.infolist()) > _LARGEST:
                    raise ValueError("unpacks to more than any record's scores")
                return [_numbers(stored[name]) for name in names]
        except (BackbenchError, OSError, ValueError, EOFError, MemoryError, NotImplementedError, zlib.error,
                zipfile.BadZipFile):  # fmt: skip
            raise NoScores(f"{path.name} of {record.backbone.name} cannot be read: measure it again") from None


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


def _part(metric: str, record: Result) -> str:
    """Return the end of the arrays' names for a metric of a further test set, `_v2` for `top1_v2`; empty for others."""
    name = metric.removeprefix("top1_")
    return f"_{name}" if name != metric and record.data and name in record.data.counts else ""


def _right(record: Result, metric: str, best: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return (N,) bool: whether a label is the best class, or one of the best five for `top5`."""
    several = labels.ndim == 2 and metric.startswith("top1_")  # of an image, filled up with -1
    _refuse_other_form(best.ndim == 2 and labels.shape[:1] == best.shape[:1] and (several or labels.ndim == 1), record)
    truth = labels if several else labels[:, None]
    right = ((best if metric == "top5" else best[:, :1]) == truth).any(axis=1)
    _check(100 * _mean(right, labels, metric), record, metric, 1e-6)
    return np.asarray(right)


def _mean(right: np.ndarray, labels: np.ndarray, metric: str) -> float:
    """Return the share of right items, or for `mean_per_class` its mean over the classes that occur."""
    if metric != "mean_per_class":
        return float(right.mean())
    return float(np.mean([right[labels == label].mean() for label in np.unique(labels)]))


def _counted(record: Result, scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return (N, K) labels for the record's protocol: 1 present, -1 absent, 0 not counted."""
    _refuse_other_form(scores.ndim == 2 and labels.shape == scores.shape, record)
    truth = np.where(labels == 0, -1, labels) if record.task.config.get("difficult_test") == "negative" else labels
    _check(100 * class_aps(area_ap, scores, truth).mean(), record, "mAP", 1e-3)
    return truth


def _refuse_other_form(fits: bool, record: Result) -> None:
    if not fits:
        raise NoScores(f"the stored scores of {record.backbone.name} do not fit their labels: measure it again")


def _check(found: float, record: Result, metric: str, tolerance: float) -> None:
    if not abs(found - record.metrics[metric].value) <= tolerance:  # NaN is not
        raise NoScores("the stored scores are not those of the number: measure it again")


def _resampled(scores_NK: np.ndarray, labels_NK: np.ndarray, resamples: int) -> np.ndarray:
    """Return (R,) mean AP over classes in percent; a class without a positive in a resample does not count there."""
    n = len(labels_NK)
    columns = zip(scores_NK.T, labels_NK.T, strict=True)
    aps = [ResampledAreaAp(scores, labels == 1, labels != 0) for scores, labels in columns]
    kept = _kept_draws if n * resamples <= _DRAWS else draws
    return np.concatenate([100 * np.nanmean([ap(times) for ap in aps], axis=0) for times in kept(n, resamples)])


def _class_means(right_N: np.ndarray, labels_N: np.ndarray, resamples: int) -> np.ndarray:
    """Return (R,) mean over classes of the share that is right, in percent; a class that is not drawn does not count."""
    classes, of_class = np.unique(labels_N, return_inverse=True)
    n = len(labels_N)
    members_CN = sparse.csr_array((np.ones(n), (of_class, np.arange(n))), shape=(len(classes), n))
    right_CN = sparse.csr_array((right_N.astype(float), (of_class, np.arange(n))), shape=(len(classes), n))
    means = []
    for times_NR in draws(n, resamples):
        counts = members_CN @ times_NR
        shares = np.where(counts > 0, (right_CN @ times_NR) / np.maximum(counts, 1), np.nan)
        means.append(100 * np.nanmean(shares, axis=0))
    return np.concatenate(means)


def _class_ious(record: Result, shared_NC: np.ndarray, union_NC: np.ndarray, resamples: int) -> np.ndarray:
    """Return (R,) mIoU in percent of each resample of the images; a class that does not occur there does not count."""
    _refuse_other_form(shared_NC.ndim == 2 and shared_NC.shape == union_NC.shape, record)
    shared_CN, union_CN = shared_NC.T.astype(float), union_NC.T.astype(float)

    def mean_iou(times_NR: np.ndarray) -> np.ndarray:
        union = union_CN @ times_NR
        shares = np.where(union > 0, (shared_CN @ times_NR) / np.maximum(union, 1), np.nan)
        return 100 * np.asarray(np.nanmean(shares, axis=0))

    _check(float(mean_iou(np.ones((len(shared_NC), 1)))[0]), record, "mIoU", 1e-6)
    return np.concatenate([mean_iou(times_NR) for times_NR in draws(len(shared_NC), resamples)])


def draws(n: int, resamples: int) -> Iterator[np.ndarray]:
    """Yield (N, R) how often each of n items is in each resample, some resamples at a time; the same on every call."""
    generator = np.random.default_rng(SEED)
    for start in range(0, resamples, _CHUNK):
        drawn = generator.integers(n, size=(min(_CHUNK, resamples - start), n))
        yield np.stack([np.bincount(items, minlength=n) for items in drawn], axis=1, dtype=np.int32)


@functools.lru_cache(maxsize=1)
def _kept_draws(n: int, resamples: int) -> list[np.ndarray]:
    return list(draws(n, resamples))
