"""The robustness sets against brute force, the stored head, and what a dry run foretells."""

import json
import shutil

import numpy as np
import pytest
import torch
from backbones import tiny
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import backbench
from backbench.data import catalogue
from backbench.data.catalogue import DataPlaces
from backbench.errors import BackbenchError, DataError
from benchmarks import plan, run_all
from benchmarks.records import store
from benchmarks.report.paired import interval
from benchmarks.report.scores import Scores
from model_zoo.architecture import Architecture
from transfer.features import extract
from transfer.protocol import RunContext
from transfer.tasks import linear_probe, robustness

WNIDS = ("n01440764", "n01443537", "n01484850", "n01491361", "n01494475", "n01496331")
# Folders of each set: v2's are numbers, -A and -R have some of the classes.
FOLDERS = {
    "v2": [str(i) for i in range(6)],
    "a": [WNIDS[i] for i in (1, 4)],
    "r": [WNIDS[i] for i in (0, 2, 5)],
    "sketch": list(WNIDS),
}
REAL = [[0], [], [1, 4], [2], [2, 3], [], [3, 0, 5], [4], [4], [5], [5, 1], [0]]  # of the 12 validation images
FIELDS = {"epochs": 20, "batch": 16, "rates": [0.1, 1.0], "holdout": 0.3}


