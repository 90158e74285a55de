"""Shared by both engines around training: scaling to other batches, notes, shares of ranks, error texts."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from backbones import make_backbone

from backbench.config import build
from backbench.data import demo
from backbench.data.catalogue import DataPlaces
from backbench.errors import ConfigError, DataError
from benchmarks import plan
from transfer import tasks
from transfer.detection import engines, run
from transfer.detection.annotations import faults, native_data
from transfer.detection.annotations.split import Detections
from transfer.detection.spec import DetectionSpec, scaled
from transfer.protocol import RunContext

pytestmark = pytest.mark.slow  # trains and detects

DETECTION = [
    name
    for base in plan.cell_names()
    if hasattr(plan.load_cell(base).config, "engine")
    for name in (base, f"{base}_mmdet")
]


def spec(**fields: object) -> DetectionSpec:
    values = {"head": "c4", "iterations": 24_000, "milestones": (18_000, 22_000), "sides_train": (480,)}
    return DetectionSpec.model_validate({**values, **fields})


@pytest.mark.parametrize(
    ("batch", "lr", "iterations", "milestones", "warmup"),
    [
        (16, 0.02, 24_000, (18_000, 22_000), 100),
        (8, 0.01, 48_000, (36_000, 44_000), 200),
        (2, 0.0025, 192_000, (144_000, 176_000), 800),
        (64, 0.08, 6_000, (4_500, 5_500), 25),
        (12, 0.015, 32_000, (24_000, 29_333), 133),
    ],
)
def test_another_batch_sees_as_many_images(batch, lr, iterations, milestones, warmup):
    found = scaled(spec(), batch)
    assert (found.batch, found.iterations, found.milestones, found.warmup) == (batch, iterations, milestones, warmup)
    assert found.lr == pytest.approx(lr)
    assert found.model_dump(exclude={"batch", "lr", "iterations", "milestones", "warmup"}) == spec().model_dump(
        exclude={"batch", "lr", "iterations", "milestones", "warmup"}
    )


def test_a_huge_batch_still_takes_a_step():
    found = scaled(spec(iterations=2, milestones=(1,)), 1600)
    assert (found.iterations, found.milestones) == (1, (1,))


def test_drops_that_rounding_puts_together_follow_each_other():
    found = scaled(spec(iterations=90, milestones=(60, 63, 80)), 160)
    assert (found.iterations, found.milestones) == (9, (6, 7, 8))


@pytest.mark.parametrize("name", DETECTION)
@pytest.mark.parametrize("profile", ["full", "smoke"])
@pytest.mark.parametrize("batch", [1, 8, 64, 4096])
def test_every_cell_is_a_course_at_every_batch(name, profile, batch):
    config = plan.load_cell(name, [f"batch={batch}"], profile).config
    assert config.course().batch == batch


@pytest.mark.parametrize(
    ("cell", "field", "words"),
    [
        ("voc0712_detection", "spec.masks=true", "VOC's layout has boxes and no masks; set spec.masks=false"),
        ("voc0712_detection", "spec.side_max=700", "side_max=700 is less than a shorter side, 800"),
        ("voc0712_detection", "spec.side_test=1400", "side_max=1333 is less than a shorter side, 1400"),
        ("voc0712_detection", "spec.sides_train=[]", "sides_train"),
        ("coco_instance_segmentation", "spec.milestones=[9,9]", r"milestones=\[9, 9\] do not rise"),
        ("coco_instance_segmentation", "spec.milestones=[9,5]", r"milestones=\[9, 5\] do not rise"),
    ],
)
def test_a_course_that_cannot_be_is_refused_in_a_sentence(cell, field, words):
    with pytest.raises(ConfigError, match=words):
        plan.load_cell(cell, [field])


def test_a_course_is_overridden_field_by_field():
    cell = plan.load_cell("voc0712_detection", ["spec.iterations=30", "spec.sides_train=[96,128]", "batch=8"])
    assert cell.config.spec.iterations == 30 and cell.config.spec.sides_train == (96, 128)
    assert cell.config.spec.lr == 0.02, "the rest is the protocol's"
    assert (cell.config.course().iterations, cell.config.course().lr) == (60, 0.01)
    with pytest.raises(ConfigError, match=r"unknown key 'spec\.iteration'; did you mean 'spec\.iterations'"):
        plan.load_cell("voc0712_detection", ["spec.iteration=30"])
    with pytest.raises(ConfigError, match=r"spec\.iterations"):
        plan.load_cell("voc0712_detection", ["spec.iterations=0"])


@pytest.mark.parametrize("name", DETECTION)
def test_an_absent_engine_is_a_reason(name, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    cell = plan.load_cell(name)
    there = DataPlaces(None, {cell.config.data.name: demo.root()})
    reason = cell.task.missing(cell.config, there)
    assert "not installed" in reason and "python -m transfer.detection install" in reason


class Stub:
    """An engine that finds one box per image, as wide as the image's number."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def train(self, spec: DetectionSpec, _backbone: object, _train: object, job: object) -> str:
        job.notes.append(f"trained {spec.iterations}")
        return "model"

    def detect(self, model: str, _spec: object, test, _job: object) -> list[Detections]:
        assert model == "model"
        self.asked += [picture.id for picture in test.pictures]
        return [
            Detections(
                np.array([[0, 0, float(p.id) + 1, 1]], np.float32), np.ones(1, np.float32), np.zeros(1, np.int64)
            )
            for p in test.pictures
        ]


