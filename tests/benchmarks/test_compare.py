"""Comparisons of rows and of the literature: marks, differences, differing conditions, refusals."""

from __future__ import annotations

import csv
import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import warm
from scipy.stats import binomtest

from backbench.errors import BackbenchError
from benchmarks import compare, plan
from benchmarks.records import store
from benchmarks.report import render
from benchmarks.report.averages import averages
from benchmarks.report.comparison import compare as compare_rows
from benchmarks.report.comparison import headlines
from benchmarks.report.literature import flags, published
from benchmarks.report.table import gather

ROOT = Path(__file__).resolve().parent.parent.parent
SEMI = {"preset": "msbreg", "batch": 1024, "epochs": 60, "rate_encoder": 0.0, "data": {"name": "imagenet"}}


def with_config(record, config, engine=None):
    task = record.task.model_copy(update={"config": config, "engine": engine})
    return record.model_copy(update={"task": task})


def lines_of(records, *, to=None, **options):
    """Return the lines of the only column."""
    table = gather(records)
    (found,) = compare_rows(table, render.shown(table), {}, to=to, **options)
    return found.lines


def ranked(values):
    """Mark the highest and the second highest value as papers do, whatever the noise."""
    names = dict(zip(sorted(set(values), reverse=True), ("best", "second"), strict=False))
    return [names.get(value, "") for value in values]


PAPER = [  # what Tables 2-5 mark or say: cell, metric, table, best, second best
    ("imagenet_knn", "top1_k20", 4, {("MSBReg", 66.2)}, {("SwAV", 65.7)}),
    ("imagenet_knn", "top1_k200", 4, {("MSBReg", 63.0)}, {("VICReg", 62.8)}),
    ("imagenet_semi1", "top1", 3, {("MSBReg", 58.6)}, {("Barlow Twins", 55.5)}),
    ("imagenet_semi1", "top5", 3, {("OBoW", 82.9)}, {("MSBReg", 81.9)}),
    ("imagenet_semi10", "top1", 3, {("MSBReg", 70.6)}, {("SwAV", 70.2)}),
    ("voc07_svm", "mAP", 5, {("OBoW", 89.3)}, {("SwAV", 88.9)}),
    ("voc0712_detection", "AP50", 5, {("PixPro", 83.8)}, {("MSBReg", 83.0)}),
    ("coco_instance_segmentation", "box_AP", 10, {("MSBReg", 41.8)}, {("BYOL", 41.6), ("SwAV", 41.6)}),
    ("coco_instance_segmentation", "mask_AP", 10, {("MSBReg", 37.8), ("SwAV", 37.8)}, {("BYOL", 37.2)}),
]


@pytest.mark.parametrize(("cell", "metric", "number", "best", "second"), PAPER)
def test_marks_of_the_papers_tables(cell, metric, number, best, second):
    rows = published(cell, metric, source=f"MSBReg Table {number}")
    found = ranked([row.number.value for row in rows])
    named = {
        mark: {(r.entry.method, r.number.value) for r, m in zip(rows, found, strict=True) if m == mark}
        for mark in ("best", "second")
    }
    assert named == {"best": best, "second": second}


@pytest.mark.parametrize(("epochs", "second"), [("100 epochs", 70.7), ("200 epochs", 73.8)])
def test_the_underlined_numbers_of_table_2(epochs, second):
    rows = [r for r in published("imagenet_linear", "top1", source="MSBReg Table 2") if epochs in r.number.setting]
    found = dict(zip((r.number.value for r in rows), ranked([r.number.value for r in rows]), strict=True))
    assert found[second] == "second"


IMAGENET = {"cell": "imagenet_knn", "metric": "top1_k20", "counts": (1_281_167, 50_000)}


