"""Tables from records: means and spreads checked by hand, nothing mixed that differs, a self-contained page."""

import csv
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from backbench.errors import BackbenchError
from benchmarks import report
from benchmarks.records import store
from benchmarks.report import __main__ as cli
from benchmarks.report import html, render, spreadsheet
from benchmarks.report.averages import averages
from benchmarks.report.comparison import compare, headlines
from benchmarks.report.table import gather
from model_zoo import entries
from model_zoo.entries import PublishedNumber


def only(table):
    (row,) = table.rows
    (value,) = row.values.values()
    return value


def test_seeds_of_one_backbone(make):
    value = only(gather([make(70.0, seed=0), make(72.0, seed=1), make(77.0, seed=2)]))
    assert value.mean == pytest.approx(73.0)
    assert value.spread == pytest.approx(13**0.5)  # deviations 3, 1, 4: 26 / 2
    assert (value.over, sorted(value.numbers)) == ("seeds", [70.0, 72.0, 77.0])


def test_one_number_has_no_spread(make):
    value = only(gather([make(70.25)]))
    assert (value.mean, value.spread, value.over) == (70.25, None, "")


def test_backbones_of_one_name_count_once_each(make):
    """Two pretrainings, one with three seeds of the evaluation: the mean of two means."""
    table = gather(
        [*(make(v, weights="a", seed=i) for i, v in enumerate((60.0, 62.0, 64.0))), make(70.0, weights="b", seed=0)]
    )
    value = only(table)
    assert value.mean == pytest.approx(66.0)
    assert value.spread == pytest.approx(32**0.5)
    assert (value.over, sorted(value.numbers)) == ("backbones", [62.0, 70.0])
    assert table.rows[0].backbones == 2


def test_numbers_in_the_text(make, tables):
    text = render.markdown(gather([make(70.0, seed=0), make(72.0, seed=1), make(77.0, seed=2)]))
    ((heading, _, row),) = tables(text)
    assert heading == ["backbone", "imagenet_linear top1"]
    assert row == ["mine (resnet50)", "73.0 ± 3.6 (3 seeds)"]
    text = render.markdown(gather([make(-2.9213, metric="uniformity", unit="", cell="imagenet_uniformity")]))
    assert tables(text)[0][2] == ["mine (resnet50)", "-2.921"]


def test_random_baselines_stand_last_and_missing_cells_are_empty(make, tables):
    table = gather(
        [make(5.0, name="random:resnet50", weights="r"), make(70.0, name="zeta", weights="z"),
         make(60.0, name="alpha", weights="b", cell="imagenet_knn", metric="top1_k20")]
    )  # fmt: skip
    assert [row.name for row in table.rows] == ["alpha", "zeta", "random:resnet50"]
    ((heading, _, *rows),) = tables(render.markdown(table))
    assert heading == ["backbone", "imagenet_knn top1_k20", "imagenet_linear top1"]
    assert rows == [
        ["alpha (resnet50)", "60.0", "-"],
        ["zeta (resnet50)", "-", "70.0"],
        ["random:resnet50", "-", "5.0"],
    ]


def test_detectors_stand_behind_the_protocols_of_the_backbone_alone(make):
    table = gather(
        [make(1.0, cell="coco_instance_segmentation", engine="detectron2 0.6"), make(2.0, cell="imagenet_knn")]
    )
    assert [column.cell for column in table.columns] == ["imagenet_knn", "coco_instance_segmentation"]


def test_columns_are_the_headline_and_the_plain_metrics(make, tables):
    more = {"top1_k10": 1.0, "top1_k200": 2.0, "top1_k20_T0.1": 3.0, "top1_k20_majority": 4.0}
    table = gather([make(5.0, cell="imagenet_knn", metric="top1_k20", more=more)])
    assert tables(render.markdown(table))[0][0] == ["backbone", "imagenet_knn top1_k20", "imagenet_knn top1_k200"]
    rows = list(csv.DictReader(io.StringIO(spreadsheet.csv_text(table))))
    assert {row["metric"]: float(row["mean"]) for row in rows} == {"top1_k20": 5.0, **more}


