"""LVIS v1: its layout, federated average precision by a second formula and by lvis-api, repeated images, cells."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import federated
import numpy as np
import pytest
import torch

from backbench.data import catalogue
from backbench.data.catalogue import DataPlaces
from backbench.data.layouts import lvis as layout
from backbench.data.splits import Files
from backbench.errors import DataError
from benchmarks import plan
from transfer.detection import engines, run
from transfer.detection.annotations.lvis import read_lvis
from transfer.detection.annotations.repeats import repeat_factors, repeated
from transfer.detection.annotations.split import Detections, DetectionSplit, Instance, Picture
from transfer.detection.job import Job
from transfer.detection.scoring import coco_eval, lvis_eval
from transfer.protocol import RunContext

NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")


@pytest.fixture
def folder(tmp_path) -> Path:
    return federated.write(tmp_path / "lvis")


def edited(folder: Path, change, split: str = "val") -> None:
    """Apply a change to the record of an annotation file."""
    file = folder / f"annotations/lvis_v1_{split}.json"
    made = json.loads(file.read_text())
    change(made)
    file.write_text(json.dumps(made))


# ---------------------------------------------------------------- the layout


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_has_what_its_annotators_looked_for(folder, split):
    made = json.loads((folder / f"annotations/lvis_v1_{split}.json").read_text())
    found, row = read_lvis(folder, split, masks=True), {number: i for i, number in enumerate(federated.CATEGORIES)}
    assert found.classes == ("acorn", "cup", "bus", "fig") and found.frequencies == ("r", "c", "f", "r")
    for i, (picture, image) in enumerate(zip(found.pictures, made["images"], strict=True)):
        assert found.file(i) == folder / "/".join(image["coco_url"].split("/")[-2:]) and found.file(i).is_file()
        assert picture.absent == tuple(row[c] for c in image["neg_category_ids"])
        assert picture.partly == tuple(row[c] for c in image["not_exhaustive_category_ids"])
        objects = [a for a in made["annotations"] if a["image_id"] == image["id"]]
        assert [o.label for o in picture.instances] == [row[a["category_id"]] for a in objects]
        assert [o.stated for o in picture.instances] == [tuple(a["bbox"]) for a in objects]
    images = layout.read(folder, split)
    assert images.labels is None and images.source.paths == found.source.paths and images.classes == found.classes


def test_the_annotations_may_lie_in_the_folder_itself(folder):
    expected = read_lvis(folder, "val").manifest_sha256()
    for file in (folder / "annotations").glob("*.json"):
        file.rename(folder / file.name)
    assert layout.recognise(folder) == ("train", "val")
    assert read_lvis(folder, "val").manifest_sha256() == expected


@pytest.mark.parametrize(
    "change",
    [
        lambda made: made["images"][0].update(neg_category_ids=[11]),
        lambda made: made["images"][0].update(not_exhaustive_category_ids=[2, 5]),
        lambda made: made["categories"][0].update(frequency="f"),
    ],
    ids=["absent", "partly", "frequency"],
)
def test_the_manifest_sees_what_the_metric_uses(folder, change):
    edited(folder, lambda made: made["images"][0].update(neg_category_ids=[9, 2, 5], not_exhaustive_category_ids=[]))
    before = read_lvis(folder, "val").manifest_sha256()
    edited(folder, change)
    assert read_lvis(folder, "val").manifest_sha256() != before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda made: made["images"][1].pop("neg_category_ids"),
            "image 2 has no list neg_category_ids of known categories",
        ),
        (
            lambda made: made["images"][1].update(not_exhaustive_category_ids=[4]),
            "no list not_exhaustive_category_ids of",
        ),
        (lambda made: made["images"][1].update(neg_category_ids="2"), "no list neg_category_ids of known categories"),
        (
            lambda made: made["categories"][1].pop("frequency"),
            r"categories whose frequency is not r, c or f: 1, e\.g\. 5",
        ),
        (lambda made: made["images"][1].pop("coco_url"), "an image's coco_url is None"),
        (lambda made: made["images"][1].update(coco_url="1.jpg"), "an image's coco_url is '1.jpg'"),
        (lambda made: made["images"][1].update(coco_url="x/../1.jpg"), "file names that lead out of the folder: 1"),
        (lambda made: made["images"][1].update(coco_url="x/train2017/1.jpg"), "images that are not in the folder: 1"),
        (lambda made: made["annotations"][0].update(category_id=4), "annotations whose category_id is unknown: 1"),
    ],
)
def test_files_that_are_not_lviss_are_refused(folder, change, words):
    edited(folder, change)
    with pytest.raises(DataError, match=words):
        read_lvis(folder, "val")


def test_absent_images_are_named_where_only_images_are_needed(folder):
    (folder / "train2017/000000000003.jpg").unlink()
    with pytest.raises(
        DataError, match=r"not below .*: 1, e\.g\. train2017/000000000003\.jpg; link COCO's folders there"
    ):
        layout.read(folder, "val")


# ---------------------------------------------------------------- average precision


def overlap(one: Any, other: Any) -> float:
    width, height = (min(one[i + 2], other[i + 2]) - max(one[i], other[i]) for i in (0, 1))
    both = max(width, 0) * max(height, 0)
    area = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return both / (area - both)


def of_class(split: DetectionSplit, detections: list[Detections], label: int, threshold: float) -> float | None:
    """AP of boxes of all sizes by the definition: rank, match greedily, keep the best precision at each recall."""
    objects, ranked = 0, []
    for row, (picture, found) in enumerate(zip(split.pictures, detections, strict=True)):
        truth = [o.box for o in picture.instances if o.label == label]
        objects += len(truth)
        best = sorted(range(len(found.scores)), key=lambda i: -found.scores[i])[:300]
        mine = [i for i in best if found.labels[i] == label]
        if not truth and label not in picture.absent:
            continue  # nobody looked for it here
        free = list(truth)
        for place, i in enumerate(mine):
            fits = [(overlap(found.boxes[i].tolist(), box), at) for at, box in enumerate(free)]
            value, at = max(fits, default=(0.0, -1))
            if value >= threshold:
                free.pop(at)
                ranked.append((-float(found.scores[i]), row, place, 1.0))
            elif label not in picture.partly:
                ranked.append((-float(found.scores[i]), row, place, 0.0))
    if not objects:
        return None
    hits = np.cumsum([hit for *_, hit in sorted(ranked)])
    points = [(h / objects, h / (n + 1)) for n, h in enumerate(hits)]
    return float(np.mean([max((p for r, p in points if r >= level), default=0.0) for level in np.linspace(0, 1, 101)]))


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_is_the_definitions(tmp_path, seed):
    split = read_lvis(federated.write(tmp_path / "lvis", seed=seed), "val")
    found = federated.guesses(split, np.random.default_rng(seed))
    scores = lvis_eval.evaluate(split, found)
    thresholds = np.linspace(0.5, 0.95, 10)
    expected = {label: [of_class(split, found, label, t) for t in thresholds] for label in range(3)}
    assert of_class(split, found, 3, 0.5) is None, "a class without an object has no AP"
    assert scores["box_AP"] == pytest.approx(100 * np.mean(list(expected.values())), abs=1e-9)
    assert scores["box_AP50"] == pytest.approx(100 * np.mean([values[0] for values in expected.values()]), abs=1e-9)
    assert scores["box_AP75"] == pytest.approx(100 * np.mean([values[5] for values in expected.values()]), abs=1e-9)
    for label, frequency in enumerate("rcf"):
        assert scores[f"box_AP{frequency}"] == pytest.approx(100 * np.mean(expected[label]), abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_is_that_of_lvis_api(tmp_path, seed, monkeypatch):
    """Boxes and masks, all sizes and frequencies, images with more than 300 detections."""
    lvis = pytest.importorskip("lvis", reason="the package lvis is not installed")
    monkeypatch.setattr(np, "float", float, raising=False)  # lvis 0.5.3 uses it
    root = federated.write(tmp_path / "lvis", seed=seed)
    split = read_lvis(root, "val", masks=True)
    found = federated.guesses(split, np.random.default_rng(seed), each=320 if seed == 2 else 12)
    scores = lvis_eval.evaluate(split, found, masks=True)
    category = list(federated.CATEGORIES)
    for kind, prefix in (("bbox", "box"), ("segm", "mask")):
        results = []
        for picture, one in zip(split.pictures, found, strict=True):
            for box, score, label, mask in zip(one.boxes, one.scores, one.labels, one.masks, strict=True):
                x0, y0, x1, y1 = (float(v) for v in box)
                shape = {"bbox": [x0, y0, x1 - x0, y1 - y0]} if kind == "bbox" else {"segmentation": mask}
                results.append(
                    {"image_id": int(picture.id), "category_id": category[label], "score": float(score), **shape}
                )
        truth = lvis.LVIS(str(root / "annotations/lvis_v1_val.json"))
        theirs = lvis.LVISEval(truth, lvis.LVISResults(truth, results), kind)
        theirs.run()
        expected = {f"{prefix}_{n}": 100 * theirs.get_results()[n] for n in NAMES if theirs.get_results()[n] >= 0}
        assert {name: value for name, value in scores.items() if name.startswith(prefix)} == pytest.approx(expected)


def one_image(found: list[tuple[float, int]], **fields: Any) -> dict[str, float]:
    """AP of an image with one object of class 0, boxes with (score, class); the first one fits the object."""
    picture = Picture("1", 60, 40, (Instance(0, (0, 0, 10, 10), area=100.0),), **{"absent": (), **fields})
    boxes = np.array([[0, 0, 10, 10], *([[20, 20, 30, 30]] * (len(found) - 1))], np.float32)
    scores, labels = np.array([s for s, _ in found], np.float32), np.array([c for _, c in found])
    split = DetectionSplit(
        "lvis",
        "val",
        Files(Path(), ("a.jpg",)),
        (picture,),
        ("acorn", "cup"),
        annotations=Path("x"),
        frequencies=("r", "f"),
    )
    return lvis_eval.evaluate(split, [Detections(boxes, scores, labels)])


def test_each_rule_of_federated_annotations():
    assert one_image([(0.5, 0)]) == {f"box_{n}": pytest.approx(100) for n in ("AP", "AP50", "AP75", "APs", "APr")}
    assert one_image([(0.5, 0), (0.9, 0)])["box_AP"] == pytest.approx(50), "a wrong box before the right one"
    assert one_image([(0.5, 0), (0.9, 0)], partly=(0,))["box_AP"] == pytest.approx(100), "perhaps not annotated"
    assert one_image([(0.5, 0), (0.9, 1)])["box_AP"] == pytest.approx(100), "nobody looked for class 1"
    assert one_image([(0.5, 0), *[(0.9, 1)] * 299])["box_AP"] == pytest.approx(100)
    assert one_image([(0.5, 0), *[(0.9, 1)] * 300])["box_AP"] == 0, "of 301, the best 300 count, whatever their class"


def test_no_metric_is_computed_on_annotations_of_the_other_kind(folder):
    split = read_lvis(folder, "val")
    found = federated.guesses(split, np.random.default_rng(0))
    with pytest.raises(DataError, match="annotations are federated, and COCO's metric would count"):
        coco_eval.evaluate(split, found)
    unknown = tuple(replace(p, absent=None) for p in split.pictures)
    for other in (replace(split, frequencies=()), replace(split, pictures=unknown)):
        with pytest.raises(DataError, match="do not say which classes were looked for"):
            lvis_eval.evaluate(other, found)


# ---------------------------------------------------------------- training


def with_labels(*labels: tuple[int, ...]) -> DetectionSplit:
    boxes = [tuple(Instance(label, (0, 0, 9, 9)) for label in found) for found in labels]
    pictures = tuple(Picture(str(i), 60, 40, found) for i, found in enumerate(boxes))
    return DetectionSplit(
        "lvis", "train", Files(Path(), tuple(f"{p.id}.jpg" for p in pictures)), pictures, ("a", "b", "c")
    )


def test_images_of_rare_classes_are_repeated():
    split = with_labels((0,), (0, 1), (0,), (0, 0, 2), (0,), (0,), (0,), (0, 2))
    factors = repeat_factors(split, 0.5)
    rare, seldom = math.sqrt(0.5 / (1 / 8)), math.sqrt(0.5 / (2 / 8))
    assert factors == pytest.approx([1, rare, 1, seldom, 1, 1, 1, seldom])
    more = repeated(split, 0.5)
    assert [p.id for p in more.pictures] == ["0", "1", "1", "2", "3", "3", "4", "5", "6", "7", "7"]
    assert more.source.paths == tuple(f"{p.id}.jpg" for p in more.pictures)


def test_images_without_objects_are_not_counted():
    more = repeated(with_labels((0,), (), (1,), (0,), (0,)), 0.9)
    assert [p.id for p in more.pictures] == ["0", "0", "2", "2", "3", "3", "4", "4"], "f is 3/4 and 1/4"


@pytest.mark.slow
def test_repeat_factors_are_detectron2s():
    if reason := engines.get("detectron2").missing():
        pytest.skip(reason)
    engines.get("detectron2").prepare()
    from detectron2.data.samplers import RepeatFactorTrainingSampler

    from transfer.detection.engines.detectron2.data import records

    rng = np.random.default_rng(0)
    split = with_labels(
        *[tuple(int(c) for c in rng.choice(3, rng.integers(1, 3), p=[0.9, 0.08, 0.02])) for _ in range(50)]
    )
    theirs = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(records(split), 0.3)
    assert repeat_factors(split, 0.3) == pytest.approx(theirs.tolist())


@pytest.mark.parametrize(
    ("cell", "masks", "frozen"),
    [
        ("lvis_instance_segmentation", True, False),
        ("lvis_detection", False, False),
        ("lvis_frozen_detection", False, True),
    ],
)
def test_the_cells_are_detectron2s_configuration(cell, masks, frozen):
    config = plan.load_cell(cell).config
    assert (config.train, config.test, config.spec.masks, config.frozen) == ("train", "val", masks, frozen)
    assert (config.spec.iterations, config.spec.milestones, config.spec.batch) == (180_000, (120_000, 160_000), 16)
    assert (config.spec.lr, config.spec.warmup, config.spec.detections) == (0.02, 1000, 300)
    assert (config.spec.score_threshold, config.oversample) == (1e-4, 1e-3)


def test_a_share_of_lvis_is_refused(folder):
    cell = plan.load_cell("lvis_detection", ["share=10%", "data.expect=any"])
    with pytest.raises(DataError, match="'lvis': share=10% is drawn from COCO's images only; leave it out"):
        cell.task.splits(cell.config, DataPlaces(None, {"lvis": folder}))


class Finding:
    """An engine that finds every object, and keeps what it was trained on."""

    def train(self, _spec: object, _backbone: object, train: DetectionSplit, _job: Job) -> str:
        self.taught = train
        return "model"

    def detect(self, _model: str, _spec: object, test: DetectionSplit, _job: Job) -> list[Detections]:
        return [
            Detections(
                np.array([o.box for o in p.instances], np.float32).reshape(-1, 4),
                np.ones(len(p.instances), np.float32),
                np.array([o.label for o in p.instances], np.int64),
            )
            for p in test.pictures
        ]


def test_a_cell_reads_trains_and_scores(folder, tmp_path, monkeypatch):
    engine = Finding()
    monkeypatch.setattr(engines, "get", lambda _name: engine)
    cell = plan.load_cell("lvis_detection", ["data.expect=any", "oversample=0.6"])
    splits = cell.task.splits(cell.config, DataPlaces(None, {"lvis": folder}))
    assert not catalogue.is_published("lvis", splits)
    ctx = RunContext(splits, 0, torch.device("cpu"), tmp_path / "cache", tmp_path / "run")
    (tmp_path / "run").mkdir()
    metrics = cell.task.run(object(), cell.config, ctx)
    assert metrics["box_AP"].value == metrics["box_APr"].value == metrics["box_APf"].value == pytest.approx(100)
    assert len(engine.taught) > len(repeated(splits["train"], 1e-9))
    assert f"are repeated: 6 images, {len(engine.taught)} in a pass" in ctx.notes[-1]
    with pytest.raises(DataError, match="'lvis' has train 6, val 12; published: train 100170, val 19809"):
        run.check_splits(splits, plan.load_cell("lvis_detection").config, dict(catalogue.info("lvis").counts))


@pytest.mark.slow
@pytest.mark.sample(1)
def test_native_files_evaluate_no_federated_split(name, folder, short, trained_like, tmp_path):
    train, test = (read_lvis(folder, split) for split in ("train", "val"))
    job = Job(tmp_path / "run", 0, torch.device("cpu"), test=test)
    cfg = engines.get(name).write_native(short("fpn", masks=False), trained_like("resnet18"), train, job)
    assert (job.folder / "train.json").is_file() and not (job.folder / "test.json").exists()
    assert "test_evaluator" not in cfg
