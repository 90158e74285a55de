"""The overview and its formats: what stands where, what is escaped how, ranks, links, classes, provenance."""

from __future__ import annotations

import csv
import io
import json
import re

import numpy as np
import pytest

from benchmarks import report
from benchmarks.records import store
from benchmarks.report import __main__ as cli
from benchmarks.report import classes, exports, made, protocol_text, render
from benchmarks.report.comparison import compare
from benchmarks.report.intervals import Intervals
from benchmarks.report.links import linked
from benchmarks.report.matrix import matrix
from benchmarks.report.scores import Scores
from benchmarks.report.standing import standings
from benchmarks.report.table import gather

HOSTILE = [
    "=cmd|' /C calc'!A0",
    "+1",
    "-1",
    "@SUM(1)",
    "\tx",
    "a\x1b[31mb",
    "<b>&\"'",
    r"\write18{ls} % & # _ ^ ~ $x$",
    "a|b\nc",
    "a,b",
]


def overview(records, **options):
    table = gather(records)
    found = compare(table, render.shown(table), {}, to=options.pop("to", None), with_literature=False)
    return matrix(table, found, standings(table, table.columns, Intervals({}, 100)), **options)


def states(made_matrix):
    return {row.label: [entry.state for entry in row.entries] for row in made_matrix.rows}


def test_numbers_failures_and_gaps_stand_in_their_places(make, absent):
    records = [
        make(50.0, name="a", weights="a", cell="data_linear"),
        make(40.0, name="b", weights="b", cell="data_knn"),
        absent("failed", "no memory", name="a", cell="voc07_svm"),
        absent("skipped", "no folder", name="never", cell="data_knn"),
    ]
    found = overview(records, source=None)
    assert [head.cell for head in found.heads] == ["data_knn", "data_linear", "voc07_svm"]
    assert states(found) == {
        "a (resnet50)": ["not measured", "number", "failed"],
        "b (resnet50)": ["number", "not measured", "not measured"],
        "never": ["skipped", "not measured", "not measured"],
    }
    assert [entry.why for entry in found.rows[0].entries] == ["not measured", "", "no memory"]


def test_a_failure_of_one_configuration_is_not_one_of_another(make, absent):
    """The record of a failure knows its configuration: the number of the other one is untouched, and so is its column."""
    lacking = absent("failed", "no memory", cell="data_linear")
    lacking = lacking.model_copy(update={"task": lacking.task.model_copy(update={"config_sha256": "d" * 64})})
    found = overview([make(50.0, cell="data_linear"), lacking], source=None)
    assert states(found) == {"mine (resnet50)": ["number", "failed"]}
    assert found.heads[1].name == "data_linear [dddddddd]"


def test_columns_of_other_data_have_names_of_their_own(make):
    records = [make(1.0, manifest="m", published=False), make(2.0, manifest="n", published=False, weights="b")]
    names = [head.name for head in overview(records, source=None).heads]
    assert len(set(names)) == 2 and all("manifest" in name for name in names)


def test_published_rows_are_by_method_pretraining_and_document(make):
    found = overview([make(50.0, cell="imagenet_knn", metric="top1_k20", more={"top1_k200": 1.0})])
    rows = {row.label: row for row in found.rows if row.kind == "published"}
    row = rows["MSBReg (resnet50), K=4"]
    assert ([entry.text for entry in row.entries], row.source) == (["66.2", "63.0"], "MSBReg")
    assert row.entries[0].why.startswith("MSBReg Table 4: ")
    assert not [row for row in overview([make(50.0)], source=None).rows if row.kind == "published"]


def test_ranks_are_those_of_the_standing(make):
    records = [
        make(value, name=name, weights=name, cell=f"{data}_linear", data=data)
        for name, values in {"a": (50.0, 60.0), "b": (40.0, 70.0), "c": (30.0, 10.0)}.items()
        for data, value in zip(("one", "two"), values, strict=True)
    ]
    found = overview([*records, make(99.0, name="d", weights="d", cell="one_linear", data="one")], source=None)
    assert {row.name: row.rank for row in found.rows} == {"a": 1.5, "b": 1.5, "c": 3.0, "d": None}


def as_text(form, records):
    return exports.as_shown(form, overview(records, source=None))


def test_csv_is_unrounded_and_no_name_is_a_formula(make):
    records = [make(100 / 3, name=name, weights=format(n, "x")) for n, name in enumerate(HOSTILE, 1)]
    head, *rows = csv.reader(io.StringIO(as_text("csv", records)))
    assert head == ["backbone", "imagenet_linear top1"] and {row[1] for row in rows} == {repr(100 / 3)}
    assert len(rows) == len(HOSTILE)
    assert not [row[0] for row in rows if row[0].lstrip().startswith(("=", "+", "-", "@"))]