@pytest.mark.parametrize(
    ("cell", "primary", "more", "beside"),
    [
        ("voc0712_detection", "AP", {"AP50": 2.0, "AP75": 3.0}, {"AP50", "AP75"}),
        (
            "coco_instance_segmentation_mmdet",
            "box_AP",
            {"box_AP50": 2.0, "mask_AP": 3.0, "mask_APs": 4.0},
            {"box_AP50", "mask_AP"},
        ),
    ],
)
def test_a_detectors_numbers_are_in_the_tables(cell, primary, more, beside, make, tables):
    record = make(1.0, cell=cell, metric=primary, more=more)
    table = gather([record])
    expected = {f"{cell} {metric}" for metric in (primary, *beside)}
    assert set(tables(render.markdown(table))[0][0][1:]) == expected
    page = html.page(table, [record], suite="")
    assert set(overview(page)[0]) == expected


@pytest.mark.parametrize("demo", [True, False])
@pytest.mark.parametrize("profile", ["full", "smoke"])
def test_demo_and_rehearsal_are_marked_everywhere(demo, profile, make, tables):
    results = [make(50.0, demo=demo, published=False, profile=profile)]
    table = gather(results)
    page = html.page(table, results, suite="demo")
    (row,) = csv.DictReader(io.StringIO(spreadsheet.csv_text(table)))
    heading = tables(render.markdown(table))[0][0][1]
    assert ("DEMO" in heading) == demo == ("sort by imagenet_linear top1 DEMO" in page)
    assert ("REHEARSAL" in heading) == (profile == "smoke") == ("They are not results." in page)
    assert (row["is_demo"], row["profile"]) == (str(demo), profile)
    assert ("demo scenes, 3000/1000 images" in render.markdown(table)) == demo
    assert ("rendered scenes" in page) == demo


def test_data_that_are_not_the_published_ones_are_never_called_so(make):
    table = gather([make(50.0, published=False, counts=(381, 394))])
    text = render.markdown(table)
    assert "**ImageNet layout, 381/394 images** (not the published data set)" in text
    assert "**imagenet**" not in text
    assert "cannot be compared" in render.literature_markdown(table)
    page = html.page(table, [make(50.0, published=False, counts=(381, 394))], suite="")
    assert "not the published data set" in page and "cannot be compared" in page
    assert "cannot be compared" not in render.literature_markdown(gather([make(50.0)]))


@pytest.fixture
def shared(tables):
    """Return whether two rows share a table, or two numbers a cell."""

    def look(results):
        found = tables(render.markdown(gather(results)))
        return any(len(rows) > 3 for rows in found) or any(
            "±" in cell for rows in found for row in rows for cell in row
        )

    return look


def test_numbers_of_the_same_data_share_a_table(make, shared):
    assert shared([make(50.0, name="a"), make(60.0, name="b", weights="b")])


@pytest.mark.parametrize(
    "other",
    [
        {"published": False},
        {"published": False, "demo": True},
        {"data": "imagenet100"},
        {"published": False, "counts": (3000, 999)},
    ],
)
def test_numbers_of_different_data_never_share_a_table(other, make, shared):
    assert not shared([make(50.0, name="a"), make(60.0, name="b", weights="b", manifest="n", **other)])


@pytest.mark.parametrize("name", ["a", "b"])
def test_two_folders_of_the_same_size_are_different_data(name, make, shared):
    """Same numbers of images, another manifest: neither one table nor one mean."""
    first = make(50.0, name="a", published=False, manifest="m")
    assert not shared([first, make(60.0, name=name, weights="b", published=False, manifest="n")])


@pytest.mark.parametrize(
    "other", [{"profile": "smoke", "published": False}, {"config": "d"}, {"cell": "inat18_linear"}]
)
def test_other_settings_are_other_columns(other, make):
    table = gather([make(50.0, name="a", published=False), make(60.0, name="b", weights="b", **other)])
    assert len(table.columns) == 2
    assert all(len(row.values) == 1 for row in table.rows)


def test_failed_and_skipped_are_listed_with_reasons(tmp_path, absent, make):
    records = [
        make(50.0),
        absent("failed", "class2/1.jpg: not a whole image"),
        absent("skipped", "no folder /data/coco", cell="coco_instance_segmentation"),
    ]
    for record in records:
        store.write(tmp_path, record)
    page = report.write(tmp_path)
    expected = [
        "mine, coco_instance_segmentation: skipped: no folder /data/coco",
        "mine, voc07_svm: failed: class2/1.jpg: not a whole image",
    ]
    for text in ((tmp_path / "report.md").read_text(), page.read_text(), report.text(tmp_path)):
        assert all(line in text for line in expected)
    table = gather(records)
    assert [row.name for row in table.rows] == ["mine"]
    assert [column.cell for column in table.columns] == ["imagenet_linear"]