@pytest.mark.parametrize(
    ("value", "published_data", "expected"),
    [
        (67.5, True, [(67.5, "best"), (66.2, ""), (65.7, "")]),
        (66.0, True, [(66.0, "level"), (66.2, "level"), (65.7, "level")]),
        (50.0, True, [(50.0, ""), (66.2, "level"), (65.7, "level")]),
        (67.5, False, [(67.5, ""), (66.2, "level"), (65.7, "level")]),
    ],
)
def test_measured_rows_are_ranked_with_the_literature_on_published_data_only(make, value, published_data, expected):
    """The paper's 20-NN table has 66.2 and 65.7: of 50,000 images, chance alone can make that gap."""
    lines = lines_of([make(value, published=published_data, **IMAGENET)], source="MSBReg Table 4")
    assert [(line.value.mean, line.mark) for line in lines[:3]] == expected


def marks_of(records, shelf=None, **options):
    table = gather(records)
    (found,) = compare_rows(table, render.shown(table), shelf.items if shelf else {}, with_literature=False, **options)
    return {line.row.name: line.mark for line in found.lines}


def test_a_lead_is_tested_on_the_same_items(shelf, draws):
    """Three points more of 400 items: beyond the noise where only those items differ, within it where the answers do."""
    (base,) = draws(1, 0.5)
    more, other = base.copy(), np.roll(base, 1)
    more[np.flatnonzero(~base)[:12]] = True
    other[np.flatnonzero(~other)[:12]] = True
    nested = [shelf.top1(base, name="a", weights="a"), shelf.top1(more, name="b", weights="b")]
    assert marks_of(nested, shelf) == {"a": "", "b": "best"}
    apart = [nested[0], shelf.top1(other, name="c", weights="c")]
    assert marks_of(apart, shelf) == {"a": "level", "c": "level"}
    assert set(marks_of(nested).values()) == {"level"}, "without the answers, the least favourable ones count"


@pytest.mark.parametrize(("spread", "expected"), [(0.1, {"a": "best", "b": ""}), (9.0, {"a": "level", "b": "level"})])
def test_a_lead_is_tested_over_seeds(make, spread, expected):
    records = [make(mean + spread * (seed - 1), name=name, weights=name, seed=seed, metric="AP")
               for name, mean in (("a", 60.0), ("b", 50.0)) for seed in range(3)]  # fmt: skip
    assert marks_of(records) == expected