def write(folder, label, number, rng):
    pixels = rng.integers(0, 130, (40, 40, 3)) + 25 * label
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"ILSVRC2012_val_{number:08d}.JPEG", "JPEG")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """ImageNet of 6 classes with its five test sets; a class has its own brightness."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for label, wnid in enumerate(WNIDS):
        for i in range(10):
            write(root / "imagenet" / "train" / wnid, label, 100 * label + i, rng)
        for i in range(2):
            write(root / "imagenet" / "val" / wnid, label, 2 * label + i + 1, rng)
    for name, folders in FOLDERS.items():
        for folder in folders:
            label = int(folder) if folder.isdecimal() else WNIDS.index(folder)
            for i in range(4):
                write(root / f"imagenet_{name}" / folder, label + 0.4 * i, i, rng)
    (root / "imagenet" / "real.json").write_text(json.dumps(REAL))
    return root


@pytest.fixture(scope="module")
def backbone():
    arch = Architecture(name="resnet18", width=0.25)
    return tiny(arch)


@pytest.fixture
def measure(root, backbone, tmp_path):
    """Measure a cell; returns the record."""

    def run(cell="imagenet_robustness", out=None, seed=0, **fields):
        places = {"imagenet": root / "imagenet", **{f"imagenet_{name}": root / f"imagenet_{name}" for name in FOLDERS}}
        fields = {**FIELDS, **fields}
        return backbench.measure(
            backbone, cell, data=places, expect="any", workers=0, out=out or tmp_path / "out", seed=seed, **fields
        )

    return run


def place(record, out):
    return store.place_of(out, record)


def by_hand(file, name, root, backbone, cache):
    """Logits of a set's images over all classes, from the stored head, and the set's split."""
    head = load_file(file)
    folder = root / ("imagenet" if name == "real" else f"imagenet_{name}")
    split = catalogue.load(f"imagenet_{name}", "test", DataPlaces(None, {f"imagenet_{name}": folder}))
    ctx = RunContext(splits={}, seed=0, device=torch.device("cpu"), cache=cache)
    return extract(backbone, split, ctx).double() @ head["weight"].double().T + head["bias"].double(), split


def test_every_number_is_that_of_brute_force(measure, root, backbone, tmp_path):
    record = measure()
    (file,) = place(record, tmp_path / "out").glob("seed0-*/head.safetensors")
    cold = record.task.tuned["temperature"]
    for name in ("v2", "a", "r", "sketch", "real"):
        logits, split = by_hand(file, name, root, backbone, tmp_path / "other")
        allowed = [WNIDS.index(f) if not f.isdecimal() else int(f) for f in FOLDERS.get(name, WNIDS)]
        right, sure, sure_scaled = [], [], []
        for row, scores in enumerate(logits.tolist()):
            answer = max(allowed, key=lambda k: scores[k])
            if name == "real":
                number = int(split.source.name(row)[-13:-5])
                if not REAL[number - 1]:
                    continue
                right.append(answer in REAL[number - 1])
            else:
                right.append(answer == allowed[split.labels[row]])
            for found, t in ((sure, 1.0), (sure_scaled, cold)):
                powers = {k: np.exp(scores[k] / t - scores[answer] / t) for k in allowed}
                found.append(powers[answer] / sum(powers.values()))
        assert record.metrics[f"top1_{name}"].value == pytest.approx(100 * np.mean(right)), name
        for kind, confidence in (("ece", sure), ("ece_scaled", sure_scaled)):
            confidence, hit = np.array(confidence), np.array(right, float)
            bins = np.ceil(confidence * 15).astype(int)
            error = sum(abs((confidence - hit)[bins == m].sum()) for m in range(16)) / len(hit)
            assert record.metrics[f"{kind}_{name}"].value == pytest.approx(100 * error, abs=1e-4), (name, kind)
            assert not record.metrics[f"{kind}_{name}"].higher_is_better
    assert record.primary == "top1_v2"
    assert record.data.counts == {
        "train": 60,
        "test": 12,
        "classes": 6,
        "v2": 24,
        "a": 8,
        "r": 12,
        "sketch": 24,
        "real": 12,
    }
    assert not record.data.is_published


def test_the_head_of_the_linear_cell_is_taken_and_its_record_is_as_before(measure, tmp_path, monkeypatch):
    out = tmp_path / "out"
    linear = measure("imagenet_linear")
    path = store.record_path(out, linear)
    ((name, sha),) = linear.artefacts.items()
    assert store.read(path) == linear and (path.parent / name).name == "head.safetensors"
    assert backbench.files.hashes.file_sha256(path.parent / name) == sha
    older = linear.model_copy(update={"artefacts": {}})
    assert older.identity() == linear.identity(), "a record from before heads were kept is reused"
    with safe_open(str(path.parent / name), framework="pt") as opened:
        told = opened.metadata()
    assert told["weights_sha256"] == linear.backbone.weights_sha256 and told["protocol"] == linear.task.config_sha256
    assert json.loads(told["classes"]) == list(WNIDS)
    monkeypatch.setattr(linear_probe, "fit", lambda *_, **__: pytest.fail("a head was trained"))
    found = measure()
    assert any(note == f"the head of {path.parent.name}/{name.split('/')[0]}" for note in found.task.notes)
    assert found.metrics["top1"].value == linear.metrics["top1"].value
    assert found.task.tuned["lr"] == linear.task.tuned["lr"]


def test_a_record_from_before_heads_were_kept_is_reused(measure, tmp_path, monkeypatch):
    """It has neither the field nor the file; the robustness cell then trains the head itself."""
    out = tmp_path / "out"
    linear = measure("imagenet_linear")
    path = store.record_path(out, linear)
    values = json.loads(path.read_text())
    del values["artefacts"]
    path.write_text(json.dumps(values))
    shutil.rmtree(store.run_folder(out, linear))
    with monkeypatch.context() as patch:
        patch.setattr(linear_probe, "fit", lambda *_, **__: pytest.fail("a head was trained"))
        again = measure("imagenet_linear")
    assert again.metrics == linear.metrics and again.artefacts == {} and not store.run_folder(out, linear).exists()
    assert "the head was trained for this cell" in measure(sets=["a"]).task.notes


def test_a_head_of_its_own_is_the_same_head(measure, tmp_path):
    """Alone, from the linear cell, and again from its own folder: one classifier, one set of numbers."""
    alone = measure(out=tmp_path / "alone")
    measure("imagenet_linear")
    taken = measure()
    assert {name: m.value for name, m in alone.metrics.items()} == {name: m.value for name, m in taken.metrics.items()}
    assert "the head was trained for this cell" in alone.task.notes and alone.artefacts and not taken.artefacts
    fewer = measure(out=tmp_path / "alone", sets=["a"])
    assert any(note.startswith("the head of imagenet_robustness-") for note in fewer.task.notes)
    assert fewer.metrics["top1_a"] == alone.metrics["top1_a"] and fewer.primary == "top1_a"
    assert "top1_v2" not in fewer.metrics


@pytest.mark.parametrize(
    "fields", [{"batch": 8}, {"seed": 1}, {"preset": "moco", "rates": [30.0], "epochs": 1, "size": 32}]
)
@pytest.mark.sample(1)
def test_a_head_of_another_protocol_is_not_taken(measure, fields):
    measure("imagenet_linear")
    other = {key: value for key, value in fields.items() if key != "preset"}
    if "preset" in fields:
        other |= {"holdout": 0.0, "features": "augmented", "preset": "moco", "nesterov": False}
    found = measure(**other, sets=["a"])
    assert "the head was trained for this cell" in found.task.notes
    if "preset" in fields:
        assert "ece_a" in found.metrics and "ece_scaled_a" not in found.metrics, "no images are held out"
        assert any("no temperature" in note for note in found.task.notes)


@pytest.mark.parametrize("damage", ["cut", "numbers", "other weights", "no metadata"])
@pytest.mark.sample(1)
def test_a_damaged_or_foreign_head_is_not_taken(measure, tmp_path, damage):
    linear = measure("imagenet_linear")
    (file,) = place(linear, tmp_path / "out").glob("seed0-*/head.safetensors")
    tensors = load_file(file)
    with safe_open(str(file), framework="pt") as opened:
        told = opened.metadata()
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-7])
    elif damage == "numbers":
        save_file({**tensors, "bias": tensors["bias"] + 1}, file, metadata=told)
    elif damage == "other weights":
        save_file(tensors, file, metadata={**told, "weights_sha256": "0" * 64})
    else:
        save_file(tensors, file)
    assert "the head was trained for this cell" in measure(sets=["a"]).task.notes


def test_the_temperature_never_sees_a_reported_image(measure, root, tmp_path):
    """Other test images change no temperature."""
    first = measure(sets=["a"]).task.tuned
    there = tmp_path / "changed"
    shutil.copytree(root, there)
    for file in [*there.glob("imagenet/val/*/*"), *there.glob("imagenet_a/*/*")]:
        Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(file, "JPEG")
    places = {"imagenet": there / "imagenet", "imagenet_a": there / "imagenet_a"}
    arch = Architecture(name="resnet18", width=0.25)
    same = tiny(arch)
    again = backbench.measure(same, "imagenet_robustness", data=places, expect="any", workers=0, sets=["a"], **FIELDS)
    assert again.task.tuned == first and first["temperature_on"] == "18 images held out of train"


def test_scores_per_item_give_paired_intervals(measure, tmp_path):
    out = tmp_path / "out"
    one, other = measure(), measure(out=tmp_path / "weak", epochs=1, rates=[0.001])
    paths = {
        record.identity(): store.items_path(store.record_path(folder, record))
        for folder, record in ((out, one), (tmp_path / "weak", other))
    }
    for name in ("top1_v2", "top1_a", "top1_real", "top1"):
        found = interval([one], [other], name, Scores(paths), resamples=100)
        assert not isinstance(found, str), found
        assert found.items == {"top1_v2": 24, "top1_a": 8, "top1_real": 10, "top1": 12}[name]
    assert isinstance(interval([one], [other], "ece_v2", Scores(paths), resamples=100), str)


# ---------------------------------------------------------------- absent and wrong data


def test_absent_sets_are_named_all_at_once(root, tmp_path):
    there = tmp_path / "part"
    shutil.copytree(root, there, ignore=shutil.ignore_patterns("imagenet_a", "imagenet_sketch", "real.json"))
    config = plan.load_cell("imagenet_robustness").config
    reason = robustness.missing(config, DataPlaces(there))
    assert reason.startswith("3 of 5 test sets are absent: ")
    assert all(f"imagenet_{name}" in reason for name in ("a", "sketch", "real")) and "imagenet_v2" not in reason
    assert "github.com/hendrycks/natural-adv-examples" in reason and reason.endswith("sets=[v2,r]")
    fewer = plan.load_cell("imagenet_robustness", ["sets=[v2,r]"]).config
    assert robustness.missing(fewer, DataPlaces(there)) is None
    assert "imagenet" in robustness.missing(config, DataPlaces(tmp_path / "nowhere"))
    assert robustness.missing(config, DataPlaces(root)) is None, "ReaL's labels lie beside ImageNet's val"


def test_a_dry_run_foretells_what_is_absent(root, tmp_path, capsys):
    argv = ["--ckpt", "random:resnet18", "--tasks", "imagenet_robustness", "--out", str(tmp_path / "out"), "--dry-run"]
    argv += ["--seeds", "1", "--data", f"imagenet={root / 'imagenet'}", "imagenet_robustness.data.expect=any"]
    assert run_all.main(argv) in (0, 1)
    said = capsys.readouterr().err
    assert "4 of 5 test sets are absent" in said and "sets=[real]" in said
    assert run_all.main([*argv, "imagenet_robustness.sets=[real]"]) == 0
    assert "absent" not in capsys.readouterr().err


def test_other_images_are_refused_unless_any_are_expected(root, tmp_path):
    cell = plan.load_cell("imagenet_robustness")
    with pytest.raises(DataError, match="published"):
        robustness.splits(cell.config, DataPlaces(root))


def test_a_class_that_train_lacks_is_refused(root, tmp_path):
    there = tmp_path / "foreign"
    shutil.copytree(root, there)
    (there / "imagenet_a" / WNIDS[1]).rename(there / "imagenet_a" / "n99999999")
    config = plan.load_cell("imagenet_robustness", ["data.expect=any", "sets=[a]"]).config
    with pytest.raises(DataError, match="'imagenet_a' has 1 classes that the training images lack"):
        robustness.splits(config, DataPlaces(there))


def test_a_set_is_named_once():
    with pytest.raises(BackbenchError, match="twice"):
        plan.load_cell("imagenet_robustness", ["sets=[a,a]"])


def test_images_without_a_class_do_not_count(root):
    split = catalogue.load("imagenet_real", "test", DataPlaces(None, {"imagenet_real": root / "imagenet"}))
    counted, truth = robustness.truth_of(split)
    assert len(counted) == sum(bool(labels) for labels in REAL)
    for row, labels in zip(counted.tolist(), truth.tolist(), strict=True):
        number = int(split.source.name(row)[-13:-5])
        assert sorted(label for label in labels if label >= 0) == sorted(REAL[number - 1])
    none = catalogue.load("imagenet_a", "test", DataPlaces(root)).part(np.arange(0))
    with pytest.raises(DataError, match="no image of 'imagenet_a' has a class"):
        robustness.truth_of(none)


def test_the_fields_are_those_of_the_linear_cell():
    """So the head is the same protocol: a preset and an override reach both."""
    for words in ([], ["preset=moco"], ["rates=[0.1]", "holdout=0.2"]):
        mine = plan.load_cell("imagenet_robustness", words).config.every_field()
        linear = plan.load_cell("imagenet_linear", words).config.every_field()
        assert {key: mine[key] for key in linear} == linear and set(mine) - set(linear) == {"sets", "bins"}