def test_only_failures_and_nothing_at_all(tmp_path, absent):
    assert "No results yet" in report.text(tmp_path)
    assert "No results yet" in report.write(tmp_path / "empty").read_text()
    store.write(tmp_path / "failed", absent("failed", "no memory"))
    assert "no memory" in report.write(tmp_path / "failed").read_text()


def test_csv_is_unrounded(make):
    values = (100 / 3, 200 / 7)
    table = gather([make(v, seed=i) for i, v in enumerate(values)])
    (row,) = csv.DictReader(io.StringIO(spreadsheet.csv_text(table)))
    assert float(row["mean"]) == only(table).mean == pytest.approx(sum(values) / 2, abs=1e-12)
    assert float(row["spread"]) == pytest.approx(abs(values[0] - values[1]) / 2**0.5, abs=1e-12)
    assert (row["n"], row["over"], row["unit"], row["arch"]) == ("2", "seeds", "%", "resnet50")
    (single,) = csv.DictReader(io.StringIO(spreadsheet.csv_text(gather([make(100 / 3)]))))
    assert single["mean"] == repr(100 / 3) and single["spread"] == ""


def test_literature_stands_apart(make, tables):
    table = gather([make(50.0, cell="imagenet_knn", metric="top1_k20")])
    text = render.literature_markdown(table)
    (rows,) = tables(text)
    values = [float(re.sub(r"[*≈]|</?u>", "", row[2])) for row in rows[2:]]
    assert values == sorted(values, reverse=True)
    assert ["imagenet_knn top1_k20", "MSBReg (resnet50)", "*66.2* ≈", "K=4", "", "MSBReg Table 4"] in rows
    level = {row[1] for row in rows if "≈" in row[2]}
    assert {"MSBReg (resnet50)", "SwAV (resnet50)"} <= level and not any("<u>" in row[2] for row in rows)
    assert "66.2" not in render.markdown(table)
    assert render.literature_markdown(gather([make(1.0, cell="none_such")])) == ""


class _Page(HTMLParser):
    """Collect what a page would load and run, and its links."""

    def __init__(self):
        super().__init__()
        self.loaded, self.links, self.tags, self.text, self.scripts = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for key, value in attrs:
            if key in ("src", "href", "xlink:href", "data", "action", "srcset", "poster"):
                (self.links if tag == "a" else self.loaded).append(value)
            assert not key.startswith("on"), "no handlers"
        if tag == "script":
            self.scripts.append(dict(attrs))

    def handle_data(self, data):
        self.text.append(data)


def read_page(text):
    page = _Page()
    page.feed(text)
    own = [{"type": "application/json", "id": name} for name in ("exports", "chosen")]
    assert page.scripts == [*own, {}], "the page's own scripts and no others"
    return page


def overview(text):
    """Return the names of the overview's columns, from the buttons that sort by them, and the cells' texts by row."""
    rows = re.findall(r'<tr class="(?:trained|random)".*?</tr>', text, re.DOTALL)
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]
    return re.findall(r'aria-label="sort by ([^"]*)"', text), cells


@pytest.fixture
def curves(tmp_path):
    file = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"epoch": e, "loss": 2.0 - e, "std": 0.5, "effective_rank": 9.0}) for e in (0.5, 1.0)]
    file.write_text("\n".join(lines) + '\n{"epoch": 1.5, "lo')
    return {"run <b>one</b>": file}