@pytest.fixture
def context(scenes, tmp_path):
    split = scenes(tmp_path / "images", 3)
    return RunContext({"train": split, "test": split}, 0, torch.device("cpu"), tmp_path / "cache", tmp_path)


@pytest.mark.parametrize(("batch", "notes"), [(None, ["trained 4"]), (2, ["trained 4"]), (1, [None, "trained 8"])])
def test_another_batch_is_noted_and_warned_of(batch, notes, context, short, monkeypatch, capsys):
    monkeypatch.setattr(engines, "get", lambda _name: Stub())
    found = run.detections(object(), run.DetectionConfig(spec=short("c4"), batch=batch), context)
    assert [float(d.boxes[0, 2]) for d in found] == [1, 2, 3]
    assert (context.folder / "pictures.png").exists()
    warning = (
        "batch 1 instead of 2: rate 0.0025, 8 iterations, drops after 6 by the linear rule, BatchNorm over 1 images; not "
        "comparable with the published rows"
    )
    assert context.notes == [warning if note is None else note for note in notes]
    assert (f"warning: {warning}" in capsys.readouterr().err) == (batch == 1)


@pytest.mark.parametrize(
    ("overrides", "note"),
    [
        ([], None),
        (["spec.batch=4"], "batch 4 with the rate and iterations for 16: set <cell>.batch=4 to scale them"),
        (["batch=4"], None),
        (["spec.batch=4", "spec.lr=0.005"], None),
        (["preset=moco"], None),
    ],
)
def test_a_batch_that_was_set_without_its_rate_is_said(overrides, note):
    assert run.unscaled(plan.load_cell("coco_instance_segmentation", overrides).config) == note
    assert run.unscaled(plan.load_cell("coco_instance_segmentation", overrides, "smoke").config) is None