def test_a_lead_must_be_beyond_every_noise(shelf, draws, make):
    """The test items alone tell 70% and 50% apart; seeds that differ by as much do not."""
    sets = draws(3, 0.9, 0.5, 0.52, 0.48)
    who = [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    records = [shelf.top1(s, name=n, weights=n, seed=seed) for s, (n, seed) in zip(sets, who, strict=True)]
    assert set(marks_of(records, shelf).values()) == {"level"}
    assert marks_of(records[::2], shelf) == {"a": "best", "b": ""}


def test_one_number_of_unknown_noise_is_never_the_best(make):
    assert marks_of([make(60.0, metric="AP", name="a"), make(10.0, metric="AP", name="b", weights="b")]) == {
        "a": "",
        "b": "",
    }


def test_differences_are_corrected_for_all_that_are_tested(shelf, draws):
    """Twenty rows: each p-value times at most twenty, and none of those that differ by chance is told apart."""
    base, *others = draws(5, *[0.5] * 20)
    better = base | (np.random.default_rng(0).random(400) < 0.3)
    records = [shelf.top1(base, name="base", weights="0"), shelf.top1(better, name="better", weights="1")]
    records += [shelf.top1(right, name=f"m{i}", weights=f"{chr(97 + i)}") for i, right in enumerate(others)]
    table = gather(records)
    (found,) = compare_rows(table, render.shown(table), shelf.items, to="base", with_literature=False)
    made = {line.row.name: line.difference for line in found.lines if line.difference}
    assert [name for name, difference in made.items() if difference.is_told] == ["better"]
    p = {name: difference.p for name, difference in made.items()}
    assert made["better"].p_holm == pytest.approx(20 * p["better"]) and min(p.values()) == p["better"]
    assert all(difference.p <= difference.p_holm <= 1 for difference in made.values())
    text = render.comparisons_markdown([found], table, to="base")
    assert text.count(render.TOLD) == 2 and "Holm's correction for 20 tested differences" in text
    assert made["better"].over == "400 test items"
    exact = binomtest(int((better & ~base).sum()), int((better != base).sum())).pvalue
    assert p["better"] == pytest.approx(exact), "McNemar's exact test"


def test_the_detectable_difference_is_that_of_the_items(shelf, draws, tables):
    a, b = draws(6, 0.5, 0.5)
    records = [shelf.top1(a, name="a", weights="a"), shelf.top1(b, name="b", weights="b")]
    table = gather(records)
    (found,) = compare_rows(table, render.shown(table), shelf.items, to="b", with_literature=False)
    difference = next(line.difference for line in found.lines if line.difference)
    expected = (1.96 + 0.8416) * 100 * np.std(a.astype(float) - b) / 20
    assert difference.detectable == pytest.approx(expected, rel=0.03)
    assert f"A true difference of {difference.detectable:.1f} is found in 4 of 5 cases (over 400 test items)." in (
        render.comparisons_markdown([found], table, to="b")
    )


def test_averages_are_told_apart_over_cells(make):
    """Six cells, all in favour of one row: the sign test's p is 2/64; with five it is 2/32."""
    cells = [
        "imagenet_linear",
        "inat18_linear",
        "places205_linear",
        "stl10_linear",
        "imagenet100_linear",
        "imagenet_knn",
    ]

    def found(count):
        records = [make(value + i, name=n, weights=n, cell=c, data=c)
                   for n, value in (("a", 60.0), ("b", 50.0)) for i, c in enumerate(cells[:count])]  # fmt: skip
        table = gather(records)
        return {a.row.name: a.mark for a in averages(table, headlines(render.shown(table)), with_literature=False)}

    assert found(6) == {"a": "best", "b": ""} and found(5) == {"a": "level", "b": "level"}


def row_of(cell, metric, method, **options):
    return next(r for r in published(cell, metric, **options) if r.entry.method == method)


@pytest.fixture
def column_of(make):
    def build(config, engine=None, **fields):
        (column,) = gather([with_config(make(50.0, **fields), config, engine)]).columns
        return column

    return build


def test_frozen_or_not_is_flagged(column_of):
    ours = row_of("imagenet_semi1", "top1", "MSBReg")
    column = column_of(SEMI, cell="imagenet_semi1")
    assert flags(ours, [column], {"resnet50"}) == ("not stated: epochs",)
    swav = {"rate_encoder": 0.02, "batch": 256, "epochs": 20, "preset": "swav", "head_init": "linear",
            "std": [0.228, 0.224, 0.225]}  # fmt: skip
    tuned = column_of(SEMI | swav, cell="imagenet_semi1")
    assert flags(ours, [tuned], {"resnet50"}) == (
        "preset msbreg (here swav)", "batch 1024 (here 256)", "encoder frozen (here fine-tuned)", "not stated: epochs",
    )  # fmt: skip
    rival = row_of("imagenet_semi1", "top1", "BYOL")
    assert "encoder fine-tuned (here frozen)" in flags(rival, [column], {"resnet50"})
    assert flags(rival, [column, tuned], {"resnet50"})[0] == "encoder fine-tuned (here fine-tuned and frozen)"


def test_engine_batch_architecture_and_data_are_flagged(column_of):
    ours = row_of("voc0712_detection", "AP", "MSBReg")
    config = {"preset": "moco", "engine": "mmdet", "batch": None, "spec": {"batch": 16}, "data": {"name": "voc"}}
    fields = {"cell": "voc0712_detection_mmdet", "metric": "AP", "data": "voc"}
    column = column_of(config, "mmdet 3.3.0", **fields)
    assert flags(ours, [column], {"resnet50"}) == ("engine detectron2 (here mmdet)",)
    same = column_of(config | {"engine": "detectron2"}, **fields | {"cell": "voc0712_detection"})
    assert flags(ours, [same], {"resnet50"}) == ()
    small = column_of(config | {"batch": 4}, counts=(381, 394), published=False, **fields)
    assert flags(ours, [small], {"resnet18"})[:2] == (
        "resnet50 (here resnet18)", "on the published voc (here VOC layout, 381/394 images)",
    )  # fmt: skip
    assert "batch 16 (here 4)" in flags(ours, [small], {"resnet50"})


def with_arch(record, **fields):
    return record.model_copy(update={"backbone": record.backbone.model_copy(update={"arch": fields})})


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": "resnet50", "width": 0.5}, "resnet50, width 0.5"),
        ({"name": "resnet50", "stride_in_1x1": True, "pool_padding": "end"},
         "resnet50, stride_in_1x1, pool_padding end"),
        ({"name": "vit_tiny", "library": "timm 1.0"}, "vit_tiny"),
    ],
)  # fmt: skip
def test_what_is_unusual_in_an_architecture_is_in_the_label_and_flagged(make, fields, words):
    fields_of_column = {"cell": "imagenet_knn", "metric": "top1_k20"}
    ours, *beside = lines_of([with_arch(make(50.0, **fields_of_column), **fields)], source="MSBReg Table 4")
    assert ours.row.label == f"mine ({words})"
    assert {line.flags[0] for line in beside} == {f"resnet50 (here {words})"}
    assert {line.row.label for line in beside} >= {"MSBReg (resnet50)"}