def test_page_is_self_contained(curves, make):
    results = [make(50.0, name="a", seed=0), make(52.0, name="a", seed=1), make(9.0, name="random:resnet50")]
    text = html.page(gather(results), results, suite="paper", curves=curves)
    page = read_page(text)
    assert text.count("<svg") == 2, "a plot of the cell and the curves"
    assert [value for value in page.loaded if not value.startswith(("#", "data:"))] == []
    assert not {"link", "iframe", "img", "object", "embed", "base"} & set(page.tags)
    assert "default-src &#39;none&#39;; style-src" in text and '<html lang="en">' in text, "it asks no server"
    assert not re.search(r"@import|url\((?!#|['\"]?data:|['\"]?#)", text)
    assert "run &lt;b&gt;one&lt;/b&gt;" in text


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "a & b", '"quoted"', "</svg><script>x</script>"])
def test_names_are_escaped(name, absent, make):
    results = [make(50.0, name=name), absent("failed", "<img src=http://x>", name=name)]
    page = read_page(html.page(gather(results), results, suite="<script>"))
    assert "img" not in page.tags
    assert page.loaded == [value for value in page.loaded if value.startswith("#")]
    assert f"{name} (resnet50)" in "".join(page.text)


@pytest.mark.parametrize("name", ["cost$5", "a$b$c", r"$\frac$", "a_b^c", "--><b>", "µ–ü"])
def test_any_name_can_be_plotted(name, make):
    results = [make(50.0, name=name)]
    assert "<svg" in html.page(gather(results), results, suite="")


@pytest.mark.parametrize("name", ["a|b", "a\nb"])
def test_a_name_does_not_break_a_markdown_table(name, make):
    lines = render.markdown(gather([make(50.0, name=name)])).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 3
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {3}


def test_no_word_breaks_a_table_beside_the_literature(make, monkeypatch):
    """Names, settings and sources may contain a bar."""
    number = PublishedNumber(cell="imagenet_linear", metric="top1", value=70.0, variant="K=4|8", source="A | B")
    entry = next(entry for entry in entries.all_entries()).model_copy(update={"method": "a|b", "published": (number,)})
    monkeypatch.setattr(entries, "all_entries", lambda: [entry])
    table = gather([make(50.0, name="x|y"), make(51.0, name="z", weights="z", config="d"),
                    make(51.0, name="x|y", cell="inat18_linear")])  # fmt: skip
    found = compare(table, render.shown(table), {}, to="x|y")
    texts = [
        render.literature_markdown(table),
        render.comparisons_markdown(found, table, to="x|y"),
        render.differences_markdown(found, table, to="x|y"),
        render.averages_markdown(averages(table, headlines(table.columns)), table.columns, table),
    ]
    for text in texts:
        widths = []
        for line in [*text.splitlines(), ""]:
            if line.startswith("|"):
                widths.append(len(re.findall(r"(?<!\\)\|", line)))
            elif widths:
                assert len(widths) > 2 and len(set(widths)) == 1, text
                widths = []
    assert "K=4\\|8" in texts[0] and "A \\| B" in texts[1] and "x\\|y" in texts[2] and "x\\|y" in texts[3]


@pytest.mark.parametrize("tuned", [{}, {"lr": 0.1, "on": "10 images held out of train"}, {"C": {"cat": 0.5}}])
def test_page_takes_whatever_was_tuned(tuned, make):
    """`tuned` may have any fields: a protocol that chooses something else than a learning rate must not break the report."""
    results = [make(50.0, tuned=tuned)]
    text = html.page(gather(results), results, suite="")
    if "lr" in tuned:
        assert "lr 0.1, on 10 images held out of train" in text


def test_only_what_was_chosen_is_said_to_be(make):
    tuned = {"lr": 0.1, "on": "200 images held out of train"}
    chosen, fixed = make(50.0, tuned=tuned), make(50.0, cell="inat18_linear", data="inat18")
    said = "Chosen on 200 images held out of train."
    for results, count in (([chosen, fixed], 1), ([fixed], 0)):
        page = " ".join(html.page(gather(results), results, suite="").split())
        assert page.count(said) == page.count("Chosen on") == count


def test_every_set_of_versions_is_shown(make):
    def with_torch(version: str, seed: int) -> store.Result:
        record = make(50.0, seed=seed)
        provenance = record.provenance.model_copy(update={"packages": {"torch": version}})
        return record.model_copy(update={"provenance": provenance})

    results = [with_torch("2.9", 0), with_torch("2.9", 1), with_torch("3.0", 2)]
    page = html.page(gather(results), results, suite="")
    assert "torch 2.9 (2 records)" in page and "torch 3.0 (1 records)" in page
    assert "(1 records)" not in html.page(gather(results[2:]), results[2:], suite="")


