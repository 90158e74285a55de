"""Build records and arrays per test item; read Markdown tables."""

from __future__ import annotations

import re

import numpy as np
import pytest
from made_records import make_absent, make_record

from benchmarks.records import store
from benchmarks.report import paired
from benchmarks.report.scores import Scores
from transfer.metrics import area_ap, class_aps

N = 400  # test items of `draws`


def read_tables(text):
    """Markdown tables as lists of rows of cells."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        found.append([[c.strip() for c in line.strip("|").split("|")] for line in block.strip().splitlines()])
    return found


def draw_items(seed, *shares):
    generator = np.random.default_rng(seed)
    return [generator.random(N) < share for share in shares]


class Shelf:
    """Records with arrays per test item on the disk."""

    def __init__(self, root):
        self.root, self.items = root, {}

    def put(self, record, arrays):
        self.items[record.identity()] = store.items_path(store.write(self.root, record, arrays))
        return record

    def top1(self, right, **fields):
        """Store a record that is right about these items (bool)."""
        best = np.where(right, 1, 2).astype(np.int32)[:, None]
        value = 100.0 * float(np.mean(right))
        return self.put(make_record(value, **fields), {"best": best, "labels": np.ones(len(right), np.int32)})

    def svm(self, scores, labels, **fields):
        value = 100 * float(class_aps(area_ap, scores, labels).mean())
        record = make_record(value, metric="mAP", cell="voc07_svm", **fields)
        return self.put(record, {"scores": scores.astype(np.float32), "labels": labels})

    def interval(self, mine, other, metric="top1", resamples=2000):
        return paired.interval(mine, other, metric, Scores(self.items), resamples=resamples)


@pytest.fixture
def make():
    """A record with a number."""
    return make_record


@pytest.fixture
def absent():
    """A record without one."""
    return make_absent


@pytest.fixture
def tables():
    """Markdown tables as lists of rows of cells."""
    return read_tables


@pytest.fixture
def draws():
    """N items, each right with the given share: one array for each share."""
    return draw_items


@pytest.fixture
def shelf(tmp_path):
    """Records with arrays per test item, on the disk."""
    return Shelf(tmp_path / "shelf")
