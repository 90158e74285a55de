"""`python -m benchmarks.evidence.predictors`: made records whose predictors are known, and what it refuses."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
import scipy.stats
from made_records import make_absent, make_record

from backbench.errors import BackbenchError
from benchmarks.evidence import correlated, predictors
from benchmarks.evidence.derived import with_derived
from benchmarks.records import store
from benchmarks.report import readme

LOWER = ("alpha_req", "uniformity", "alignment")
TRANSFER = (10.0, 20.0, 30.0, 40.0, 50.0, 60.0)  # top1 of the six backbones


def diagnosed(backbone, numbers, *, task="diagnostics", **fields):
    """A record of backbone number 0 to 5 with diagnostics; the first is the headline."""
    name, *_ = numbers
    record = make_record(
        numbers[name], name=f"b{backbone}", weights="abcdef"[backbone], metric=name, cell=f"imagenet_{task}", **fields
    )
    metrics = {
        key: store.MetricRecord(value=value, unit="", higher_is_better=key not in LOWER)
        for key, value in numbers.items()
    }
    task_record = record.task.model_copy(update={"name": task})
    return record.model_copy(update={"metrics": metrics, "task": task_record})


def transferred(backbone, value, **fields):
    return make_record(value, name=f"b{backbone}", weights="abcdef"[backbone], **fields)


def folder(root, records):
    for record in records:
        store.write(root, record)
    return root


@pytest.fixture
def results(tmp_path):
    """RankMe has the transfer's order, alpha the opposite one (lower is better, so it agrees), LiDAR is against it."""
    records = [transferred(i, value) for i, value in enumerate(TRANSFER)]
    records += [
        diagnosed(i, {"rankme": 5.0 + i**2, "alpha_req": 2.0 - 0.1 * i, "lidar": 50.0 - i, "uniformity": -1.0})
        for i in range(6)
    ]
    return folder(tmp_path / "results", records)


def run(results, out, *options):
    assert predictors.main([str(results), "--out", str(out), "--resamples", "200", *options]) == 0
    return json.loads((out / "predictors.json").read_text())


def by_diagnostic(found, transfer="imagenet_linear top1"):
    return {pair["diagnostic"]: pair for pair in found["pairs"] if pair["transfer"] == transfer}


def test_known_predictors_are_told(results, tmp_path, capsys):
    found = run(results, tmp_path / "out")
    pairs = by_diagnostic(found)
    perfect = {"value": 1.0, "low": 1.0, "high": 1.0}
    assert (
        pairs["imagenet_diagnostics rankme"]["spearman"] == pairs["imagenet_diagnostics rankme"]["kendall"] == perfect
    )
    assert pairs["imagenet_diagnostics alpha_req"]["spearman"]["value"] == 1, "lower is better"
    assert pairs["imagenet_diagnostics lidar"]["spearman"]["value"] == -1
    assert pairs["imagenet_diagnostics rankme"]["backbones"] == [f"b{i}" for i in range(6)]
    assert found["left_out"] == [
        "imagenet_diagnostics uniformity and imagenet_linear top1: all 6 backbones have the same number"
    ]
    printed = capsys.readouterr()
    assert "| imagenet_diagnostics rankme | 6 | 1.00 [1.00, 1.00] | 1.00 [1.00, 1.00] |" in printed.out
    assert "left out: imagenet_diagnostics uniformity" in printed.err
    assert (tmp_path / "out" / "predictors.md").read_text() in printed.out
    picture = (tmp_path / "out" / "predictors.svg").read_text()
    assert picture.startswith("<svg")
    assert [*pairs][-1] == "imagenet_diagnostics lidar", "the best predictor comes first"


