"""Where backbones stand over all cells: ranks by data set, wins and losses by cell, as Markdown and on the page."""

from __future__ import annotations

import pytest

from benchmarks import compare
from benchmarks.records import store
from benchmarks.report import html, render, standing_text
from benchmarks.report.intervals import Intervals
from benchmarks.report.rank_plot import rank_plot
from benchmarks.report.standing import standings
from benchmarks.report.table import gather
from benchmarks.statistics.marks import Tally

DATA = ("imagenet", "inat18", "places205", "stl10", "imagenet100", "cars")


def records(make, means, data=DATA, **fields):
    return [
        make(value + i, name=name, weights=name, cell=f"{d}_linear", data=d, **fields)
        for name, value in means.items()
        for i, d in enumerate(data)
    ]


def found(results):
    table = gather(results)
    return standings(table, render.comparable(table), Intervals({}, 100))


def test_ranks_are_over_data_sets_and_wins_over_cells(make):
    """ImageNet has two cells: one unit of the ranks, two of the wins; 10 points of 1,000 images are beyond the noise."""
    means = {"a": 30.0, "b": 80.0, "c": 79.5}
    more = [make(v, name=n, weights=n, cell="imagenet_knn") for n, v in means.items()]
    (made,) = found(records(make, means) + more)
    assert [row.name for row in made.rows] == ["b", "c", "a"]
    assert (made.ranking.ranks, made.ranking.blocks, len(made.columns)) == ((1.0, 2.0, 3.0), 6, 7)
    assert made.wins[0] == (None, Tally(0, 0, 7), Tally(7, 0, 0)) and made.wins[2][0] == Tally(0, 7, 0)
    assert not made.ranking.apart(0, 1) and made.ranking.apart(0, 2), "the critical difference is 1.35"


def test_rows_with_a_gap_are_left_out(make):
    results = records(make, {"a": 60.0, "b": 50.0})
    (made,) = found([*results, make(99.0, name="c", weights="c")])
    assert [row.name for row in made.rows] == ["a", "b"]
    assert found(results[:1]) == [] and found(records(make, {"a": 60.0, "b": 50.0}, DATA[:1])) == []


def test_one_data_set_has_wins_and_no_ranks(make):
    results = [
        make(v, name=n, weights=n, cell=f"imagenet_{c}")
        for n, v in (("a", 60.0), ("b", 40.0))
        for c in ("knn", "linear")
    ]
    (made,) = found(results)
    assert made.ranking is None and made.wins[0][1] == Tally(2, 0, 0)
    assert "on one data set" in standing_text.markdown(made) and rank_plot(made) is None


def test_rehearsals_are_never_ranked_with_results(make):
    both = records(make, {"a": 60.0, "b": 50.0}) + records(make, {"a": 6.0, "b": 50.0}, profile="smoke")
    text = [standing_text.over(made) for made in found(both)]
    assert sorted("REHEARSAL" in words for words in text) == [False, True]


def test_the_text_says_over_what(make, tables):
    (made,) = found(records(make, {"a": 30.0, "b": 80.0, "c|d": 79.5}))
    text = standing_text.markdown(made)
    ((heads, _, *rows),) = tables(text.replace(r"\|", "/"))
    assert heads == ["", "backbone", "average rank", "1", "2", "3"]
    assert [row[1:3] for row in rows] == [
        ["b (resnet50)", "1.00"],
        ["c/d (resnet50)", "2.00"],
        ["a (resnet50)", "3.00"],
    ]
    assert rows[0][3:] == ["", "0 – 0 – 6", "6 – 0 – 0"]
    assert "over 6 headline numbers on 6 data sets" in text and "less than 1.35 are not told apart" in text
    (alike,) = found(records(make, {"a": 50.0, "b": 50.1}))
    assert "on 6 data sets" in standing_text.markdown(alike)


def test_many_rows_have_ranks_and_the_best_a_matrix(make):
    (made,) = found(records(make, {f"m{i:02d}": 40.0 + i for i in range(20)}))
    assert len(made.rows) == 20 and len(made.wins) == 16 and made.rows[0].name == "m19"
    assert "4 more rows are not in the matrix" in standing_text.section(made, None)
    assert rank_plot(made).count("<svg") == 1


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "$\\frac$", "a & b"])
def test_names_are_harmless_on_the_page(make, name):
    results = records(make, {name[:1]: 60.0, "b": 50.0})
    results = [r.model_copy(update={"backbone": r.backbone.model_copy(update={"name": name})}) if r.backbone.name == name[:1]
               else r for r in results]  # fmt: skip
    table = gather(results)
    page = html.page(table, results, suite="", standings=standings(table, table.columns, Intervals({}, 100)))
    assert "<h2>Standing" in page and "average rank (1 is best)" not in page.partition("<h2>Standing")[0]
    assert page.count("<script") == 3, "the page's own"


def test_the_command_shows_it(capsys, make, tmp_path):
    for result in records(make, {"a": 60.0, "b": 50.0}):
        store.write(tmp_path, result)
    assert compare.main([str(tmp_path), "--no-literature", "--html", str(tmp_path / "page.html")]) == 0
    assert "**Standing** over 6 headline numbers on 6 data sets" in capsys.readouterr().out
    assert "<h2>Standing" in (tmp_path / "page.html").read_text()