def test_latex_is_the_papers_style_and_escapes_names(make):
    records = [make(v, name=n, weights=w) for v, n, w in ((20.0, "a_b", "a"), (80.0, "c & d", "b"), (50.0, "e", "c"))]
    text = as_text("latex", records)
    assert text.startswith("\\begin{tabular}{lc}\n\\toprule\nbackbone & imagenet\\_linear top1 \\\\\n\\midrule\n")
    assert "c \\& d (resnet50) & \\textbf{80.0} \\\\\n" in text and "e (resnet50) & \\underline{50.0}" in text
    assert text.endswith("a\\_b (resnet50) & 20.0 \\\\\nc \\& d (resnet50) & \\textbf{80.0} \\\\\ne (resnet50) & "
                         "\\underline{50.0} \\\\\n\\bottomrule\n\\end{tabular}\n")  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_breaks_a_line_of_any_format(make, name):
    records = [make(50.0, name=name), make(60.0, name="other", weights="b")]
    bare = re.sub(r"\\(textbackslash|textasciitilde|textasciicircum|textbar|textless|textgreater|textquotedbl)\{\}|\\[{}$&#%_]",
                  "", as_text("latex", records).partition("\\midrule")[2])  # fmt: skip
    assert not re.search(r"[$#%_^~]", bare) and bare.count("&") == 2, "one for each row"
    lines = as_text("markdown", records).splitlines()
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {3} and len(lines) == 4
    for form in exports.FORMS:
        assert "\x1b" not in as_text(form, records)


def test_json_has_all_that_is_known(make, absent):
    records = [make(50.0, seed=0), make(53.0, seed=1), make(40.0, name="random:resnet50", weights="r"),
               absent("failed", "no memory")]  # fmt: skip
    found = json.loads(exports.as_shown("json", overview(records, to="random:resnet50", source=None)))
    assert [row["backbone"] for row in found] == ["mine (resnet50)", "random:resnet50"]
    number = found[0]["imagenet_linear top1"]
    assert (number["mean"], number["n"], number["over"], number["difference"]) == (51.5, 2, "seeds", 11.5)
    assert found[0]["voc07_svm"] == {"state": "failed", "mean": None, "why": "no memory"}


def test_rows_and_columns_can_be_chosen(make):
    export = exports.csv_cells(overview([make(1.0, more={"top5": 2.0}), make(3.0, name="b", weights="b")], source=None))
    assert exports.text(export, [1], [1]) == "backbone,imagenet_linear top5\nmine (resnet50),2.0\n"
    assert exports.text(export, [], []) == "backbone\n"


@pytest.mark.parametrize("form", exports.FORMS)
def test_the_command_prints_a_format_and_writes_nothing(tmp_path, make, capsys, form):
    store.write(tmp_path, make(50.0))
    before = sorted(tmp_path.rglob("*"))
    assert cli.main([str(tmp_path), "--format", form]) == 0
    assert capsys.readouterr().out == report.Report(tmp_path).export(form)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_command_compares_with_any_row(tmp_path, make, capsys):
    store.write(tmp_path, make(50.0, name="a", weights="a"))
    store.write(tmp_path, make(40.0, name="b", weights="b"))
    assert cli.main([str(tmp_path), "--to", "b"]) == 0
    assert "Difference to b" in (tmp_path / "report.md").read_text()
    capsys.readouterr()


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("facebookresearch/moco README.md + main_lincls.py@132aea9", "https://github.com/facebookresearch/moco"),
        ("facebookresearch/moco@132aea9: x", "https://github.com/facebookresearch/moco/tree/132aea9"),
        ("neighbours (zhirongw/lemniscate.pytorch test.py)", "https://github.com/zhirongw/lemniscate.pytorch"),
        ("see https://example.org/a?b=1&c=2.", "https://example.org/a?b=1&amp;c=2"),
        ("MSBReg Table 5", "https://arxiv.org/abs/2207.03552"),
    ],
)
def test_places_are_links(text, address):
    assert re.findall(r'href="([^"]*)"', linked(text)) == [address]


@pytest.mark.parametrize(
    "text", ["eval/knn.py", "381/394 images", "a MSBReg backbone", "javascript:alert(1)", "x/y/z", "<a href=x>"]
)
def test_other_words_are_not(text):
    assert "<a " not in linked(text)


