"""Records are read back as written, old ones included, and nothing else is read as a record."""

import json
import math
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from backbench import distributed
from backbench.errors import BackbenchError
from benchmarks.records import provenance, store

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "results"


@pytest.fixture
def values():
    return json.loads((GOLDEN / "schema1_ok.json").read_text())


@pytest.fixture
def record(values):
    return store.Result.model_validate(values)


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.json")), ids=lambda path: path.stem)
def test_old_records_load_for_ever(path):
    record = store.read(path)
    values = json.loads(path.read_text())
    assert record.status == values["status"]
    assert record.seed == values["seed"]
    assert {name: m.value for name, m in record.metrics.items()} == {
        name: m["value"] for name, m in values["metrics"].items()
    }
    assert len(record.identity()) == 64


def test_golden_record_says_what_it_said():
    record = store.read(GOLDEN / "schema1_ok.json")
    assert record.backbone.weights_sha256.startswith("bbc8cb86")
    assert (record.cell, record.task.name, record.task.version) == ("imagenet_knn", "knn", 1)
    assert record.metrics[record.primary].value == 26.171875
    assert record.data.is_demo and not record.data.is_published
    assert record.data.counts == {"train": 256, "test": 256, "classes": 10}
    skipped = store.read(GOLDEN / "schema1_skipped.json")
    assert "--data-root" in skipped.reason
    assert (skipped.metrics, skipped.data, skipped.provenance) == ({}, None, None)


def test_a_golden_record_says_who_named_it():
    named, older = (store.read(GOLDEN / f"schema1_{kind}.json").backbone for kind in ("named", "ok"))
    assert (named.named, named.source) == (True, "runs/one/model.pth")
    assert (older.named, older.source) == (None, ""), "older ones do not say"


def test_round_trip(tmp_path, record):
    path = store.write(tmp_path, record)
    assert store.read(path) == record
    weights, config = record.backbone.weights_sha256[:8], record.task.config_sha256[:8]
    assert path == tmp_path / f"random-resnet18-{weights}" / f"imagenet_knn-{config}" / "seed0.json"
    assert json.loads(path.read_text())["schema"] == store.SCHEMA
    assert [p.name for p in path.parent.iterdir()] == ["seed0.json"], "no temporary file is left"


@pytest.mark.parametrize("value", [0.1 + 0.2, 1e-12, 100.0, 26.171875, -3.8])
def test_numbers_are_kept_to_the_last_bit(tmp_path, record, value):
    metric = store.MetricRecord(value=value, unit="%", higher_is_better=True)
    path = store.write(tmp_path, record.model_copy(update={"metrics": {"top1_k20": metric}}))
    assert store.read(path).metrics["top1_k20"].value == value


@pytest.mark.parametrize("name", ["a/b", "../x", "ü name", "<script>", "."])
def test_a_name_never_leaves_its_folder(tmp_path, record, name):
    renamed = record.model_copy(update={"backbone": record.backbone.model_copy(update={"name": name})})
    path = store.write(tmp_path / "out", renamed)
    assert path.resolve().parents[2] == (tmp_path / "out").resolve()
    assert store.read(path).backbone.name == name
    assert list(store.read_all(tmp_path / "out")) == [renamed]


def test_names_too_long_for_a_file_system_keep_their_own_folders(tmp_path, record):
    renamed = [
        record.model_copy(update={"backbone": record.backbone.model_copy(update={"name": "\u00fc" * 300 + end})})
        for end in "ab"
    ]
    paths = [store.write(tmp_path, one) for one in renamed]
    assert len({path.parent for path in paths}) == 2
    assert all(len(os.fsencode(part)) <= 255 for path in paths for part in path.parts)


def test_names_that_make_one_folder_keep_their_own_numbers(tmp_path, record):
    """The same weights under `a/b` and `a-b`: the second was once `kept` under the first's name and missing from tables."""
    renamed = [
        record.model_copy(update={"backbone": record.backbone.model_copy(update={"name": name})})
        for name in ("a/b", "a-b", "a:b")
    ]
    for one in renamed:
        assert store.stored(store.record_path(tmp_path, one), one) is None
        store.write(tmp_path, one)
    assert sorted(r.backbone.name for r in store.read_all(tmp_path)) == ["a-b", "a/b", "a:b"]
    assert [store.read(store.record_path(tmp_path, one)) for one in renamed] == renamed


def test_a_number_without_its_headline_is_not_written(tmp_path, record):
    for update in ({"metrics": {}}, {"primary": None}, {"primary": "box_AP"}):
        with pytest.raises(BackbenchError, match="its headline, is not a result"):
            store.write(tmp_path, record.model_copy(update=update))
    assert list(tmp_path.iterdir()) == []


def names(path):
    return sorted(p.name for p in path.parent.iterdir())


