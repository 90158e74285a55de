"""Numbers that are never averaged together: other data, rehearsals, demos, protocols; and the note on machines."""

import pytest

from backbench.errors import BackbenchError
from benchmarks import compare, report
from benchmarks.records import store
from benchmarks.report import __main__ as cli
from benchmarks.report.comparison import headlines_alike
from benchmarks.report.table import gather, made_apart


def on(record, device, torch="2.9"):
    provenance = record.provenance.model_copy(update={"device": device, "packages": {"torch": torch}})
    return record.model_copy(update={"provenance": provenance})


def with_task(record, **fields):
    return record.model_copy(update={"task": record.task.model_copy(update=fields)})


@pytest.mark.parametrize(
    "other",
    [
        {"manifest": "n"},
        {"profile": "smoke"},
        {"demo": True},
        {"published": False},
        {"config": "d"},
        {"engine": "detectron2 0.6"},
        {"data": "imagenet100"},
        {"cell": "inat18_linear"},
        {"arch": "resnet18"},
    ],
    ids=lambda other: next(iter(other)),
)
def test_a_number_of_another_kind_is_not_in_the_mean(make, other):
    table = gather([make(50.0), make(60.0, seed=1, **other)])
    assert all(len(value.numbers) == 1 for row in table.rows for value in row.values.values())


@pytest.mark.parametrize("fields", [{"version": 2}, {"name": "knn"}, {"config": {"k": 3}}], ids=str)
def test_a_number_of_another_protocol_is_not_in_the_mean(make, fields):
    table = gather([make(50.0), with_task(make(60.0, seed=1), **fields)])
    (row,) = table.rows
    assert [value.numbers for value in row.values.values()] == [(50.0,), (60.0,)]


def test_a_mean_over_machines_says_so(tmp_path, make):
    apart = [on(make(50.0), "cpu"), on(make(60.0, seed=1), "H100")]
    assert made_apart(gather(apart)) == ["mine, imagenet_linear top1: measured on H100 (torch 2.9) and cpu (torch 2.9)"]
    assert made_apart(gather([on(make(50.0), "cpu"), on(make(60.0, seed=1), "cpu")])) == []
    for record in apart:
        store.write(tmp_path, record)
    page = report.write(tmp_path).read_text()
    assert all("measured on H100 (torch 2.9)" in text for text in (page, (tmp_path / "report.md").read_text()))


def test_an_average_is_of_results_or_of_rehearsals(tmp_path, capsys, make):
    for cell in ("imagenet_linear", "inat18_linear"):
        for profile, value in (("full", 50.0), ("smoke", 10.0)):
            store.write(tmp_path, make(value, cell=cell, profile=profile, config=profile[0]))
    table = gather(store.read_all(tmp_path))
    assert [[c.profile for c in kind] for kind in headlines_alike(table.columns)] == [["full"] * 2, ["smoke"] * 2]
    compare.main([str(tmp_path), "--no-literature"])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.count("|") == 5 and "mine" in line]
    assert sorted(row.split("|")[-2].strip(" *") for row in rows) == ["10.0", "50.0"]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "nothing to render"),
        (["nowhere"], "nowhere: no such folder of results"),
        (["{file}"], "no such folder of results"),
        (["--readme", "nowhere.md"], "nowhere.md"),
        (["--readme", "{tmp}"], "is a folder; give a file"),
        (["{tmp}", "--curves", "a={file}", "--curves", "a={file}"], "--curves a: given twice"),
    ],
)
def test_what_cannot_be_rendered_is_a_sentence(tmp_path, argv, words):
    (tmp_path / "file").write_text("")
    with pytest.raises(BackbenchError) as caught:
        cli.main([word.format(tmp=tmp_path, file=tmp_path / "file") for word in argv])
    assert words in str(caught.value)


@pytest.mark.parametrize("argv", [["--tasks", ""], ["--tasks", " ,"], ["--resamples", "10000000"]])
def test_what_cannot_be_compared_is_a_sentence(tmp_path, make, argv):
    store.write(tmp_path, make(50.0))
    with pytest.raises(BackbenchError, match=r"no cell named; there are imagenet_linear|at most 1000000"):
        compare.main([str(tmp_path), *argv])