def test_two_measured_architectures_are_flagged(make):
    fields = {"cell": "imagenet_knn", "metric": "top1_k20"}
    records = [make(50.0, **fields), make(40.0, name="b", weights="b", arch="resnet18", **fields)]
    *_, last = lines_of(records, source="MSBReg Table 4")
    assert last.flags[0] == "resnet50 (here resnet18 and resnet50)"
    *_, last = lines_of(records[:1], source="MSBReg Table 4")
    assert not any("resnet" in flag for flag in last.flags)


def test_what_was_changed_in_a_preset_is_flagged(column_of):
    """Same preset, engine and batch, but a shorter training."""
    ours = row_of("voc0712_detection", "AP", "MSBReg")
    config = plan.load_cell("voc0712_detection").config.model_dump(mode="json")
    fields = {"cell": "voc0712_detection", "metric": "AP", "data": "voc"}
    assert flags(ours, [column_of(config, **fields)], {"resnet50"}) == ()
    assert flags(ours, [column_of(config | {"log_every": 5}, **fields)], {"resnet50"}) == ()
    short = config | {"spec": config["spec"] | {"iterations": 100}}
    found = flags(ours, [column_of(short, **fields)], {"resnet50"})
    assert found == ("here other than the preset: spec.iterations=100",)
    inat = plan.load_cell("inat18_linear").config.model_dump(mode="json")
    column = column_of(inat, cell="inat18_linear", data="inat18")
    assert flags(row_of("inat18_linear", "top1", "MSBReg"), [column], {"resnet50"}) == ()
    gone = column_of(config | {"preset": "older"}, **fields)
    assert "here other than the preset: preset older, which is no more" in flags(ours, [gone], {"resnet50"})


def test_a_number_of_another_data_set_is_flagged(column_of):
    """Table 12 was measured on ImageNet-100."""
    row = row_of("imagenet_uniformity", "uniformity", "MSBReg")
    column = column_of({"preset": "byol", "data": {"name": "imagenet"}}, cell="imagenet_uniformity", metric="uniformity",
                       unit="", higher=False)  # fmt: skip
    assert "on imagenet100 (here imagenet)" in flags(row, [column], {"resnet18"})


def test_mmdet_stands_beside_the_published_detectors():
    assert published("voc0712_detection_mmdet", "AP50") == published("voc0712_detection", "AP50") != []


