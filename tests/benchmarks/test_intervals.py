"""Intervals kept beside the results: equal to computed ones, never those of other inputs, never a reason to fail."""

from __future__ import annotations

import os

import numpy as np
import pytest

from benchmarks import compare, report
from benchmarks.records import store
from benchmarks.report import intervals, paired
from benchmarks.report.intervals import FILE, Intervals

RESAMPLES = 200


@pytest.fixture
def computed(monkeypatch):
    """Count the intervals that are computed."""
    calls = []
    as_it_is = paired.interval
    monkeypatch.setattr(paired, "interval", lambda *args, **kwargs: calls.append(args[2]) or as_it_is(*args, **kwargs))
    return calls


@pytest.fixture
def pair(shelf, draws):
    """Records of two backbones on the same items."""
    mine, other = draws(0, 0.7, 0.6)
    return [shelf.top1(mine, weights="a")], [shelf.top1(other, weights="b")]


def between(shelf, mine, other, folder, *, metric="top1", resamples=RESAMPLES):
    """The interval of a process that reads the folder's file and writes it."""
    kept = Intervals(shelf.items, resamples, folder)
    found = kept.between(mine, other, metric)
    kept.save()
    return found


def test_a_later_process_finds_the_interval(shelf, pair, computed, tmp_path):
    found = [between(shelf, *pair, tmp_path) for _ in range(3)]
    assert found[0] == found[1] == found[2] == shelf.interval(*pair, resamples=RESAMPLES)
    assert len(computed) == 2, "once, and once by the line above"


def test_without_a_folder_nothing_is_kept(shelf, pair, computed, tmp_path):
    assert between(shelf, *pair, None) == between(shelf, *pair, None)
    assert len(computed) == 2
    assert list(tmp_path.glob(FILE)) == []


def with_other_arrays(shelf, mine, draws):
    """The same record and number, right about other items."""
    (right,) = draws(0, 0.7)
    shelf.top1(right[::-1], weights="a")
    return mine


def of_other_weights(shelf, mine, draws):
    """A second seed of the same backbone: both together have the weight of one."""
    (right,) = draws(7, 0.7)
    return [*mine, shelf.top1(right, weights="a", seed=1)]


def with_other_number(shelf, mine, draws):
    record = mine[0]
    metric = record.metrics["top1"]
    changed = {"top1": metric.model_copy(update={"value": metric.value + 1e-9})}
    return [record.model_copy(update={"metrics": changed})]


@pytest.mark.parametrize("change", [with_other_arrays, of_other_weights, with_other_number])
def test_other_inputs_have_another_interval(shelf, pair, computed, draws, tmp_path, change):
    mine, other = pair
    between(shelf, mine, other, tmp_path)
    changed = change(shelf, mine, draws)
    assert between(shelf, changed, other, tmp_path) == shelf.interval(changed, other, resamples=RESAMPLES)
    assert between(shelf, mine, other, tmp_path, resamples=300).resamples == 300
    between(shelf, other, changed, tmp_path)
    assert len(computed) == 5, "each one of them, and one without the file"


def test_difficult_objects_that_count_otherwise_have_another_interval(shelf, computed, tmp_path):
    labels = np.where(np.random.default_rng(0).random((60, 2)) < 0.4, 1, -1).astype(np.int8)
    scores = np.random.default_rng(1).normal(size=(2, 60, 2))
    sides = [[shelf.svm(each, labels, weights=w)] for each, w in zip(scores, "ab", strict=True)]
    between(shelf, *sides, tmp_path, metric="mAP")
    sides[0][0].task.config["difficult_test"] = "negative"
    between(shelf, *sides, tmp_path, metric="mAP")
    between(shelf, *sides, tmp_path, metric="mAP")
    assert len(computed) == 2


def test_another_version_of_numpy_may_draw_otherwise(shelf, pair, computed, tmp_path, monkeypatch):
    between(shelf, *pair, tmp_path)
    monkeypatch.setattr(np, "__version__", "99.0")
    between(shelf, *pair, tmp_path)
    assert len(computed) == 2


def with_another_digit(file):
    text = file.read_text()
    place = text.rindex("9", 0, text.rindex("]"))
    file.write_text(f"{text[:place]}8{text[place + 1 :]}")


