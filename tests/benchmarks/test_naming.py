"""Numbers that share a row, and the names of rows."""

import numpy as np
import pytest

from benchmarks import report
from benchmarks.naming import Who, labels
from benchmarks.records import store
from benchmarks.report.table import gather


def names_of(*sources, name="resnet18", named=False):
    """Return the labels of backbones with one name from these files, each with different weights."""
    everyone = [Who(name, named, str(i) * 64, "a", "i", source) for i, source in enumerate(sources)]
    found = labels(everyone)
    return [found[who.key] for who in everyone]


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        (["moco/resnet18.pth"], ["resnet18"]),
        (["moco/resnet18.pth", "swav/resnet18.pth"], ["moco/resnet18", "swav/resnet18"]),
        (["/a/moco/resnet18.pth.tar", "../swav/./resnet18.pt"], ["moco/resnet18", "swav/resnet18"]),
        (["x/moco/resnet18.pth", "y/moco/resnet18.pth"], ["x/moco/resnet18", "y/moco/resnet18"]),
        (["m/resnet18.pth", "m/resnet18.pt"], ["m/resnet18.pth", "m/resnet18.pt"]),
        (["resnet18.pth", "swav/resnet18.pth"], ["resnet18", "swav/resnet18"]),
        (["timm:resnet18", "hf-hub:a/resnet18"], ["timm:resnet18", "hf-hub:a/resnet18"]),
        (["a/resnet18.pth", "a/resnet18.pth"], ["a/resnet18 (00000000)", "a/resnet18 (11111111)"]),
        (["", ""], ["resnet18 (00000000)", "resnet18 (11111111)"]),
    ],
)
def test_names_from_files_are_told_apart_by_their_folders(sources, expected):
    assert names_of(*sources) == expected


def test_checkpoints_of_lightning_are_told_apart_by_version():
    runs = [f"logs/version_{i}/checkpoints/last.ckpt" for i in range(2)]
    assert names_of(*runs, name="checkpoints") == ["version_0/checkpoints/last", "version_1/checkpoints/last"]
    assert names_of("run/last.ckpt", "run/best.ckpt", name="run") == ["run/last", "run/best"]


def test_only_the_case_or_the_accents_form_is_no_difference_to_a_reader():
    pair = [Who(name, False, w * 64, "a", "i", f"{w}/{name}.pth") for name, w in (("Net", "1"), ("net", "2"))]
    assert list(labels(pair).values()) == ["1/Net", "2/net"]
    pair = [Who(name, False, w * 64, "a", "i", f"{w}/{name}.pth") for name, w in (("\u00e9", "1"), ("e\u0301", "2"))]
    assert [label[:2] for label in labels(pair).values()] == ["1/", "2/"]


def test_a_name_from_a_file_is_not_a_name_that_was_given(make):
    given = [make(v, name="net", weights=w, named=True, source=f"{w}.pth") for v, w in ((50.0, "a"), (60.0, "b"))]
    derived = make(10.0, name="net", weights="c", named=False, source="c/net.pth")
    table = gather([*given, derived])
    (column,) = table.columns
    found = {row.name: (row.values[column].mean, row.backbones) for row in table.rows}
    assert found == {"net": (55.0, 2), "c/net": (10.0, 1)}


@pytest.mark.parametrize("word", [["--ckpt", "{}"], ["--ckpt={}"]])
def test_an_older_record_says_by_its_command_whether_the_name_was_given(make, word):
    def made(value, weights, ckpt):
        record = make(value, name="net", weights=weights)
        argv = ["run_one.py", *(w.format(ckpt) for w in word), "--cell", "x"]
        return record.model_copy(update={"provenance": record.provenance.model_copy(update={"argv": argv})})

    given = gather([made(50.0, "a", "net=x/a.pth"), made(60.0, "b", "net=b.pth")])
    assert [(row.name, row.backbones) for row in given.rows] == [("net", 2)]
    derived = gather([made(50.0, "a", "x/net.pth"), made(60.0, "b", "y/net.pth")])
    assert [row.name for row in derived.rows] == ["x/net", "y/net"]


def test_networks_of_a_random_baseline_are_one_row_and_never_one_with_trained_ones(make):
    random = [make(v, name="r", weights=w, kind="random", named=False) for v, w in ((1.0, "a"), (3.0, "b"))]
    assert [(row.name, row.backbones) for row in gather(random).rows] == [("r", 2)]
    trained = make(50.0, name="r", weights="c", named=False, source="x/r.pth")
    assert sorted(row.backbones for row in gather([*random, trained]).rows) == [1, 2]


def test_what_has_no_number_is_told_apart_as_well(make, absent):
    lacking = [
        absent("failed", "no").model_copy(
            update={"backbone": make(1.0, weights=w, named=False, source=f"{w}/mine.pth").backbone}
        )
        for w in ("a", "b")
    ]
    assert [a.name for a in gather(lacking).absent] == ["a/mine", "b/mine"]


def test_a_report_of_several_calls_joins_nothing_that_the_user_did_not(tmp_path, make):
    for w, value in (("a", 20.0), ("b", 42.0)):
        record = make(value, name="resnet18", weights=w, named=False, source=f"{w}/resnet18.pth")
        store.write(tmp_path, record, {"labels": np.zeros(3, np.int32)})
    report.write(tmp_path)
    for file in ("report.md", "report.csv", "report.html"):
        text = (tmp_path / file).read_text()
        assert "a/resnet18" in text and "b/resnet18" in text and "2 backbones" not in text, file


def test_a_measurement_that_lies_there_twice_counts_once(tmp_path, make):
    """A copied folder once gave (2 seeds) with a spread of 0."""
    path = store.write(tmp_path, make(50.0))
    other = tmp_path / "copy" / path.parent.name / "seed0.json"
    other.parent.mkdir(parents=True)
    other.write_bytes(path.read_bytes())
    assert len(list(store.read_all(tmp_path))) == 1
    assert "counted once" in report.text(tmp_path) and "±" not in report.text(tmp_path)
    other.write_text(path.read_text().replace("50.0", "51.0"))
    assert "with other numbers" in report.text(tmp_path)


def test_long_names_stay_different():
    found = names_of(f"{'x' * 300}1/resnet18.pth", f"{'x' * 300}2/resnet18.pth")
    assert len(set(found)) == 2 and all(len(label) <= 120 for label in found)
