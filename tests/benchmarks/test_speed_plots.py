"""Growth in speed records: written by rows that have some, drawn from the files alone."""

from __future__ import annotations

import json

import pytest

from backbench.errors import BackbenchError
from benchmarks.records import store
from benchmarks.speed import Comparison, Growth, plots, report

QUADRATIC = [(10.0, 1.0), (20.0, 4.0), (40.0, 16.0)]


def record(name, growth):
    made = Comparison("seconds", "a size", "ours", "theirs", [(1.0, 2.0)], "times as long", growth)
    return {"name": name, **made.figures(), "machine": {"device": "a processor"}}


@pytest.fixture
def folder(tmp_path):
    for name, growth in (("squares", Growth("images", QUADRATIC)), ("flat", None)):
        (tmp_path / f"{name}.json").write_text(json.dumps(record(name, growth)))
    return tmp_path


def test_records_with_a_growth_are_drawn_and_others_left_alone(folder, capsys):
    assert plots.main([str(folder), "--out", str(folder / "growth.svg")]) == 0
    assert capsys.readouterr().out.endswith("growth.svg: squares\n")
    picture = (folder / "growth.svg").read_text()
    assert "squares: grows as size^2.00" in picture.replace("<!-- ", "").replace(" -->", "")


@pytest.mark.parametrize(
    ("points", "expected"), [(QUADRATIC, 2.0), ([(1, 3), (10, 3)], 0.0), ([(10, 5), (1, 0.5)], 1.0)]
)
def test_the_exponent_is_that_of_the_last_step(points, expected):
    assert plots.exponent(points) == pytest.approx(expected)


def test_a_folder_without_growth_is_refused(tmp_path):
    with pytest.raises(BackbenchError, match="no record with a growth"):
        plots.main([str(tmp_path), "--out", str(tmp_path / "growth.svg")])


def test_copied_records_are_sound_and_none_is_there_twice(tmp_path):
    found = store.scan_folder(report.write_records(tmp_path, 100))
    assert len(found.records) == 100 and found.left_out == ()
    assert {r.status for r in found.records.values()} == {"ok"}
    assert len({(r.backbone.name, r.identity()) for r in found.records.values()}) == 100