DAMAGE = {
    "another digit": with_another_digit,
    "cut short": lambda file: file.write_bytes(file.read_bytes()[:-9]),
    "empty": lambda file: file.write_bytes(b""),
    "zeros": lambda file: file.write_bytes(bytes(500)),
    "another file": lambda file: file.write_text("{}"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_not_used_and_written_again(shelf, pair, computed, tmp_path, capsys, damage):
    found = between(shelf, *pair, tmp_path)
    damage(tmp_path / FILE)
    assert between(shelf, *pair, tmp_path) == found
    assert f"computing the intervals again: {tmp_path / FILE} is damaged" in capsys.readouterr().err
    assert between(shelf, *pair, tmp_path) == found
    assert len(computed) == 2


def test_a_pipe_in_its_place_is_replaced_and_a_folder_is_left(shelf, pair, computed, tmp_path, capsys):
    os.mkfifo(tmp_path / FILE)
    found = between(shelf, *pair, tmp_path)
    assert (tmp_path / FILE).is_file()
    (tmp_path / FILE).unlink()
    (tmp_path / FILE).mkdir()
    assert between(shelf, *pair, tmp_path) == found
    assert "the intervals are not kept for the next report" in capsys.readouterr().err
    assert (tmp_path / FILE).is_dir() and len(computed) == 2


def test_no_interval_is_kept_for_arrays_that_changed_while_they_were_read(shelf, pair, computed, tmp_path, draws):
    """The file was hashed, then replaced, then read: the interval is that of the new arrays."""
    mine, other = pair
    kept = Intervals(shelf.items, RESAMPLES, tmp_path)
    kept._key(mine, other, "top1")
    file = shelf.items[mine[0].identity()]
    before = file.read_bytes()
    with_other_arrays(shelf, mine, draws)
    changed = kept.between(mine, other, "top1")
    kept.save()
    file.write_bytes(before)
    assert between(shelf, mine, other, tmp_path) == shelf.interval(mine, other, resamples=RESAMPLES) != changed


def test_a_reason_is_not_kept(shelf, pair, tmp_path):
    mine, other = pair
    file = shelf.items[mine[0].identity()]
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    assert "cannot be read" in between(shelf, mine, other, tmp_path)
    file.write_bytes(whole)
    assert between(shelf, mine, other, tmp_path) == shelf.interval(mine, other, resamples=RESAMPLES)


def test_the_latest_intervals_stay(shelf, draws, computed, tmp_path, monkeypatch):
    monkeypatch.setattr(intervals, "_MOST", 2)
    a, b, c = ([shelf.top1(right, weights=w)] for w, right in zip("abc", draws(0, 0.7, 0.6, 0.5), strict=True))
    for mine, other in ((a, b), (b, c), (a, c)):
        between(shelf, mine, other, tmp_path)
    for mine, other in ((b, c), (a, c)):
        between(shelf, mine, other, tmp_path)
    assert len(computed) == 3
    between(shelf, a, b, tmp_path)
    assert len(computed) == 4, "the oldest has left"


@pytest.fixture
def results(shelf, draws):
    """A folder with a random baseline, a backbone of two seeds and multi-label scores."""
    first, second, third = draws(0, 0.7, 0.6, 0.5)
    shelf.top1(first, weights="a", seed=0)
    shelf.top1(second, weights="a", seed=1)
    shelf.top1(third, weights="r", name="random:resnet50")
    labels = np.where(np.random.default_rng(0).random((60, 2)) < 0.4, 1, -1).astype(np.int8)
    for number, (weights, name) in enumerate((("a", "mine"), ("r", "random:resnet50"))):
        shelf.svm(np.random.default_rng(number).normal(size=labels.shape), labels, weights=weights, name=name)
    return shelf.root


def test_the_second_report_is_the_same_and_computes_none(results, computed, monkeypatch):
    monkeypatch.setattr(paired, "AP_RESAMPLES", 100)
    report.write(results)
    texts = {file: (results / file).read_bytes() for file in ("report.md", "report.html", "report.csv")}
    assert sorted(computed) == ["mAP", "top1", "top1"] and b"paired bootstrap" in texts["report.md"]
    report.write(results)
    assert len(computed) == 3, "top1 in both directions, for the page's choice of a baseline"
    assert texts == {file: (results / file).read_bytes() for file in texts}


def test_a_comparison_uses_the_file_of_its_first_folder(results, computed, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(paired, "AP_RESAMPLES", 100)
    report.write(results)
    words = ["--to", "random:resnet50", "--no-literature"]
    compare.main([str(results), *words])
    with_file = capsys.readouterr().out
    assert len(computed) == 3
    compare.main([*map(str, sorted(results.glob("*/*/seed*.json"))), *words])
    assert capsys.readouterr().out == with_file and len(computed) == 5


def test_no_record_is_looked_for_in_it(results):
    report.write(results)
    assert len(store.read_paths([results])) == 5