def test_items_lie_beside_their_record(tmp_path, record):
    items = {"top5": np.arange(20, dtype=np.int32).reshape(4, 5), "labels": np.array([0, 5, 11, 3])}
    path = store.write(tmp_path, record, items)
    assert names(path) == ["seed0.items.npz", "seed0.json"]
    with np.load(store.items_path(path), allow_pickle=False) as stored:
        assert set(stored.files) == set(items)
        assert all(np.array_equal(stored[name], value) and stored[name].dtype == value.dtype
                   for name, value in items.items())  # fmt: skip
    assert list(store.read_all(tmp_path)) == [record], "items are no record"


def test_items_of_a_replaced_record_are_gone(tmp_path, record):
    for seed in (0, 1, 10):
        store.write(tmp_path, record.model_copy(update={"seed": seed}), {"labels": np.array([seed])})
    path = store.write(tmp_path, record)
    assert names(path) == ["seed0.json", "seed1.items.npz", "seed1.json", "seed10.items.npz", "seed10.json"]
    store.write(tmp_path, record, {"labels": np.array([7])})
    with np.load(store.items_path(path)) as stored:
        assert stored["labels"].tolist() == [7]


@pytest.mark.parametrize("status", ["failed", "skipped"])
def test_the_lack_of_a_number_leaves_the_numbers_items_alone(tmp_path, record, status):
    path = store.write(tmp_path, record, {"labels": np.array([7])})
    before = store.items_path(path).read_bytes()
    lacking = record.model_copy(update={"status": status, "reason": "no", "metrics": {}, "primary": None})
    beside = store.write(tmp_path, lacking)
    assert beside.name == f"seed0.{status}.json"
    assert names(path) == sorted([beside.name, "seed0.items.npz", "seed0.json"])
    assert store.items_path(path).read_bytes() == before
    store.write(tmp_path, record)
    assert names(path) == ["seed0.json"], "a new number: neither the reason nor the old items remain"


@pytest.mark.parametrize("status", ["failed", "skipped"])
def test_a_broken_record_makes_way_with_its_items_and_is_not_lost(tmp_path, record, status):
    path = store.write(tmp_path, record, {"labels": np.array([7])})
    path.write_text("{")
    lacking = record.model_copy(update={"status": status, "reason": "no", "metrics": {}, "primary": None})
    assert store.write(tmp_path, lacking) == path
    aside = path.with_name("seed0.json.unreadable")
    assert aside.read_text() == "{" and aside.with_name(f"{aside.name}.items.npz").exists()
    assert not store.items_path(path).exists(), "what lies beside a record belongs to it"
    assert list(store.read_all(tmp_path)) == [lacking]
    path.write_text("{{")
    store.write(tmp_path, lacking)
    assert aside.read_text() == "{" and aside.with_name("seed0.json.unreadable-2").read_text() == "{{"


@pytest.mark.parametrize(
    "update",
    [
        {"data": {"manifest_sha256": "0" * 64}},
        {"backbone": {"arch": {"name": "resnet18", "stride_in_1x1": True}}},
        {"backbone": {"input": {"size": 96}}},
    ],
)
def test_a_number_of_other_data_or_another_sidecar_has_a_place_of_its_own(tmp_path, record, update):
    first = store.write(tmp_path, record, {"labels": np.array([1])})
    other = changed(record, **update)
    second = store.write(tmp_path, other, {"labels": np.array([2])})
    assert first.name == "seed0.json" and second.parent == first.parent
    assert [store.record_path(tmp_path, r) for r in (record, other)] == [first, second] and first != second
    lacking = other.model_copy(update={"status": "failed", "reason": "no", "metrics": {}, "primary": None})
    assert store.write(tmp_path, lacking).name == f"{second.stem}.failed.json"
    assert [store.read(path) for path in (first, second)] == [record, other]
    assert [np.load(store.items_path(path))["labels"].tolist() for path in (first, second)] == [[1], [2]]
    assert len(list(store.read_all(tmp_path))) == 3
    store.write(tmp_path, other)
    assert names(first) == sorted(["seed0.items.npz", "seed0.json", second.name]), "its own leavings only"


def test_a_place_without_a_number_is_taken(tmp_path, record):
    lacking = record.model_copy(update={"status": "failed", "reason": "no", "metrics": {}, "primary": None})
    store.write(tmp_path, lacking)
    other = changed(record, data={"manifest_sha256": "0" * 64})
    assert store.write(tmp_path, other).name == "seed0.json"
    second = store.write(tmp_path, record)
    assert second.name != "seed0.json"
    (tmp_path / second.parent / "seed0.json").unlink()
    assert store.record_path(tmp_path, record) == second, "a number is found where it lies"


def test_newer_schema_is_refused(tmp_path, values):
    (tmp_path / "r.json").write_text(json.dumps(values | {"schema": store.SCHEMA + 1, "new_field": 1}))
    with pytest.raises(BackbenchError, match=r"r\.json: schema 2 is newer than this program's 1"):
        store.read(tmp_path / "r.json")