def test_cudnn_times_no_kernels_for_batches_that_never_come_again(context, short, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.setattr(engines, "get", lambda _name: Stub())
    run.detections(object(), run.DetectionConfig(spec=short("c4")), context)
    assert torch.backends.cudnn.benchmark is False


@pytest.mark.parametrize("ranks", [1, 2])
def test_numbers_of_several_processes_are_noted(ranks, context, short, monkeypatch):
    monkeypatch.setattr(engines, "get", lambda _name: Stub())
    monkeypatch.setattr(run, "world_size", lambda: ranks)
    monkeypatch.setattr(run, "detect", lambda *_: Stub().detect("model", None, context.splits["test"], None))
    run.detections(object(), run.DetectionConfig(spec=short("c4")), context)
    words = "each rank draws its own proposals and flips: 2 processes give numbers like another seed"
    assert (words in context.notes) == (ranks == 2)


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_every_image_is_seen_by_one_rank_and_stands_in_its_row(ranks, scenes, short, monkeypatch, tmp_path):
    split, seen = scenes(tmp_path, 4), [Stub() for _ in range(ranks)]
    monkeypatch.setattr(run, "world_size", lambda: ranks)

    def shares(mine: list[Detections]) -> list[list[Detections]]:
        others = [
            stub.detect("model", None, run.of_rows(split, range(r, 4, ranks)), None) for r, stub in enumerate(seen)
        ]
        assert [d.boxes.tolist() for d in mine] == [d.boxes.tolist() for d in others[0]]
        return others

    monkeypatch.setattr(run, "gather", shares)
    found = run.detect(Stub(), "model", short(), split, SimpleNamespace())
    assert [float(d.boxes[0, 2]) for d in found] == [1, 2, 3, 4]
    assert sorted(name for stub in seen for name in stub.asked) == ["0", "1", "2", "3"]


def test_a_limit_keeps_the_same_images_and_says_so(scenes, tmp_path):
    split = scenes(tmp_path, 9)
    kept = run.limited(split, 4)
    assert len(kept) == 4 and kept.split == "train[4]"
    assert [p.id for p in kept.pictures] == [p.id for p in run.limited(split, 4).pictures]
    assert [kept.file(i).name for i in range(4)] == [f"{p.id}.png" for p in kept.pictures]
    assert all(picture in split.pictures for picture in kept.pictures)
    assert run.limited(split, 0) is split and run.limited(split, 9) is split


def test_other_images_than_the_published_ones_are_refused(scenes, tmp_path):
    splits = {"train": scenes(tmp_path, 3), "test": replace(scenes(tmp_path / "test", 1), split="test")}
    config = build(tasks.get("coco_instance_segmentation").Config, {})
    with pytest.raises(
        DataError, match=r"'coco' has train 3, test 1; published: train 5, test 1\. Is the data set incomplete\?"
    ):
        run.check_splits(splits, config, {"train": 5, "test": 1})
    run.check_splits(splits, config, {"train": 3, "test": 1})
    free = config.model_copy(update={"data": config.data.model_copy(update={"expect": "any"})})
    run.check_splits(splits, free, {"train": 5, "test": 1})


@pytest.mark.parametrize(
    ("classes", "sentence"),
    [
        (("b", "a", "c"), "class 1 is 'a' in train2017 and 'b' in val2017"),
        (("a", "b"), "class 3 is 'c' in train2017 and None in val2017"),
        (("a", "b", "c", "d"), "class 4 is None in train2017 and 'd' in val2017"),
    ],
)
def test_other_classes_in_training_than_in_the_test_are_refused(scenes, tmp_path, classes, sentence):
    splits = {"train2017": ("a", "b", "c"), "val2017": classes}
    found = {}
    for name, own in splits.items():
        split = scenes(tmp_path / name, 1)
        objects = tuple(replace(o, label=0) for o in split.pictures[0].instances)
        found[name] = replace(split, classes=own, pictures=(replace(split.pictures[0], instances=objects),))
    as_coco(tmp_path, found)
    cell = plan.load_cell("coco_instance_segmentation", ["data.expect=any"])
    with pytest.raises(DataError, match=sentence):
        cell.task.splits(cell.config, DataPlaces(None, {"coco": tmp_path}))


def test_every_image_is_decoded_before_a_course(scenes, tmp_path, monkeypatch):
    """With bad=skip images are decoded when they are read, because skipping changes the data; otherwise before training."""
    as_coco(tmp_path, {"train2017": scenes(tmp_path / "train2017", 4), "val2017": scenes(tmp_path / "val2017", 2)})
    monkeypatch.setattr(faults, "HEADERS", 1)
    last = int(np.random.default_rng(0).permutation(4)[-1])
    file, places = tmp_path / f"train2017/{last}.png", DataPlaces(None, {"coco": tmp_path})
    file.write_bytes(file.read_bytes()[:-2000])
    words = rf"not to the size in their annotation: 1, e\.g\. {last}\.png"
    cell = plan.load_cell("coco_instance_segmentation", ["data.expect=any", "bad=skip"])
    assert len(cell.task.splits(cell.config, places)["train"]) == 3
    monkeypatch.setattr(run, "check_splits", lambda *_: None)
    monkeypatch.setattr(engines, "get", lambda _name: SimpleNamespace())  # which could not be trained
    for expect in ("any", "published"):
        cell = plan.load_cell("coco_instance_segmentation", [f"data.expect={expect}"])
        splits = cell.task.splits(cell.config, places)
        assert len(splits["train"]) == 4, "a sample of headers only, for a number that may be there already"
        ctx = RunContext(splits=splits, seed=0, device=torch.device("cpu"), cache=None, folder=tmp_path / "run")
        with pytest.raises(DataError, match=words):
            run.detections(make_backbone("resnet18"), cell.config, ctx)


def test_a_rehearsal_decodes_what_it_uses(scenes, tmp_path, monkeypatch):
    as_coco(tmp_path, {"train2017": scenes(tmp_path / "train2017", 12), "val2017": scenes(tmp_path / "val2017", 1)})
    read, real = [], faults.read_image
    monkeypatch.setattr(faults, "read_image", lambda file, *size: read.append(file.name) or real(file, *size))
    cell = plan.load_cell("coco_instance_segmentation", ["bad=skip"], profile="smoke")
    splits = cell.task.splits(cell.config, DataPlaces(None, {"coco": tmp_path}))
    assert len(splits["train"]) == 8 and len(read) == 9


@pytest.mark.parametrize("cell", ["voc0712_detection", "coco_instance_segmentation"])
@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_a_rehearsals_batch_divides_among_processes(cell, ranks):
    assert plan.load_cell(cell, profile="smoke").config.course().batch % ranks == 0


def test_what_was_left_out_is_in_the_record_and_not_called_published(context, short, monkeypatch):
    monkeypatch.setattr(engines, "get", lambda _name: Stub())
    context.splits["train"] = replace(context.splits["train"], left_out=("boxes with no area: 1, e.g. b.xml",))
    config = run.DetectionConfig(spec=short("c4"))
    run.detections(object(), config, context)
    assert "left out of train: boxes with no area: 1, e.g. b.xml" in context.notes
    with pytest.raises(DataError, match=r"bad=skip left something out of train.*set <cell>\.data\.expect=any"):
        run.check_splits(context.splits, config, {})


@pytest.mark.parametrize("cell", ["voc0712_detection", "coco_instance_segmentation"])
@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        ("all", "all", "train and test are both 'all'"),
        ("../x", "test", "'../x' is not the name of a split"),
        ("x", "", "'' is no"),
    ],
)
def test_names_of_splits_that_cannot_be(cell, train, test, words):
    with pytest.raises(ConfigError, match=words):
        plan.load_cell(cell, [f"train={train}", f"test={test}"])


def as_coco(root, splits) -> None:
    (root / "annotations").mkdir()
    for name, split in splits.items():
        (root / f"annotations/instances_{name}.json").write_text(
            json.dumps(native_data.in_coco_format(split, difficult=False))
        )
