"""A corrected preset keeps identities and old records, and the literature's page describes the difference."""

import json
from pathlib import Path

import pytest

from backbench.config import build, digest, indifferent_keys, without_indifferent
from backbench.errors import BackbenchError
from benchmarks import plan
from benchmarks.records import store
from benchmarks.records.renamed import INDIFFERENT
from benchmarks.report import literature
from model_zoo import entries
from transfer import tasks

MEASURED = Path(__file__).resolve().parent.parent.parent / "benchmarks" / "measured"

OLD = {"data": {"name": "voc", "expect": "published", "limit": 0}, "preset": "obow", "feature": "gap", "transform": "crop",
       "normalize": True, "difficult_test": "drop", "size": None, "resize": None, "jobs": None,
       "costs": [0.01, 0.1, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 50.0, 100.0, 1000.0], "folds": 3,
       "difficult": "negative"}  # fmt: skip


def test_gap_crop_has_the_identity_of_what_was_called_obow():
    cell = plan.load_cell("voc07_svm")
    assert cell.config.preset == "gap_crop"
    assert cell.config_sha256 == digest(OLD | {"solver": "newton"}), "records without the field are liblinear's"
    cell = plan.load_cell("voc07_svm", ["solver=liblinear"])
    assert cell.config_sha256 == digest(OLD)
    assert cell.config.model_dump(mode="json") == OLD | {"preset": "gap_crop"}
    assert plan.load_cell("voc07_svm", ["preset=obow"]).config_sha256 != cell.config_sha256


def test_old_records_are_read_under_the_name_that_fits_them(tmp_path):
    (file,) = (MEASURED / "anchor").glob("supervised*/voc07_svm-*/seed0.json")
    stored = json.loads(file.read_text())
    assert stored["task"]["config"]["preset"] == "obow", "evidence: the file is as it was written"
    old = store.read(file)
    assert old.task.config == stored["task"]["config"] | {"preset": "gap_crop"}
    assert old.task.config_sha256 == stored["task"]["config_sha256"]
    stored["task"]["config"] |= {"transform": "squash"}
    (tmp_path / "seed0.json").write_text(json.dumps(stored))
    assert store.read(tmp_path / "seed0.json").task.config["preset"] == "obow"


@pytest.mark.parametrize("task", [None, [], "voc07_svm", {"config": []}, {"name": "voc07_svm", "config": {}}])
def test_broken_records_are_refused_as_before(tmp_path, task):
    (tmp_path / "seed0.json").write_text(json.dumps({"schema": 1, "task": task}))
    with pytest.raises(BackbenchError, match="does not fit schema"):
        store.read(tmp_path / "seed0.json")


def test_every_measured_record_keeps_its_identity():
    """A later field is not stored at its default; a changed protocol has another identity."""
    otherwise = 0
    for file in MEASURED.glob("*/*/*/seed0.json"):
        task = json.loads(file.read_text())["task"]
        config = build(tasks.get(task["name"]).Config, task["config"])
        identity = digest(config.identity())
        assert store.read(file).task.config_sha256 == identity, file
        if without_indifferent(config) != config:
            otherwise += 1
        else:
            assert identity == task["config_sha256"], file
    assert otherwise, "evidence: some were made with another log interval"


@pytest.mark.parametrize("name", tasks.names())
def test_a_field_that_changes_no_number_changes_no_identity(name):
    config = tasks.get(name).Config()
    marked = indifferent_keys(type(config))
    assert {key: getattr(config, key) for key in marked} == INDIFFERENT.get(name, {}), "what the records' reader knows"
    other = config.model_copy(update=dict.fromkeys(marked, 7))
    assert digest(other.identity()) == digest(config.identity())
    assert all(other.every_field()[key] == 7 for key in marked), "a record names the value"


@pytest.mark.parametrize("preset", ["obow", "gap_crop"])
def test_an_old_record_of_other_jobs_has_the_identity_of_all(tmp_path, preset):
    (file,) = (MEASURED / "anchor").glob("supervised*/voc07_svm-*/seed0.json")
    stored = json.loads(file.read_text())
    hashed = stored["task"]["config"] | {"jobs": 3}
    stored["task"] |= {"config": hashed | {"preset": preset}, "config_sha256": digest(hashed)}
    (tmp_path / "seed0.json").write_text(json.dumps(stored))
    old = store.read(tmp_path / "seed0.json")
    assert old.identity() == store.read(file).identity()
    assert (old.task.config["jobs"], old.task.config["preset"]) == (3, "gap_crop"), "it says what it was made with"


@pytest.mark.parametrize(
    ("cell", "preset", "field", "value"),
    [
        ("stl10_knn", "wmse", "ties", "first"),
        ("stl10_knn", "wmse", "interpolation", "bicubic"),
        ("places205_linear", "vissl", "feature", "res5_2x2"),
        ("places205_linear", "vissl", "head_init", "linear"),
        ("stl10_linear", "wmse", "head_init", "linear"),
        ("imagenet_semi1", "swav", "std", [0.228, 0.224, 0.225]),
        ("imagenet_semi10", "swav", "head_init", "linear"),
        ("voc07_lowshot", "fair", "spread", "population"),
        ("voc07_svm", "gap_crop", "solver", "newton"),
        ("voc07_svm", "obow", "solver", "newton"),
        ("voc07_svm", "vissl", "solver", "newton"),
    ],
)
def test_a_corrected_preset_is_another_protocol(cell, preset, field, value):
    """Its records differ from older ones, and the literature's page names the difference."""
    config = plan.load_cell(cell, [f"preset={preset}"]).config
    stored = config.model_dump(mode="json")
    assert stored[field] == value
    before = {name: found for name, found in stored.items() if name not in config.LATER}
    assert digest(before) != digest(config.identity())
    assert build(type(config), before).every_field()[field] != value
    column = literature.Column(
        cell=cell, config8="", metric="", unit="", higher_is_better=True, primary=True, data="", is_published=True,
        is_demo=False, profile="full", manifest="", fields=tuple(literature.flat(before)),
    )  # fmt: skip
    assert any(text.startswith(f"{field}=") for text in literature.changed(column))


def test_obows_published_row_is_measured_with_its_own_preset():
    (number,) = [n for n in entries.get("obow_r50_imagenet").published if n.cell == "voc07_svm"]
    assert number.preset == "obow"