@pytest.mark.parametrize("text", ["", "{", "null", "[1]", "{}", '{"schema": "1"}', '{"schema": 1}', "\x00\xff", "3"])
def test_garbage_is_refused(tmp_path, text):
    (tmp_path / "r.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(BackbenchError, match=r"r\.json: "):
        store.read(tmp_path / "r.json")


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(BackbenchError, match=r"nothing\.json"):
        store.read(tmp_path / "nothing.json")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("status",), "fine"),
        (("profile",), "half"),
        (("unknown",), 1),
        (("seed",), "first"),
        (("metrics", "top1_k20", "value"), math.nan),
        (("metrics", "top1_k20", "value"), math.inf),
        (("metrics", "top1_k20", "units"), "%"),
        (("backbone", "weights_sha256"), None),
        (("data", "counts"), {"train": "many"}),
    ],
)
def test_a_field_that_does_not_fit_is_refused(tmp_path, values, path, value):
    place = values
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (tmp_path / "r.json").write_text(json.dumps(values))
    with pytest.raises(BackbenchError, match="does not fit schema 1"):
        store.read(tmp_path / "r.json")


def changed(record, **update):
    nested = {key: getattr(record, key).model_copy(update=v) if isinstance(v, dict) else v for key, v in update.items()}
    return record.model_copy(update=nested)


def test_identity(record):
    same = [
        changed(record, suite="other"),
        changed(record, provenance=None),
        changed(record, backbone={"name": "other", "format": "moco"}),
        changed(record, data={"is_demo": False}),
    ]
    assert all(other != record and other.identity() == record.identity() for other in same)
    different = [
        changed(record, seed=1),
        changed(record, profile="full"),
        changed(record, cell="stl10_knn"),
        changed(record, backbone={"weights_sha256": "0" * 64}),
        changed(record, backbone={"arch": {**record.backbone.arch, "stride_in_1x1": True}}),
        changed(record, backbone={"input": {**record.backbone.input, "order": "bgr"}}),
        changed(record, task={"version": 2}),
        changed(record, task={"name": "other"}),
        changed(record, task={"config_sha256": "0" * 64}),
        changed(record, data={"manifest_sha256": "0" * 64}),
        changed(record, data=None),
    ]
    assert len({record.identity(), *(other.identity() for other in different)}) == len(different) + 1


@pytest.mark.parametrize(
    "update",
    [
        {"data": {"manifest_sha256": "0" * 64}},
        {"backbone": {"input": {"size": 96}}},
        {"task": {"engine": "another version"}},
        {"task": {"version": 99}},
    ],
)
def test_what_would_be_another_number_finds_no_checkpoint_of_the_first(tmp_path, record, update):
    first, again, other = (store.run_folder(tmp_path, r) for r in (record, record, changed(record, **update)))
    assert first == again != other and first.parent == other.parent


def test_read_all_finds_records_and_nothing_else(tmp_path, record):
    seeds = [record.model_copy(update={"seed": seed}) for seed in (0, 1, 10)]
    for one in seeds:
        store.write(tmp_path, one)
    (tmp_path / ".features").mkdir()
    (tmp_path / ".features" / "x.npy").touch()
    (tmp_path / "report.md").touch()
    assert sorted(r.seed for r in store.read_all(tmp_path)) == [0, 1, 10]
    assert list(store.read_all(tmp_path / "nowhere")) == []


def test_a_record_says_how_many_processes_made_it_and_older_ones_were_one(record, monkeypatch):
    assert record.provenance.processes == 1
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    assert provenance.collect(torch.device("cpu"), 1.0).processes == 3


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository of one committed file; `commit()` reads it."""

    def git(*words):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=tmp_path, check=True)

    (tmp_path / "backbench").mkdir()
    (tmp_path / "backbench" / "code.py").write_text("")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "one")
    monkeypatch.setattr(provenance, "_ROOT", tmp_path)
    monkeypatch.setattr(provenance, "commit", provenance.commit.__wrapped__)
    return tmp_path


@pytest.mark.parametrize("file", ["backbench/code.py", "transfer/tasks/new.py", "constraints.txt"])
def test_changed_or_new_code_is_not_its_commit(checkout, file):
    assert len(provenance.commit()[0]) == 40 and provenance.commit()[1] is False
    (checkout / file).parent.mkdir(parents=True, exist_ok=True)
    (checkout / file).write_text("changed")
    assert provenance.commit()[1] is True


@pytest.mark.parametrize("file", ["out/msbreg/seed0.json", "benchmarks/measured/demo/seed0.json", "README.md"])
def test_results_in_the_checkout_change_no_code(checkout, file):
    (checkout / file).parent.mkdir(parents=True, exist_ok=True)
    (checkout / file).write_text("{}")
    assert provenance.commit()[1] is False


def test_outside_git_the_commit_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "_ROOT", tmp_path)
    assert provenance.commit.__wrapped__() == ("unknown", True)
