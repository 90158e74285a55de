"""Differences to every row that a reader may choose: those of `--to`, bounded in number, escaped for the script."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from benchmarks import report
from benchmarks.records import store
from benchmarks.report import baselines, html, render
from benchmarks.report.comparison import compare
from benchmarks.report.intervals import Intervals
from benchmarks.report.matrix import matrix
from benchmarks.report.table import gather


@pytest.fixture
def measured(shelf, draws):
    """Three backbones and a random one in two cells, one with scores per test item."""
    shares = {"a": 0.70, "b": 0.69, "c": 0.40, "random:resnet50": 0.20}
    records = []
    for weights, (name, right) in enumerate(zip(shares, draws(0, *shares.values()), strict=True), 1):
        fields = {"name": name, "weights": format(weights, "x")}
        records.append(shelf.top1(right, **fields))
        records.append(shelf.top1(right, cell="inat18_linear", data="inat18", **fields))
    return gather(records), Intervals(shelf.items, 500)


def chosen(table, intervals, to="random:resnet50"):
    return baselines.choices(table, render.shown(table), intervals, to=to)


def test_every_other_row_can_be_chosen_with_the_differences_of_a_report_to_it(measured):
    table, intervals = measured
    found = chosen(table, intervals)
    assert [table.rows[place].name for place in sorted(found.to)] == ["a", "b", "c"] and found.left_out == 0
    for place, one in found.to.items():
        expected = compare(table, render.shown(table), intervals, to=table.rows[place].name)
        assert one.said == render.intervals_made(expected) and "paired bootstrap" in one.said
        for comparison in expected:
            own = one.differences[comparison.column]
            for line in comparison.lines:
                if (row := next((n for n, row in enumerate(table.rows) if row is line.row), None)) is not None:
                    assert own.get(row) == line.difference


def test_a_gap_within_the_noise_is_shown_as_such(measured):
    table, intervals = measured
    comparisons = compare(table, render.shown(table), intervals, to="random:resnet50")
    made = baselines.embedded(chosen(table, intervals), matrix(table, comparisons))
    rows = {row.name: place for place, row in enumerate(table.rows)}
    to_a = made["to"][rows["a"]][0]
    assert to_a[rows["b"]][1] == 1 and "†" not in to_a[rows["b"]][0]
    assert to_a[rows["c"]][1] == 0 and re.fullmatch(r"-\d+\.\d \[-\d+\.\d, -\d+\.\d\] †", to_a[rows["c"]][0])
    assert rows["a"] not in to_a and made["reasons"][0] == ""


def test_numbers_without_scores_have_the_reason(make):
    table = gather([make(50.0), make(40.0, name="b", weights="b"), make(30.0, name="random:resnet50", weights="9")])
    intervals = Intervals({}, 100)
    made = baselines.embedded(chosen(table, intervals), matrix(table, compare(table, render.shown(table), intervals)))
    rows = {row.name: place for place, row in enumerate(table.rows)}
    text, _, place = made["to"][rows["mine"]][0][rows["b"]]
    assert text.startswith("-10.0") and made["reasons"][place] == "no scores per test item are stored"


def test_rows_are_left_out_where_their_intervals_would_be_too_many(measured, monkeypatch):
    table, intervals = measured
    monkeypatch.setattr(baselines, "_MOST", 13)  # each row takes 3 in each of 2 columns
    found = chosen(table, intervals)
    assert len(found.to) == 2 and found.left_out == 1
    monkeypatch.setattr(baselines, "_MOST", 5)
    assert chosen(table, intervals) == baselines.Choices({}, 3)


def test_without_a_baseline_every_row_can_be_chosen(measured):
    table, intervals = measured
    assert len(chosen(table, intervals, to=None).to) == 4


def test_a_resampled_metric_turned_round_is_negated_not_drawn_again(shelf, monkeypatch):
    labels = np.where(np.random.default_rng(0).random((60, 3)) < 0.4, 1, -1).astype(np.int8)
    scores = np.random.default_rng(1).normal(size=(2, 60, 3))
    one, other = ([shelf.svm(each, labels, weights=w)] for each, w in zip(scores, "ab", strict=True))
    kept = Intervals(shelf.items, 300)
    ahead = kept.between(one, other, "mAP")
    back = Intervals(shelf.items, 300).between(other, one, "mAP")
    monkeypatch.setattr("benchmarks.report.paired.interval", lambda *_, **__: pytest.fail("drawn again"))
    turned = kept.between(other, one, "mAP")
    for name in ("low", "high", "items", "resamples", "p", "error"):
        assert getattr(turned, name) == pytest.approx(getattr(back, name), abs=1e-12)
    assert turned.low == -ahead.high


def test_the_page_holds_them_for_its_script(tmp_path, make):
    hostile = "</script><b>&"
    for name, weights, value in ((hostile, "a", 50.0), ("b", "b", 40.0), ("random:resnet50", "9", 30.0)):
        store.write(tmp_path, make(value, name=name, weights=weights))
    store.write(tmp_path, make(10.0, name="b", weights="b", cell="inat18_linear"))
    page = report.write(tmp_path).read_text()
    assert hostile not in page
    data = json.loads(re.search(r'id="chosen">(.*?)</script>', page)[1])
    assert set(data) == {"to", "reasons", "said"} and len(data["to"]) == 2
    assert any(hostile in reason for reason in data["reasons"]), "the row has no number in the other cell"


def test_a_page_without_choices_has_none(make):
    results = [make(50.0), make(40.0, name="b", weights="b")]
    page = html.page(gather(results), results, suite="")
    assert json.loads(re.search(r'id="chosen">(.*?)</script>', page)[1]) == {"to": {}, "reasons": [""], "said": {}}