def test_a_detectors_losses_and_pictures_are_on_the_page(tmp_path, make):
    """Found by the record as it is read again."""
    path = store.write(tmp_path, make(50.0, cell="voc0712_detection", metric="AP", engine="detectron2 0.6"))
    folder = store.run_folder(tmp_path, store.read(path))
    folder.mkdir()
    plots_before = report.write(tmp_path).read_text().count("<svg")
    Image.new("RGB", (8, 8)).save(folder / "pictures.png")
    (folder / "losses.jsonl").write_text(
        '{"iteration": 0, "total": 2.0, "lr": 0.1}\n{"iteration": 1, "total": 1.0, "lr": 0.1}\n'
    )
    page = report.write(tmp_path).read_text()
    assert page.count("<svg") == plots_before + 1
    assert page.count('src="data:image/jpeg;base64,') == 1 and "<figcaption>mine, voc0712_detection, seed 0<" in page


@pytest.mark.parametrize("pair", ["run=missing.jsonl", "metrics.jsonl"])
def test_curves_that_are_not_there_are_a_sentence(tmp_path, pair):
    with pytest.raises(BackbenchError, match="expected NAME=FILE"):
        cli.main([str(tmp_path), "--curves", pair])


def test_the_best_is_marked_in_the_metrics_own_direction(make):
    for higher, best in ((True, "60.0"), (False, "50.0")):
        results = [make(50.0, name="a", higher=higher), make(60.0, name="b", weights="b", higher=higher)]
        _, rows = overview(html.page(gather(results), results, suite=""))
        assert [cell for _, cell in rows if "<strong>" in cell] == [f"<strong>{best}</strong>"]


def test_the_second_best_is_underlined(make):
    results = [make(v, name=n, weights=n) for n, v in (("a", 50.0), ("b", 80.0), ("c", 20.0), ("d", 35.0))]
    _, rows = overview(html.page(gather(results), results, suite=""))
    assert [cell for _, cell in rows] == ["<u>50.0</u>", "<strong>80.0</strong>", "20.0", "35.0"]


def test_the_report_says_the_difference_to_the_random_baseline(tmp_path, make, tables):
    """Differences have an interval if scores per test item are stored."""
    labels = np.zeros(100, dtype=np.int32)
    for name, right, weights in (("mine", 80, "a"), ("random:resnet50", 50, "b")):
        best = (np.arange(100) >= right).astype(np.int32)[:, None]
        store.write(tmp_path, make(float(right), name=name, weights=weights), {"best": best, "labels": labels})
        store.write(tmp_path, make(float(right), name=name, weights=weights, cell="inat18_linear"))
    page = report.write(tmp_path).read_text()
    text = (tmp_path / "report.md").read_text()
    (table,) = (rows for rows in tables(text) if rows[0][-1] == "difference")
    found = {row[0]: row[3] for row in table[2:]}
    assert re.fullmatch(r"\+30\.0 \[\+2\d\.0, \+39\.0\] †", found["imagenet_linear top1"])
    assert found["inat18_linear top1"] == "+30.0 † (no interval: no scores per test item are stored)"
    assert found["imagenet_linear top1"] in page and "no interval: no scores per test item are stored" in page
    assert "paired bootstrap" in page and "paired bootstrap" in text
    assert "**80.0**" in text


def test_no_nan_anywhere(tmp_path, curves, make):
    records = [
        make(0.0, name="a"), make(0.0, name="a", seed=1), make(1e-9, name="b", weights="b"),
        make(-3.0, name="c", metric="uniformity", unit="", cell="imagenet_uniformity", higher=False),
    ]  # fmt: skip
    for record in records:
        store.write(tmp_path / "out", record)
    page = report.write(tmp_path / "out", suite="paper", curves=curves)
    for file in (page, tmp_path / "out" / "report.md", tmp_path / "out" / "report.csv"):
        assert not re.search(r"\b(nan|inf)\b", file.read_text(), re.IGNORECASE)


def test_the_same_records_give_the_same_page(make):
    results = [make(50.0), make(52.0, seed=1)]
    assert html.page(gather(results), results, suite="") == html.page(gather(results), results, suite="")


def test_provenance_is_shown(make):
    results = [make(50.0, weights="d", config="e", manifest="b")]
    text = html.page(gather(results), results, suite="")
    assert all(code * 8 in text for code in "debf")