def test_versions_of_a_protocol_are_columns(make):
    one = make(50.0)
    other = one.model_copy(update={"task": one.task.model_copy(update={"version": 2}), "seed": 3})
    table = gather([one, other])
    assert [render.heading(c, table) for c in table.columns] == [
        "imagenet_linear top1 [protocol=version 1]",
        "imagenet_linear top1 [protocol=version 2]",
    ]
    assert [value.numbers for value in table.rows[0].values.values()] == [(50.0,), (50.0,)]


def test_versions_of_an_engine_are_columns(make):
    records = [with_config(make(50.0, name=n, weights=n), {}, f"mmdet {n}") for n in "ab"]
    table = gather(records)
    assert [render.heading(c, table) for c in table.columns] == [
        "imagenet_linear top1 [version=mmdet a]",
        "imagenet_linear top1 [version=mmdet b]",
    ]


def test_difference_to_a_measured_row(make):
    first, second = lines_of([make(60.0, name="a"), make(50.0, name="b", weights="b")], to="b", with_literature=False)
    assert (first.difference.value, first.difference.interval) == (10.0, None)
    assert "no scores per test item" in first.difference.why and second.difference is None


def test_difference_to_a_published_row(make):
    records = [make(66.0, cell="imagenet_knn", metric="top1_k20")]
    ours, *others = lines_of(records, to="MSBReg", source="MSBReg Table 4")
    assert ours.difference.value == pytest.approx(-0.2)
    assert [line.difference is None for line in others] == [True, False, False, False]
    (alone,) = lines_of(records, to="swav_r50_imagenet", with_literature=False)
    assert alone.difference.value == pytest.approx(0.3)
    (shown,) = lines_of(records, to="SwAV (resnet50)", with_literature=False)
    assert shown.difference == alone.difference, "as the table calls it"


def test_several_published_rows_are_told_apart_by_their_setting(make):
    (line,) = lines_of([make(74.0)], to="BYOL", with_literature=False)
    assert line.difference.value is None and "say which" in line.difference.why
    (line,) = lines_of([make(74.0)], to="BYOL@400 epochs", with_literature=False, source="MSBReg Table 2")
    assert line.difference.value == pytest.approx(0.8)


@pytest.mark.parametrize("fields", [{"published": False}, {"published": False, "demo": True}])
def test_no_difference_to_numbers_of_other_data(fields, make):
    records = [make(66.0, cell="imagenet_knn", metric="top1_k20", **fields)]
    lines = lines_of(records, to="MSBReg")
    assert all(line.difference is None or line.difference.value is None for line in lines)
    assert "published for other data" in lines[0].difference.why
    assert all(line.difference.value is None for line in lines_of([*records, make(1.0, name="b", cell="imagenet_knn",
               metric="top1_k20", weights="b", **fields)], to="b") if line.difference and line.flags)  # fmt: skip


def test_no_difference_of_a_row_published_for_other_data(make):
    """Table 12 was measured on ImageNet-100, so it has no baseline for ImageNet."""
    fields = {"cell": "imagenet_uniformity", "metric": "uniformity", "unit": "", "higher": False}
    _, *beside = lines_of([make(-2.0, name="base", **fields)], to="base")
    others = [line for line in beside if line.row.number.data]
    assert others and all(line.difference.value is None for line in others)
    assert {line.difference.why for line in others} == {"published for other data"}
    (_, same, *_) = lines_of([make(66.0, name="base", cell="imagenet_knn", metric="top1_k20")], to="base")
    assert same.difference.value == pytest.approx(0.2)


def test_a_baseline_of_other_data_or_another_configuration_is_said(make):
    table = gather([make(60.0, name="a"), make(50.0, name="b", weights="b", manifest="n"),
                    make(40.0, name="c", weights="c", config="d")])  # fmt: skip
    found = compare_rows(table, render.shown(table), {}, to="b", with_literature=False)
    why = {line.row.name: line.difference.why for c in found for line in c.lines if line.difference}
    assert "b was measured on other data" in why["a"]
    found = compare_rows(table, render.shown(table), {}, to="c", with_literature=False)
    why = {line.row.name: line.difference.why for c in found for line in c.lines if line.difference}
    assert "c was measured with another configuration" in why["a"] and "on other data" in why["b"]