def test_a_text_of_links_is_escaped():
    assert linked("<b> `code <i>` https://x.org/<script>") == (
        "&lt;b&gt; <code>code &lt;i&gt;</code> "
        '<a href="https://x.org/" rel="noreferrer">https://x.org/</a>&lt;script&gt;'
    )


def test_a_protocols_text_is_its_tasks(tmp_path, monkeypatch):
    first, *rest = protocol_text.about("knn")
    assert first == "k-nearest-neighbour classification of frozen features (MSBReg section 8.3, Tables 1 and 4)."
    assert any("zhirongw/lemniscate.pytorch" in words for words in rest)
    assert protocol_text.about("no_such_task") == protocol_text.about("../../etc") == ()


def test_numbers_by_class_are_means_over_the_records(make, shelf):
    table = gather([
        shelf.put(make(50.0, seed=seed), {"per_class_top1": np.array(values), "labels": np.zeros(3)})
        for seed, values in enumerate(([10.0, 30.0, np.nan], [20.0, 30.0, np.nan]))
    ])  # fmt: skip
    found = classes.per_class(table.rows, table.columns[0], Scores(shelf.items))
    assert found.classes == ("class 0", "class 1", "class 2") and found.backbones == ("mine (resnet50)",)
    assert found.numbers == ((15.0,), (30.0,), (None,)) and found.metric == "top1"


def test_of_many_classes_those_that_differ_most_are_shown(make, shelf):
    even = np.full(100, 50.0)
    odd = even.copy()
    odd[40:60] = 90.0
    for name, values in (("a", even), ("b", odd)):
        shelf.put(make(50.0, name=name, weights=name), {"per_class_top1": values, "labels": np.zeros(3)})
    table = gather([make(50.0, name=name, weights=name) for name in "ab"])
    found = classes.per_class(table.rows, table.columns[0], Scores(shelf.items))
    assert found.classes == tuple(f"class {n}" for n in range(40, 60)) and found.of == 100


def test_confusions_are_shares_of_the_true_class(make, shelf):
    labels = np.array([0, 0, 0, 0, 1, 1, 2], np.int32)
    best = np.array([0, 0, 1, 2, 1, 0, 2], np.int32)[:, None]
    table = gather([shelf.put(make(57.0), {"labels": labels, "best": best})])
    (found,) = classes.confusions(table.rows, table.columns[0], Scores(shelf.items))
    assert found.shares == ((50.0, 25.0, 25.0), (50.0, 50.0, 0.0), (0.0, 0.0, 100.0))
    assert found.pairs[0] == ("class 1", "class 0", 50.0)


def test_confusions_of_many_classes_are_pairs(make, shelf):
    labels = np.arange(1000, dtype=np.int32)
    best = np.where(labels < 5, labels + 1, labels).astype(np.int32)[:, None]
    table = gather([shelf.put(make(99.5), {"labels": labels, "best": best})])
    (found,) = classes.confusions(table.rows, table.columns[0], Scores(shelf.items))
    assert found.shares == () and found.pairs[0] == ("class 0", "class 1", 100.0) and len(found.pairs) == 5


@pytest.mark.parametrize(
    "arrays",
    [
        {"labels": np.array([-1, 0]), "best": np.array([[0], [0]])},
        {"labels": np.array([0.5, 0]), "best": np.array([[0], [0]])},
        {"labels": np.array([0, 0]), "best": np.array([0, 0])},
        {"labels": np.array([0]), "best": np.array([[0], [0]])},
        {"labels": np.array([2**40]), "best": np.array([[0]])},
        {"labels": np.array([0])},
    ],
)
def test_arrays_of_another_form_make_no_confusion(make, shelf, arrays):
    table = gather([shelf.put(make(50.0), arrays)])
    assert classes.confusions(table.rows, table.columns[0], Scores(shelf.items)) == []


def test_provenance_joins_records_that_differ_in_the_seed_only(make):
    records = [make(50.0, seed=seed) for seed in (0, 1, 2, 5)] + [make(50.0, seed=3, config="e")]
    (origin,) = made.origins(records)
    assert [(batch.seeds, batch.config, batch.wall_s) for batch in origin.batches] == [
        ("0-2, 5", "c" * 8, 4.0),
        ("3", "e" * 8, 1.0),
    ]
    assert (origin.records, origin.wall_s, origin.weights_sha256) == (5, 5.0, "a" * 64)
    assert "torch 2.9" in made.packages(records)[0] and made.commands(records) == ["run_one.py"]
