"""Per-class numbers and confusions of a cell, from the arrays that its records store per class and per test item."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from backbench.data import catalogue
from backbench.errors import BackbenchError
from benchmarks.records.schema import Result
from benchmarks.report.scores import Scores
from benchmarks.report.table import Column, Row

_MOST_CLASSES = 20
_MOST_CONFUSED = 12  # pairs that stand for a confusion matrix too large to show
_ARRAYS = {"per_class_top1": "top1", "per_class_AP": "AP", "per_class_IoU": "IoU"}


@dataclass(frozen=True)
class PerClass:
    """A number for each class and backbone, in percent."""

    metric: str
    classes: tuple[str, ...]
    backbones: tuple[str, ...]
    numbers: tuple[tuple[float | None, ...], ...]  # a line per class; None: the test split has none of the class
    of: int  # classes of the data; more than shown where the backbones differ most in these


@dataclass(frozen=True)
class Confusion:
    """How often a backbone's headline answer to images of a class was another class, in percent of the class."""

    backbone: str
    classes: tuple[str, ...]
    shares: tuple[tuple[float, ...], ...]  # true class, answer; empty for many classes
    pairs: tuple[tuple[str, str, float], ...]  # the most frequent (true class, answer, percent)


def per_class(rows: Sequence[Row], column: Column, scores: Scores) -> PerClass | None:
    """Return the numbers of each class, a backbone's mean over its records; None where no array is stored."""
    found: dict[str, np.ndarray] = {}
    metrics = set()
    names: tuple[str, ...] = ()
    for row in rows:
        for array, metric in _ARRAYS.items():
            stored = [each[0] for r in row.values[column].records if (each := scores.arrays(r, array))]
            if stored and len({each.shape for each in stored}) == 1 and stored[0].ndim == 1:
                found[row.label] = np.mean(stored, axis=0)
                metrics.add(metric)
                names = names or class_names(row.values[column].records[0], len(stored[0]))
    if not found or len(metrics) > 1 or len({len(each) for each in found.values()}) > 1:
        return None
    numbers = np.stack(list(found.values()), axis=1)  # (classes, backbones)
    shown = _telling(numbers)
    return PerClass(
        metrics.pop(),
        tuple(names[place] for place in shown),
        tuple(found),
        tuple(tuple(float(n) if np.isfinite(n) else None for n in numbers[place]) for place in shown),
        len(names),
    )


def confusions(rows: Sequence[Row], column: Column, scores: Scores) -> list[Confusion]:
    """Return a confusion for each backbone with stored answers, over all of its records."""
    made = []
    for row in rows:
        found = [each for record in row.values[column].records if (each := _answers(record, scores)) is not None]
        if found:
            labels, answers = (np.concatenate(side) for side in zip(*found, strict=True))
            made.append(_confusion(row, column, labels, answers))
    return made


def _confusion(row: Row, column: Column, labels: np.ndarray, answers: np.ndarray) -> Confusion:
    record = row.values[column].records[0]
    stated = record.data.counts.get("classes", 0) if record.data else 0
    classes = max(stated, int(labels.max()) + 1, int(answers.max()) + 1)
    codes, counts = np.unique(labels * classes + answers, return_counts=True)
    pairs = [divmod(code, classes) for code in codes.tolist()]
    totals = Counter(labels.tolist())
    shares = {pair: 100 * n / totals[pair[0]] for pair, n in zip(pairs, counts.tolist(), strict=True)}
    wrong = sorted((pair for pair in shares if pair[0] != pair[1]), key=lambda pair: (-shares[pair], pair))
    whole = range(classes if classes <= _MOST_CLASSES else 0)
    names = class_names(record, classes) if whole else ()

    def name(place: int) -> str:
        return names[place] if names else f"class {place}"

    return Confusion(
        row.label,
        names,
        tuple(tuple(shares.get((true, answer), 0.0) for answer in whole) for true in whole),
        tuple((name(true), name(answer), shares[true, answer]) for true, answer in wrong[:_MOST_CONFUSED]),
    )


def class_names(record: Result, count: int) -> tuple[str, ...]:
    """Return the classes' names where the record or the layout has them, else `class 0` and so on."""
    for tuned in record.task.tuned.values():
        if isinstance(tuned, dict) and len(tuned) == count and not any(_is_number(name) for name in tuned):
            return tuple(map(str, tuned))
    return _of_layout(record, count) or tuple(f"class {place}" for place in range(count))


def _of_layout(record: Result, count: int) -> tuple[str, ...] | None:
    """Return the names that the data set's layout states, or None."""
    try:
        names = getattr(catalogue.layout_of(record.data.name), "CLASSES", None) if record.data else None
    except BackbenchError:  # data of another machine
        return None
    return names if isinstance(names, tuple) and len(names) == count else None


def _is_number(word: object) -> bool:
    try:
        float(str(word))
    except ValueError:
        return False
    return True


def _telling(numbers: np.ndarray) -> list[int]:
    """Return the classes to show, in order: all of a few, else those in which the backbones differ most."""
    if len(numbers) <= _MOST_CLASSES:
        return list(range(len(numbers)))
    whole = np.nan_to_num(numbers)
    spread = whole.std(axis=1) if whole.shape[1] > 1 else -whole[:, 0]  # of one backbone: its worst classes
    return sorted(np.argsort(-spread, kind="stable")[:_MOST_CLASSES].tolist())


def _answers(record: Result, scores: Scores) -> tuple[np.ndarray, np.ndarray] | None:
    """Return (N,) labels and headline answers, or None where they are not stored or not whole numbers from 0."""
    found = scores.arrays(record, "labels", "best")
    if found is None:
        return None
    labels, best = found
    if best.ndim != 2 or labels.shape != best.shape[:1] or {labels.dtype.kind, best.dtype.kind} - set("iu"):
        return None
    labels, answers = labels.astype(np.int64), best[:, 0].astype(np.int64)
    return (
        (labels, answers)
        if min(labels.min(), answers.min()) >= 0 and max(labels.max(), answers.max()) < 2**31
        else None
    )