@pytest.mark.parametrize(
    ("to", "words"),
    [
        ("radnom:resnet50", "did you mean 'random:resnet50'"),
        ("MSBRge", "did you mean 'MSBReg'"),
        ("qqqq", "measured: random:resnet50"),
        ("MSBReg@900 epochs", "no published row of it has that"),
    ],
)
def test_an_unknown_baseline_names_the_nearest(to, words, make):
    with pytest.raises(BackbenchError, match=re.escape(words)):
        lines_of([make(60.0, name="random:resnet50")], to=to)


def test_only_whole_rows_have_an_average(make, tables):
    records = [make(60.0, name="a"), make(80.0, name="a", cell="inat18_linear"), make(90.0, name="b", weights="b")]
    table = gather(records)
    columns = headlines(render.shown(table))
    found = {row.row.name: row.mean for row in averages(table, columns, with_literature=False)}
    assert found == {"a": 70.0, "b": None}
    ((_, _, *rows),) = tables(render.averages_markdown(averages(table, columns, with_literature=False), columns, table))
    assert [row[-1] for row in rows] == ["70.0", "-"]


@pytest.mark.parametrize("published_data", [True, False])
def test_a_cell_measured_in_two_ways_counts_once(make, tables, published_data):
    """Two configurations of the linear probe, two engines of the detector: 20 = mean of 10, (20, 40) -> 30, 20."""
    fields = {"published": published_data}
    records = [
        make(10.0, cell="inat18_linear", data="inat18", **fields), make(20.0, **fields), make(40.0, config="d", **fields),
        make(18.0, cell="voc0712_detection", metric="AP", data="voc", **fields),
        make(22.0, cell="voc0712_detection_mmdet", metric="AP", data="voc", **fields),
    ]  # fmt: skip
    table = gather(records)
    columns = headlines(render.shown(table))
    mine, *beside = averages(table, columns)
    assert mine.mean == pytest.approx(20.0) and len(mine.values) == len(columns) == 5
    text = render.averages_markdown([mine], columns, table)
    assert "counts once" in text and tables(text)[0][2][-1].strip("*") == "20.0"
    assert all(row.values[columns.index(c)] is None for row in beside for c in columns if "mmdet" in c.cell)
    other = make(1.0, name="b", weights="b", cell="voc0712_detection_mmdet", metric="AP", data="voc", **fields)
    without = gather([*records[:-1], other])
    assert averages(without, columns)[0].mean is None, "a gap is a gap"
    once = gather(records[:2])
    assert "counts once" not in render.averages_markdown([], headlines(render.shown(once)), once)


def test_a_published_row_counts_a_cell_of_two_configurations_once(make):
    table = gather([make(50.0, cell="voc07_svm", metric="mAP", data="voc"),
                    make(50.0, cell="voc07_svm", metric="mAP", data="voc", config="d"),
                    make(50.0, cell="places205_linear", data="places205")])  # fmt: skip
    found = averages(table, headlines(render.shown(table)), source="MSBReg Table 5")
    means = {row.row.entry.method: row.mean for row in found[1:]}
    assert means["MSBReg"] == pytest.approx((87.8 + 56.4) / 2)


