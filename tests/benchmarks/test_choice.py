"""`--key` and `--prefix` on run_all and run_one: they apply only to files, and the record is of the chosen network."""

import pytest
import torch

from backbench.errors import CheckpointError, ConfigError
from benchmarks import run_all, run_one
from benchmarks.options import CellOptions
from benchmarks.records import store
from benchmarks.subjects import find_subjects
from model_zoo.choice import Choice, spelled
from model_zoo.load import load
from tests.builders.backbones import make_backbone

MINE, OTHER = (make_backbone("resnet18", seed=seed) for seed in (0, 1))
KNN = ["data.expect=any", "k=[1]", "headline_k=1", "size=32"]


@pytest.fixture
def two(tmp_path):
    """A network and its average in one file, and another such file."""
    for name in ("photos.pth", "scenes.pth"):
        torch.save({"model": dict(MINE.state), "model_ema": dict(OTHER.state)}, tmp_path / name)
    return tmp_path / "photos.pth", tmp_path / "scenes.pth"


def test_both_networks_can_be_measured_and_are_called_differently(two):
    found = [find_subjects([str(two[0])], "random", 1, Choice(key))[0] for key in ("model", "model_ema")]
    assert [subject.name for subject in found] == ["photos[model]", "photos[model_ema]"]
    assert [s.backbones[0].weights_sha256 for s in found] == [MINE.weights_sha256, OTHER.weights_sha256]


def test_a_choice_is_of_every_file_and_of_files_alone(two):
    subjects = find_subjects([*map(str, two), "random:resnet18"], "", 1, Choice("model_ema"))
    assert [subject.backbones[0].format for subject in subjects] == ["torchvision", "torchvision", "random"]
    with pytest.raises(ConfigError, match="no --ckpt is a file; leave them out"):
        find_subjects(["random:resnet18"], "", 1, Choice("model"))
    with pytest.raises(CheckpointError, match="--key, --prefix and --arch apply to checkpoint files only"):
        load("random:resnet18", choice=Choice("model"))


def test_without_a_choice_nothing_is_measured(two, tmp_path):
    with pytest.raises(CheckpointError, match="add --key model or --key model_ema"):
        run_all.main(["--ckpt", str(two[0]), "--out", str(tmp_path / "results")])
    assert not (tmp_path / "results").exists()


def test_a_record_is_of_the_chosen_network(two, image_folder, tmp_path):
    argv = ["--ckpt", str(two[0]), "--cell", "imagenet_knn", "--out", str(tmp_path / "out"), "--workers", "0"]
    argv += ["--data", f"imagenet={image_folder}", *KNN]
    assert run_one.main([*argv, "--key", "model_ema"]) == 0
    (record,) = store.read_all(tmp_path / "out")
    assert record.backbone.weights_sha256 == OTHER.weights_sha256
    assert record.backbone.name == "photos[model_ema]"


def test_what_run_all_passes_on_is_what_was_said():
    for choice in (Choice(), Choice("a b", ""), Choice("--key", "-x."), Choice(None, "net.")):
        argv = ["--ckpt", "x", "--cell", "imagenet_knn", *spelled(choice)]
        assert CellOptions.parse(argv).choice == choice


@pytest.mark.slow
def test_run_all_measures_the_chosen_network(two, image_folder, tmp_path, warm_cells):
    argv = [
        "--ckpt",
        str(two[0]),
        "--key",
        "model_ema",
        "--baselines",
        "random",
        "--out",
        str(tmp_path / "out"),
        "--seeds",
        "1",
    ]
    argv += ["--data", f"imagenet={image_folder}", "--tasks", "imagenet_knn", *(f"imagenet_knn.{o}" for o in KNN)]
    assert run_all.main(argv) == 0
    records = {record.backbone.name: record for record in store.read_all(tmp_path / "out")}
    assert records["photos[model_ema]"].backbone.weights_sha256 == OTHER.weights_sha256
    assert records["random:resnet18"].backbone.arch["width"] == 0.125
