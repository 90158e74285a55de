"""Objects of Cityscapes: instanceIds to boxes, bitmaps and crowds; cells, native files, errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from backbench.data import catalogue
from backbench.data.catalogue import DataPlaces
from backbench.errors import DataError
from benchmarks import plan
from transfer.detection import engines
from transfer.detection.annotations.cityscapes import CLASSES, IDS, read_cityscapes
from transfer.detection.annotations.split import Detections, DetectionSplit, mask_format, trainable
from transfer.detection.job import Job
from transfer.detection.scoring import coco_eval
from transfer.protocol import RunContext

HEIGHT, WIDTH = 40, 80


def values_of(seed: int) -> np.ndarray:
    """Road, three cars of which one lies over another, a person, a group of persons, and a caravan, which does not count."""
    values = np.full((HEIGHT, WIDTH), 7, np.int32)
    left = 2 + seed
    values[10:20, left : left + 10] = 26000
    values[14:24, left + 5 : left + 15] = 26001
    values[30:36, 60:70] = 26002
    values[2:8, 40:44] = 24005
    values[0:5, 50:60] = 24
    values[30:33, 2:10] = 29000
    return values


@pytest.fixture
def folder(tmp_path) -> Path:
    root = tmp_path / "cityscapes"
    for split, cities in (("train", ("bonn", "ulm")), ("val", ("jena",))):
        for city in cities:
            images, truth = (root / kind / split / city for kind in ("leftImg8bit", "gtFine"))
            images.mkdir(parents=True)
            truth.mkdir(parents=True)
            for number in range(2):
                stem = f"{city}_{number:06d}_000019"
                Image.new("RGB", (WIDTH, HEIGHT)).save(images / f"{stem}_leftImg8bit.png")
                pixels = values_of(number).astype(np.uint16)
                Image.fromarray(pixels).save(truth / f"{stem}_gtFine_instanceIds.png")
    return root


def test_objects_are_those_of_the_instance_numbers(folder):
    split = read_cityscapes(folder, "train", masks=True)
    assert [p.id for p in split.pictures] == [f"{city}_{n:06d}_000019" for city in ("bonn", "ulm") for n in (0, 1)]
    assert split.file(3) == folder / "leftImg8bit/train/ulm/ulm_000001_000019_leftImg8bit.png"
    assert split.classes == CLASSES and len(CLASSES) == len(IDS) == 8
    for picture, seed in zip(split.pictures, (0, 1, 0, 1), strict=True):
        values = values_of(seed)
        found = {value: item for value, item in zip((24, 24005, 26000, 26001, 26002), picture.instances, strict=True)}
        for value, item in found.items():
            assert np.array_equal(coco_mask.decode(item.mask), values == value)
            assert item.area == (values == value).sum() and item.crowd == (value == 24)
            assert list(item.stated) == coco_mask.toBbox(item.mask).tolist()
            x, y, width, height = item.stated
            assert item.box == (x, y, x + width, y + height)
            assert split.classes[item.label] == ("person" if value < 25000 else "car")
    assert mask_format(split) == "bitmask"


@pytest.mark.parametrize("kind", ["uint8", "missing", "torn", "colours", "size"])
def test_faulty_instance_numbers_are_named(folder, kind):
    file = folder / "gtFine/train/ulm/ulm_000001_000019_gtFine_instanceIds.png"
    words = "instanceIds that are not whole images of whole numbers: 1, e.g. ulm/ulm_000001"
    if kind == "uint8":
        Image.fromarray(np.full((HEIGHT, WIDTH), 24, np.uint8)).save(file)
        assert [o.crowd for o in read_cityscapes(folder, "train").pictures[3].instances] == [True], (
            "a group and nothing else"
        )
        return
    if kind == "missing":
        file.unlink()
        words = "images that are not in the folder: 1, e.g. ulm/ulm_000001_000019_gtFine_instanceIds.png"
    elif kind == "torn":
        file.write_bytes(file.read_bytes()[:60])
    elif kind == "colours":
        Image.new("RGB", (WIDTH, HEIGHT)).save(file)
    else:
        Image.fromarray(values_of(1)[:30].astype(np.uint16)).save(file)
        words = "not of the size in their annotation: 1, e.g. ulm/ulm_000001"
    with pytest.raises(DataError, match=words):
        read_cityscapes(folder, "train")
    assert len(read_cityscapes(folder, "train", bad="skip")) == 3


def test_a_split_without_public_masks_is_refused(folder):
    with pytest.raises(DataError, match="no split 'test' with public masks"):
        read_cityscapes(folder, "test")


@pytest.mark.parametrize(
    ("cell", "masks"),
    [
        ("cityscapes_detection", False),
        ("cityscapes_instance_segmentation", True),
        ("cityscapes_frozen_detection", False),
    ],
)
def test_the_cells_are_detectron2s_configuration(cell, masks):
    config = plan.load_cell(cell).config
    assert (config.data.name, config.train, config.test, config.spec.masks) == ("cityscapes", "train", "val", masks)
    spec = config.spec
    assert (spec.iterations, spec.milestones, spec.batch, spec.lr) == (24_000, (18_000,), 8, 0.01)
    assert spec.sides_train == (800, 832, 864, 896, 928, 960, 992, 1024) and (spec.side_test, spec.side_max) == (
        1024,
        2048,
    )
    assert config.frozen == ("frozen" in cell)


class Finding:
    """An engine that finds every object that is not a group, and one group of persons."""

    def train(self, *_: object) -> str:
        return "model"

    def detect(self, _model: str, _spec: object, test: DetectionSplit, _job: Job) -> list[Detections]:
        found = []
        for picture in test.pictures:
            items = sorted(picture.instances, key=lambda o: o.crowd)
            boxes, labels = np.array([o.box for o in items], np.float32), np.array([o.label for o in items])
            found.append(Detections(boxes, np.linspace(1, 0.5, len(items)), labels, [o.mask for o in items]))
        return found


def test_a_cell_reads_and_scores(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "get", lambda _name: Finding())
    cell = plan.load_cell("cityscapes_instance_segmentation", ["data.expect=any"])
    splits = cell.task.splits(cell.config, DataPlaces(None, {"cityscapes": folder}))
    assert not catalogue.is_published("cityscapes", splits)
    (tmp_path / "run").mkdir()
    ctx = RunContext(splits, 0, torch.device("cpu"), tmp_path / "cache", tmp_path / "run")
    metrics = cell.task.run(object(), cell.config, ctx)
    assert metrics["mask_AP"].value == pytest.approx(100) and metrics["box_AP"].value == pytest.approx(100)
    assert any("COCO's metric" in note for note in ctx.notes)


def test_eight_classes_of_objects_are_the_published_ones(folder, monkeypatch):
    info = catalogue.info("cityscapes")
    assert info.object_classes == 8 and info.counts["classes"] == 19
    small = info.model_copy(update={"counts": {"train": 4, "val": 2, "classes": 19}})
    monkeypatch.setattr(catalogue, "info", lambda _name: small)
    splits = {role: read_cityscapes(folder, name) for role, name in (("train", "train"), ("test", "val"))}
    assert catalogue.is_published("cityscapes", splits)
    monkeypatch.setattr(catalogue, "info", lambda _name: small.model_copy(update={"object_classes": None}))
    assert not catalogue.is_published("cityscapes", splits)


@pytest.mark.slow
@pytest.mark.sample(0)
def test_an_engine_trains_on_bitmaps(name, folder, short, trained_like, tmp_path):
    train, test = (read_cityscapes(folder, split) for split in ("train", "val"))
    job = Job(tmp_path / "run", 0, torch.device("cpu"), test=test)
    spec = short("fpn", iterations=1, milestones=(), precise_bn=0, rois=8, sides_train=(64,), side_max=160)
    engine = engines.get(name)
    model = engine.train(spec, trained_like("resnet18"), trainable(train), job)
    found = engine.detect(model, spec, test, job)
    assert "masks are trained as bitmaps" in job.notes[0]
    coco_eval.evaluate(test, found, masks=True)


@pytest.mark.slow
def test_objects_are_those_of_detectron2s_reader(folder):
    """Detectron2's boxes end with the last pixel, ours behind it, as COCO's do."""
    labels = pytest.importorskip("cityscapesscripts.helpers.labels", reason="cityscapesscripts is not installed")
    if reason := engines.get("detectron2").missing():
        pytest.skip(reason)
    engines.get("detectron2").prepare()
    from detectron2.data.datasets.cityscapes import _cityscapes_files_to_dict

    counted = [label for label in labels.labels if label.hasInstances and not label.ignoreInEval]
    assert [(label.id, label.name) for label in counted] == list(zip(IDS, CLASSES, strict=True))
    for picture in read_cityscapes(folder, "val").pictures:
        file = folder / "gtFine/val/jena" / f"{picture.id}_gtFine_instanceIds.png"
        theirs = _cityscapes_files_to_dict(("a.png", str(file), "", ""), from_json=False, to_polygons=False)
        assert (theirs["width"], theirs["height"]) == (picture.width, picture.height)
        for ours, other in zip(picture.instances, theirs["annotations"], strict=True):
            assert (IDS[ours.label], ours.crowd) == (other["category_id"], other["iscrowd"])
            assert np.array_equal(coco_mask.decode(ours.mask), coco_mask.decode(other["segmentation"]))
            x0, y0, x1, y1 = ours.box
            assert (x0, y0, x1 - 1, y1 - 1) == other["bbox"]