def test_published_rows_are_averaged_by_their_setting(make):
    """MSBReg's K=4 of Table 5: VOC07, Places, iNat18."""
    cells = {
        "voc07_svm": ("mAP", "voc"),
        "places205_linear": ("top1", "places205"),
        "inat18_linear": ("top1", "inat18"),
    }
    table = gather([make(50.0, cell=c, metric=m, data=d) for c, (m, d) in cells.items()])
    found = averages(table, headlines(render.shown(table)), source="MSBReg Table 5")
    means = {row.row.entry.method: row.mean for row in found[1:]}
    assert means["MSBReg"] == pytest.approx((87.8 + 56.4 + 47.9) / 3)
    assert means["OBoW"] is None, "no iNat18"
    engines = gather([make(50.0, cell=f"voc0712_detection{end}", metric="AP", data="voc") for end in ("", "_mmdet")])
    assert len(averages(engines, headlines(render.shown(engines)))) == 1, "one engine's number is not averaged twice"
    other = gather([make(50.0, cell=c, metric=m, data=d, published=False) for c, (m, d) in cells.items()])
    assert len(averages(other, headlines(render.shown(other)))) == 1, "of other data none"


# ---------------------------------------------------------------- the command


def run(capsys, *arguments):
    assert compare.main([str(a) for a in arguments]) == 0
    return capsys.readouterr().out


@pytest.fixture
def folder(shelf, make, absent, draws):
    a, b = draws(0, 0.7, 0.5)
    shelf.top1(a, name="mine", weights="a", published=False, counts=(3000, 400))
    shelf.top1(b, name="random:resnet18", weights="b", published=False, counts=(3000, 400))
    store.write(shelf.root, make(9.0, name="mine", weights="a", cell="inat18_linear", data="inat18"))
    store.write(shelf.root, absent("skipped", "no folder", cell="voc07_svm"))
    return shelf.root


def test_the_command_compares_folders_and_files(capsys, folder, tmp_path, tables):
    text = run(capsys, folder, "--to", "random:resnet18", "--no-literature", "--csv", tmp_path / "all.csv")
    first, second, average = tables(text)
    assert first[2][0] == "mine (resnet50)" and first[2][1].startswith("**")
    assert re.fullmatch(r"\+\d+\.\d \[\+\d+\.\d, \+\d+\.\d\] †", first[2][2]) and first[3][2] == "baseline"
    assert second[2][2] == "- (random:resnet18 has no number here)"
    assert average[3][-1] == "-" and "10000 of 400 items" in text and "seed 0" in text
    assert "mine, voc07_svm: skipped: no folder" in text and "(not the published data set)" in text
    rows = list(csv.DictReader(io.StringIO((tmp_path / "all.csv").read_text())))
    assert {row["kind"] for row in rows} == {"measured"} and len(rows) == 3
    assert float(rows[0]["low"]) < float(rows[0]["difference"]) < float(rows[0]["high"])
    assert float(rows[0]["p"]) == float(rows[0]["p_holm"]) < 0.05 and rows[0]["tested_over"] == "400 test items"
    assert 0 < float(rows[0]["detectable"]) < float(rows[0]["difference"]) and rows[1]["p"] == ""
    files = sorted(folder.glob("*/imagenet_linear-*/seed0.json"))
    assert tables(run(capsys, *files, "--to", "random:resnet18", "--no-literature")) == [first]