def test_the_same_records_give_the_same_files(results, tmp_path):
    for out in ("one", "other"):
        run(results, tmp_path / out)
    for name in ("predictors.json", "predictors.md", "predictors.svg"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_a_page_made_from_the_json_is_the_same(results, tmp_path):
    run(results, tmp_path / "out")
    assert readme.predictors(tmp_path / "out") == (tmp_path / "out" / "predictors.md").read_text()


def test_alpha_is_judged_by_its_distance_from_one_too():
    alphas = [0.5, 0.7, 0.9, 1.0, 1.2, 1.6]
    gaps = [
        record.metrics["alpha_req_gap"] for record in with_derived([diagnosed(0, {"alpha_req": a}) for a in alphas])
    ]
    assert [gap.value for gap in gaps] == pytest.approx([0.5, 0.3, 0.1, 0.0, 0.2, 0.6])
    assert not any(gap.higher_is_better for gap in gaps)


def test_clid_is_the_sum_of_its_standardised_parts():
    parts = [(50.0, 10.0), (70.0, 12.0), (90.0, 26.0)]
    records = [diagnosed(i, {"cluster_learnability": a, "intrinsic_dimension": b}) for i, (a, b) in enumerate(parts)]
    found = [record.metrics["clid"].value for record in with_derived(records)]
    assert found == pytest.approx(scipy.stats.zscore(parts).sum(axis=1))
    other = diagnosed(3, {"cluster_learnability": 1.0, "intrinsic_dimension": 1.0}, manifest="n")
    mixed = with_derived([*records, other])
    assert [record.metrics["clid"].value for record in mixed[:3]] == found, "other data have their own scale"
    assert "clid" not in mixed[3].metrics, "one backbone has no spread"


def test_seeds_are_averaged_and_backbones_counted_once(results, tmp_path):
    folder(results, [transferred(0, 200.0 / 3, seed=seed) for seed in (1, 2)])  # its mean becomes 47.8: the fifth
    pair = by_diagnostic(run(results, tmp_path / "out"))["imagenet_diagnostics rankme"]
    assert len(pair["backbones"]) == 6
    assert pair["spearman"]["value"] == pytest.approx(1 - 6 * (3**2 + 3 * 1) / (6 * 35))


def test_only_backbones_with_both_numbers_count(results, tmp_path):
    folder(results, [transferred(i, value, cell="imagenet_knn") for i, value in enumerate(TRANSFER[:5])])
    folder(results, [transferred(i, value, cell="voc07_svm") for i, value in enumerate(TRANSFER[:4])])
    found = run(results, tmp_path / "out")
    assert len(by_diagnostic(found, "imagenet_knn top1")["imagenet_diagnostics lidar"]["backbones"]) == 5
    assert not by_diagnostic(found, "voc07_svm top1")
    assert "imagenet_diagnostics lidar and voc07_svm top1: 4 backbones have both, and 5 are needed" in found["left_out"]


def test_uniformity_cells_are_diagnostics_too(results, tmp_path):
    numbers = [{"uniformity": -float(i), "alignment": 0.1 * i} for i in range(6)]
    folder(results, [diagnosed(i, row, task="uniformity", config="u") for i, row in enumerate(numbers)])
    pairs = by_diagnostic(run(results, tmp_path / "out"))
    assert pairs["imagenet_uniformity uniformity"]["spearman"]["value"] == 1
    assert pairs["imagenet_uniformity alignment"]["spearman"]["value"] == -1


def test_random_baselines_count_when_asked_for(results, tmp_path):
    name = {"name": "random:resnet50", "weights": "0", "kind": "random"}
    diagnostic = diagnosed(0, {"rankme": 1.0, "lidar": 1.0})
    record = diagnostic.backbone.model_copy(
        update={"name": name["name"], "weights_sha256": "0" * 64, "format": "random"}
    )
    folder(results, [make_record(1.0, **name), diagnostic.model_copy(update={"backbone": record})])
    counted = [len(by_diagnostic(run(results, tmp_path / "out", *words))["imagenet_diagnostics rankme"]["backbones"])
               for words in ((), ("--random",))]  # fmt: skip
    assert counted == [6, 7]


def test_other_data_are_told_apart(results, tmp_path):
    own = {"manifest": "n", "published": False, "counts": (30, 20)}
    folder(results, [transferred(i, 61.0 - value, **own) for i, value in enumerate(TRANSFER)])
    found = run(results, tmp_path / "out")
    there = by_diagnostic(found, "imagenet_linear top1 (ImageNet layout, 30/20 images)")
    assert there["imagenet_diagnostics rankme"]["spearman"]["value"] == -1
    assert by_diagnostic(found)["imagenet_diagnostics rankme"]["spearman"]["value"] == 1


def test_the_plot_names_data_once_where_both_numbers_have_the_same(tmp_path):
    own = {"manifest": "n", "published": False, "counts": (30, 20)}
    on_own = [diagnosed(i, {"rankme": 1.0 + i}, **own) for i in range(6)]
    records = [transferred(i, value, **own) for i, value in enumerate(TRANSFER)]
    records += [transferred(i, value, cell="voc07_svm") for i, value in enumerate(TRANSFER)]
    run(folder(tmp_path / "results", [*on_own, *records]), tmp_path / "out")
    drawn = re.findall(
        r">([^<>]*imagenet_diagnostics rankme[^<>]*)</text>", (tmp_path / "out" / "predictors.svg").read_text()
    )
    assert sorted(drawn) == [
        "imagenet_diagnostics rankme",
        "imagenet_diagnostics rankme (ImageNet layout, 30/20 images)",
    ]


def test_a_rehearsal_is_not_compared_with_a_measurement(results, tmp_path):
    rehearsals = [transferred(i, 61.0 - value, profile="smoke", config="s") for i, value in enumerate(TRANSFER)]
    found = run(folder(results, rehearsals), tmp_path / "out")
    assert {pair["transfer"] for pair in found["pairs"]} == {"imagenet_linear top1 [cccccccc]"}


def test_too_few_backbones_are_refused_with_the_number_that_lacks(tmp_path):
    records = [transferred(i, value) for i, value in enumerate(TRANSFER)]
    results = folder(tmp_path / "few", [*records, *(diagnosed(i, {"rankme": 1.0 + i}) for i in range(3))])
    with pytest.raises(BackbenchError, match=r"3 backbones have both .* needs 5: measure 2 more"):
        predictors.main([str(results), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ([transferred(0, 5.0)], "no diagnostics: run `backbench run --tasks imagenet_diagnostics`"),
        ([diagnosed(0, {"rankme": 5.0})], "no transfer numbers: run `backbench run --tasks imagenet_knn`"),
        ([make_absent("failed", "why")], "no diagnostics"),
        ([diagnosed(i, {"rankme": 5.0}) for i in range(6)] + [transferred(i, 5.0 + i) for i in range(6)],
         "no rank correlation is defined: .* all 6 backbones have the same number"),
    ],
)  # fmt: skip
def test_records_that_cannot_answer_are_refused(records, words):
    with pytest.raises(BackbenchError, match=words):
        correlated.correlate(records, 200)


@pytest.mark.parametrize("resamples", ["0", "99", "100001"])
def test_draws_out_of_range_are_refused(results, tmp_path, resamples):
    with pytest.raises(BackbenchError, match="give 100 to 100000"):
        predictors.main([str(results), "--out", str(tmp_path), "--resamples", resamples])


def test_names_are_escaped(results, tmp_path):
    records = [transferred(i, value, cell="a|b<i>$x") for i, value in enumerate(TRANSFER)]
    run(folder(results, records), tmp_path / "out")
    text = (tmp_path / "out" / "predictors.md").read_text()
    assert r"### a\|b&lt;i>\$x top1" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {5}


def test_help_and_errors_of_the_command(tmp_path):
    words = [sys.executable, "-m", "benchmarks.evidence.predictors"]
    told = subprocess.run([*words, "--help"], capture_output=True, text=True, check=True).stdout
    assert "At least 5 backbones" in told and "--random" in told
    done = subprocess.run([*words, str(tmp_path / "no"), "--out", "x"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "no such result file or folder" in done.stderr and "Traceback" not in done.stderr