def test_the_page_shows_the_same_differences(capsys, folder, tmp_path, tables):
    text = run(
        capsys, folder, "--to", "random:resnet18", "--source", "MSBReg Table 2", "--html", tmp_path / "page.html"
    )
    page = (tmp_path / "page.html").read_text()
    (difference,) = (row[2] for row in tables(text)[0] if row[0].startswith("mine"))
    assert difference.startswith("+") and difference in page and "Differences are to <b>random:resnet18</b>" in page
    source = '<td><a href="https://arxiv.org/abs/2207.03552" rel="noreferrer">MSBReg</a> Table 2'
    assert page.count(source) == 23 and "MSBReg Table 7" not in page
    run(capsys, folder, "--no-literature", "--html", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "MSBReg Table 2" not in page and "Differences are to" not in page


def test_a_measurement_given_twice_counts_once(capsys, folder):
    once = run(capsys, folder, "--no-literature")
    assert run(capsys, folder, folder / ".", *sorted(folder.glob("*/*/seed0.json")), "--no-literature") == once


def test_a_copy_of_a_measurement_counts_once(capsys, folder, tmp_path):
    import shutil

    shutil.copytree(folder, tmp_path / "copy")
    assert "seeds)" not in run(capsys, folder, tmp_path / "copy", "--no-literature")


def test_the_same_weights_under_two_names_are_two_rows(capsys, make, tmp_path, tables):
    for name in ("first", "second"):
        store.write(tmp_path, make(50.0, name=name))
    (table,) = tables(run(capsys, tmp_path, "--no-literature"))
    assert [row[0] for row in table[2:]] == ["first (resnet50)", "second (resnet50)"]


def test_literature_is_there_and_flagged(capsys, folder, tables):
    text = run(capsys, folder, "--source", "MSBReg Table 2", "--tasks", "imagenet_linear", "--to", "random:resnet18")
    (table,) = tables(text)
    assert table[0][-2:] == ["not the same here", "source"] and len(table) == 2 + 2 + 23
    assert all("published imagenet" in row[4] and row[2] == "- (published for other data)" for row in table[4:])
    assert all(row[1].strip("*<u>/").replace("*", "") for row in table[4:])


@pytest.mark.parametrize(
    ("cell", "primary", "metrics"),
    [
        ("voc07_lowshot", "mAP_k4", ("mAP_k1", "mAP_k16")),
        ("voc0712_detection_mmdet", "AP", ("AP50", "AP75")),
        ("coco_instance_segmentation", "box_AP", ("mask_AP",)),
    ],
)
def test_every_published_number_stands_beside_ours(capsys, make, tmp_path, tables, cell, primary, metrics):
    more = dict.fromkeys(metrics, 41.0) | {"mAP_k4_std": 1.0}
    store.write(tmp_path, make(40.0, cell=cell, metric=primary, more=more))
    text = run(capsys, tmp_path)
    for metric in metrics:
        assert f"**{cell} {metric}**" in text
    assert len(tables(text)) == 1 + len(metrics), "no table of what nobody publishes"
    assert all(len(table) > 3 and table[2][1].strip("*<u>/") == "41.0" for table in tables(text)[1:])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "nowhere: no such result file or folder"),
        (["{out}", "--tasks", "imagenet_liner"], "no results of cell 'imagenet_liner'; did you mean 'imagenet_linear'"),
        (["{out}", "--to", "mien"], "no row 'mien' to compare to; did you mean 'mine'"),
        (["{out}", "--resamples", "5"], "--resamples must be at least 100"),
        (["{empty}"], "no result files below it"),
        (["{out}", "--tasks", "voc07_svm"], "no result file has a number (voc07_svm skipped: no folder)"),
        (["{file}"], "not a readable result file"),
    ],
)
def test_errors_say_what_to_do(folder, tmp_path, arguments, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.json").write_text("{")
    places = {"out": folder, "empty": tmp_path / "empty", "file": tmp_path / "broken.json"}
    with pytest.raises(BackbenchError, match=re.escape(words)):
        compare.main([a.format(**places) for a in arguments])


def test_help_loads_nothing_heavy():
    code = "import sys; sys.argv = ['x', '--help']\ntry:\n import benchmarks.compare as c; c.main()\nexcept SystemExit: pass\n"
    code += "print(sorted({'torch', 'numpy', 'pydantic', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--literature" in done.stdout and done.stdout.strip().endswith("[]")


@pytest.mark.slow
def test_runs_as_a_plain_script(folder):
    done = warm.run(["benchmarks/compare.py", str(folder), "--no-literature"], cwd=ROOT)
    assert "| mine (resnet50) |" in done.stdout
    failed = warm.run([str(ROOT / "benchmarks" / "compare.py"), "nowhere"], cwd=folder)
    assert (failed.returncode, failed.stderr) == (2, "error: nowhere: no such result file or folder\n")
