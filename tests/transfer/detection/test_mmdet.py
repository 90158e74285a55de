"""MMDetection as an engine: its settings against Detectron2's rules, its data, training, resuming, detection."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import warm
from backbones import initial
from PIL import Image

from backbench import distributed
from backbench.data import demo
from backbench.data.decode import CorruptImage
from backbench.data.demo import render
from backbench.data.splits import Files
from backbench.errors import BackbenchError, ConfigError, DataError
from backbench.progress import logged
from model_zoo.architecture import Architecture, InputSpec
from model_zoo.backbone import Backbone
from model_zoo.export import ExportError
from model_zoo.reading import load_torch
from transfer.detection.adapt import mmengine_warnings
from transfer.detection.annotations import native_data
from transfer.detection.annotations import pixels as reading
from transfer.detection.annotations.layouts import read_coco, read_voc
from transfer.detection.annotations.split import Detections, DetectionSplit, Instance, Picture
from transfer.detection.engines import mmdet as engine
from transfer.detection.engines.mmdet import protocol as mmdet_protocol
from transfer.detection.job import Job
from transfer.detection.scoring import coco_eval
from transfer.detection.spec import DetectionSpec
from transfer.detection.training import checkpoints
from transfer.detection.training.mmengine_course import schedules
from transfer.detection.training.steps import rle

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.slow  # to import it takes as long as a hundred quick tests


@pytest.fixture(scope="module", autouse=True)
def _ready():
    if engine.missing():
        pytest.skip(engine.missing())
    engine.prepare()


def backbone(name: str = "resnet18", seed: int = 0, **arch) -> Backbone:
    architecture = Architecture(name=name, **arch)
    return Backbone("random", architecture, initial(architecture, seed), InputSpec(), "", "random")


def course(head: str, **fields) -> DetectionSpec:
    small = {"iterations": 3, "batch": 2, "lr": 0.01, "warmup": 1, "precise_bn": 1, "rois": 16, "side_max": 160,
             "sides_train": (64, 96), "side_test": 96, "masks": head == "fpn",
             "proposals_train": (200, 50), "proposals_test": (200, 50)}  # fmt: skip
    return DetectionSpec(head=head, **{**small, **fields})


def job(folder: Path, **fields) -> Job:
    return Job(folder, **{"seed": 0, "device": torch.device("cpu"), "checkpoint_every": 2, "log_every": 1, **fields})


def first(split: DetectionSplit, count: int) -> DetectionSplit:
    source = Files(split.source.root, split.source.paths[:count])
    return dataclasses.replace(split, source=source, pictures=split.pictures[:count])


def demo_split(head: str, role: str = "train", count: int = 8) -> DetectionSplit:
    if head == "c4":
        return first(read_voc(demo.root() / "voc", {"train": "trainval", "test": "test"}[role]), count)
    return first(read_coco(demo.root() / "coco", f"{role.replace('test', 'val')}2017", masks=True), count)


@pytest.fixture
def pair(tmp_path) -> DetectionSplit:
    """A 20x30 red image with a plain, a difficult and a crowd object, and an image with only a crowd."""
    for name in ("a.png", "b.png"):
        Image.new("RGB", (20, 30), (255, 0, 0)).save(tmp_path / name)
    objects = (
        Instance(0, (0, 2, 10, 12)),
        Instance(1, (5.5, 5, 20, 30), difficult=True),
        Instance(0, (1, 1, 3, 3), crowd=True),
    )
    pictures = (Picture("a", 20, 30, objects), Picture("b", 20, 30, objects[2:]))
    return DetectionSplit("voc", "trainval", Files(tmp_path, ("a.png", "b.png")), pictures, ("cup", "bus"))


# ---------------------------------------------------------------- the configuration


def detectron2_rate(spec: DetectionSpec, iteration: int) -> float:
    """WarmupMultiStepLR (detectron2/solver/lr_scheduler.py), by its formula."""
    warmup = min(spec.warmup, spec.iterations)
    scale = 1.0 if iteration >= warmup else 0.001 + (1 - 0.001) * iteration / warmup
    return spec.lr * scale * 0.1 ** sum(iteration >= m for m in spec.milestones)


COURSES = [(0, ()), (1, (9,)), (5, (7, 11)), (100, ())]


def test_warnings_of_mmengine_are_in_the_log_and_not_on_the_terminal(tmp_path, capfd):
    mmengine_warnings.quiet()
    logger = pytest.importorskip("mmengine.logging").MMLogger.get_current_instance()
    with logged("", tmp_path / "log.txt"):
        logger.info("layer1.0.conv1.weight: initialised")
        logger.warning("unexpected key")
        logger.error("broken")
    lines = [line.split(" ", 2)[2] for line in (tmp_path / "log.txt").read_text().splitlines()]
    assert lines == ["WARNING mmengine: unexpected key", "ERROR mmengine: broken"]
    assert capfd.readouterr() == ("", "broken\n")


@pytest.mark.parametrize(("warmup", "milestones"), COURSES)
def test_the_rate_is_detectron2s_at_every_iteration(tmp_path, pair, warmup, milestones):
    spec = course("c4", iterations=14, warmup=warmup, milestones=milestones)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=spec.lr)
    schedulers = schedules(engine.configuration(spec, backbone(), pair, job(tmp_path)), optimizer)
    for iteration in range(spec.iterations):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(detectron2_rate(spec, iteration), rel=1e-6), iteration
        optimizer.step()
        schedulers.step()


@pytest.mark.parametrize(("warmup", "milestones"), COURSES[:4])
def test_the_reference_of_the_rate_is_detectron2s_scheduler(tmp_path, pair, warmup, milestones):
    solver = pytest.importorskip("detectron2.solver")
    from detectron2.config import get_cfg

    spec, cfg = course("c4", iterations=14, warmup=warmup, milestones=milestones), get_cfg()
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.SOLVER.WARMUP_ITERS = 14, milestones, warmup
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=spec.lr)
    scheduler = solver.build_lr_scheduler(cfg, optimizer)
    for iteration in range(spec.iterations):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(detectron2_rate(spec, iteration), rel=1e-6), iteration
        optimizer.step()
        scheduler.step()


@pytest.mark.slow
def test_norms_are_not_decayed_and_all_else_is(tmp_path, pair):
    from mmengine.optim import build_optim_wrapper

    cfg = engine.write_native(course("fpn", weight_decay=0.25), backbone(), pair, job(tmp_path))
    model = engine.build(cfg, backbone(), torch.device("cpu"))
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    decay = {id(p): g["weight_decay"] for g in wrapper.optimizer.param_groups for p in g["params"]}
    norms = {id(p) for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d) for p in m.parameters()}
    assert len(norms) == 2 * (20 + 8), "of ResNet-18 and of the FPN's eight convolutions, none in the heads"
    assert {name for name, p in model.named_parameters() if decay[id(p)] != (0.0 if id(p) in norms else 0.25)} == set()
    assert len(decay) == len(list(model.parameters())), "nothing is frozen"


@pytest.mark.slow
def test_frozen_norms_stay_as_they_are(tmp_path, pair):
    cfg = engine.write_native(course("c4", norm="frozen"), backbone(), pair, job(tmp_path))
    model = engine.build(cfg, backbone(), torch.device("cpu")).train()
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(norms) == 21
    assert not any(m.training or m.weight.requires_grad for m in norms)
    assert cfg.custom_hooks == []


def test_a_batch_that_ranks_cannot_share_is_refused(tmp_path, pair, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    with pytest.raises(ConfigError, match="batch=2 does not divide by 3 processes"):
        engine.configuration(course("c4"), backbone(), pair, job(tmp_path))


def test_the_native_file_is_what_is_trained(tmp_path, pair):
    from mmengine.config import Config

    cfg = engine.write_native(course("fpn"), backbone(), pair, job(tmp_path))
    assert Config.fromfile(tmp_path / engine.NATIVE).to_dict() == cfg.to_dict()


def reference_match(overlaps: torch.Tensor) -> tuple[list[int], list[int]]:
    """Return (labels, boxes) by detectron2/modeling/matcher.py at 0.3 and 0.7, one anchor at a time."""
    labels, boxes = [], []
    for anchor in range(overlaps.shape[1]):
        column = overlaps[:, anchor].tolist()
        best = max(column)
        is_best_of_a_box = any(column[k] == max(overlaps[k].tolist()) for k in range(len(column)))
        labels.append(1 if best >= 0.7 or is_best_of_a_box else 0 if best < 0.3 else -1)
        boxes.append(column.index(best))
    return labels, boxes


def assigned(overlaps: torch.Tensor) -> tuple[list[int], list[int], list[int]]:
    from mmdet.registry import TASK_UTILS

    assigner = TASK_UTILS.build(mmdet_protocol.train_cfg(course("c4"))["rpn"]["assigner"])
    result = assigner.assign_wrt_overlaps(overlaps, torch.arange(len(overlaps)) + 10)
    return [min(i, 1) for i in result.gt_inds.tolist()], (result.gt_inds - 1).tolist(), result.labels.tolist()


@pytest.mark.parametrize("seed", range(6))
def test_anchors_are_assigned_as_detectron2_does(seed):
    generator = torch.Generator().manual_seed(seed)
    overlaps = torch.rand(4, 60, generator=generator).mul(8).round() / 8 * (0.2, 0.6, 1.0)[seed % 3] + 0.01  # with ties
    labels, boxes, classes = assigned(overlaps)
    expected_labels, expected_boxes = reference_match(overlaps)
    assert labels == expected_labels
    positive = [i for i, label in enumerate(labels) if label == 1]
    assert [boxes[i] for i in positive] == [expected_boxes[i] for i in positive]
    assert [classes[i] for i in positive] == [expected_boxes[i] + 10 for i in positive]
    assert len(positive) >= 4


def test_the_reference_of_the_assignment_is_detectron2s_matcher():
    matcher = pytest.importorskip("detectron2.modeling.matcher").Matcher([0.3, 0.7], [0, -1, 1], True)
    overlaps = torch.rand(4, 60).mul(8).round() / 8 * 0.9 + 0.01
    boxes, labels = matcher(overlaps)
    assert reference_match(overlaps) == (labels.tolist(), boxes.tolist())


def test_images_without_boxes_and_boxes_without_anchors():
    assert assigned(torch.zeros(0, 5))[0] == [0] * 5
    overlaps = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.2, 0.1]])  # the first box is empty
    assert assigned(overlaps)[:2] == ([0, 1, 0], [-1, 1, -1])


# ---------------------------------------------------------------- weights


@pytest.mark.slow
@pytest.mark.parametrize("head", ["c4", "fpn"])
@pytest.mark.parametrize("arch", ["resnet18", "resnet34", "resnet50", "resnet101"])
@pytest.mark.sample(3)
def test_the_detector_computes_the_backbones_features(tmp_path, pair, head, arch):
    exported = backbone(arch)
    cfg = engine.write_native(course(head), exported, pair, job(tmp_path))
    model = engine.build(cfg, exported, torch.device("cpu")).eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = exported.build().eval().stages(image)
        found = model.backbone(image)
        torch.testing.assert_close(tuple(found), expected[2:3] if head == "c4" else expected)
        if head == "c4":
            after = model.roi_head.shared_head(found[0])
            norm = model.roi_head.shared_head.norm
            norm.running_mean += 1
            torch.testing.assert_close(after, expected[3] / math.sqrt(1 + norm.eps))
            torch.testing.assert_close(model.roi_head.shared_head(found[0]), after - 1 / math.sqrt(1 + norm.eps))


@pytest.mark.slow
@pytest.mark.parametrize("head", ["c4", "fpn"])
def test_a_backbone_for_bgr_sees_the_same_images(tmp_path, head):
    """The detector's features of an RGB picture equal the backbone's of the BGR picture."""
    from mmcv.transforms import Compose
    from mmengine.dataset import pseudo_collate

    spec, split = course(head, side_test=render.SCENE[1]), demo_split(head, count=1)
    bgr = dataclasses.replace(backbone(), input=InputSpec(mean=(0.4, 0.45, 0.5), std=(0.2, 0.25, 0.3), order="bgr"))
    model = engine.build(engine.write_native(spec, bgr, split, job(tmp_path)), bgr, torch.device("cpu")).eval()
    width, height = render.SCENE
    load = Compose(mmdet_protocol.test_pipeline(spec))
    loaded = load({"img_path": str(split.file(0)), "img_id": 0, "width": width, "height": height})
    seen = model.data_preprocessor(pseudo_collate([loaded]))["inputs"]
    pixels = reading.read_image(split.file(0), width, height)[:, :, ::-1].copy()
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (bgr.input.mean, bgr.input.std))
    with torch.no_grad():
        expected = bgr.build().eval().stages((torch.as_tensor(pixels).permute(2, 0, 1)[None] / 255 - mean) / std)
        for ours, theirs in zip(engine.trunk_stages(model, seen), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


def broken(folder: Path, change) -> None:
    state = torch.load(folder / "backbone.pth")
    state["state_dict"] = change(state["state_dict"])
    torch.save(state, folder / "backbone.pth")


@pytest.mark.slow
@pytest.mark.parametrize("head", ["c4", "fpn"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda s: {f"module.{k}": v for k, v in s.items()},
            r"backbone\.pth: backbone\. is not in the pretrained model",
        ),
        (lambda s: {k: v for k, v in s.items() if "layer1.0.conv1" not in k}, "layer1.0.conv1"),
        (lambda s: {k: v for k, v in s.items() if "layer4.1.bn2.running_var" not in k}, "layer4.1.bn2.running_var"),
        (lambda s: {**s, "backbone.bn1.bias": s["backbone.bn1.bias"] + 1e-3}, "bn1.bias"),
    ],
    ids=["prefix", "missing", "missing in the head", "another value"],
)
def test_weights_that_do_not_arrive_are_refused(tmp_path, pair, head, change, words):
    trained = backbone()
    for name, tensor in trained.state.items():
        if name.endswith("running_var"):
            tensor += 0.5  # mmdet's own start is 1
    cfg = engine.write_native(course(head), trained, pair, job(tmp_path))
    broken(tmp_path, change)
    with pytest.raises(BackbenchError, match=words):
        engine.build(cfg, trained, torch.device("cpu"))


@pytest.mark.slow
@pytest.mark.parametrize("head", ["c4", "fpn"])
def test_another_depth_is_refused(tmp_path, pair, head):
    cfg = engine.write_native(course(head), backbone("resnet18"), pair, job(tmp_path))
    with pytest.raises(ExportError, match="layer"):
        engine.build(cfg, backbone("resnet34"), torch.device("cpu"))


@pytest.mark.slow
@pytest.mark.parametrize("head", ["c4", "fpn"])
def test_a_trunk_that_computes_something_else_is_refused(tmp_path, pair, head, monkeypatch):
    cfg, stages = engine.write_native(course(head), backbone(), pair, job(tmp_path)), engine.trunk_stages
    monkeypatch.setattr(engine, "trunk_stages", lambda model, x: [1.001 * stage for stage in stages(model, x)])
    with pytest.raises(ExportError, match=r"differ from torchvision's by 1\.0e-03"):
        engine.build(cfg, backbone(), torch.device("cpu"))


# ---------------------------------------------------------------- data


def test_training_sees_difficult_objects_small_images_and_boxes_as_given(tmp_path, pair):
    cfg = engine.write_native(course("c4", sides_train=(40,), batch=1), backbone(), pair, job(tmp_path))
    stored = json.loads((tmp_path / "train.json").read_text())
    assert [image["file_name"] for image in stored["images"]] == ["a.png"], "nothing to learn from a crowd alone"
    assert [a["bbox"] for a in stored["annotations"]] == [[0, 2, 10, 10], [5.5, 5, 14.5, 25], [1, 1, 2, 2]]
    flips = set()
    for _, batch in zip(range(8), engine.train_loader(cfg, 0, job(tmp_path)), strict=False):
        (sample,) = batch["data_samples"]
        assert sample.img_shape == (60, 40)
        boxes = sample.gt_instances.bboxes.tensor.tolist()
        assert boxes in ([[0, 4, 20, 24], [11, 10, 40, 60]], [[20, 4, 40, 24], [0, 10, 29, 60]])
        assert sample.gt_instances.labels.tolist() == [0, 1]
        flips.add(sample.flip)
    assert flips == {True, False}


@pytest.mark.slow
def test_red_is_the_first_channel_that_the_network_sees(tmp_path, pair):
    other = dataclasses.replace(backbone(), input=InputSpec(mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.5)))
    cfg = engine.write_native(course("c4", batch=1), other, pair, job(tmp_path))
    model = engine.build(cfg, other, torch.device("cpu"))
    data = model.data_preprocessor(next(engine.train_loader(cfg, 0, job(tmp_path))), True)
    torch.testing.assert_close(data["inputs"].mean((0, 2, 3)), torch.tensor([0.5 / 0.2, -0.4 / 0.25, -0.3 / 0.5]))


@pytest.mark.slow
def test_images_are_resized_by_pillow_and_padded_to_the_whole_batch(tmp_path):
    split = demo_split("fpn", count=1)
    cfg = engine.write_native(course("fpn", sides_train=(72,), batch=1), backbone(), split, job(tmp_path))
    batches = engine.train_loader(cfg, 0, job(tmp_path))
    batch = next(b for b in batches if not b["data_samples"][0].flip)
    expected = np.asarray(split.source.pil(0).resize((90, 72), Image.Resampling.BILINEAR))
    assert np.array_equal(batch["inputs"][0].numpy()[::-1].transpose(1, 2, 0), expected)
    model = engine.build(cfg, backbone(), torch.device("cpu"))
    wide = {"inputs": [batch["inputs"][0], torch.zeros(3, 20, 130).byte()], "data_samples": batch["data_samples"] * 2}
    data = model.data_preprocessor(wide, True)
    assert data["inputs"].shape == (2, 3, 96, 160)
    assert {sample.pad_shape for sample in data["data_samples"]} == {(96, 160)}


RUNS = {"size": [30, 20], "counts": [160, *[10, 20] * 9, 10, 160]}  # columns 5 to 14, rows 10 to 19
SQUARE = np.pad(np.ones((10, 10), bool), ((10, 10), (5, 5)))
POLYGON = [[5, 10, 15, 10, 15, 20, 5, 20]]


@pytest.mark.parametrize("mask", [POLYGON, RUNS, rle(SQUARE)], ids=["polygon", "runs", "packed runs"])
def test_masks_of_every_kind_reach_the_detector(tmp_path, mask):
    """With polygons only, MMDetection would silently ignore an object with another kind of mask."""
    Image.new("RGB", (20, 30)).save(tmp_path / "a.png")
    objects = (Instance(0, (5, 10, 15, 20), mask=mask), Instance(1, (1, 1, 3, 3), crowd=True, mask=RUNS))
    split = DetectionSplit("own", "train", Files(tmp_path, ("a.png",)), (Picture("a", 20, 30, objects),), ("a", "b"))
    one = job(tmp_path)
    cfg = engine.write_native(course("fpn", sides_train=(40,), batch=1), backbone(), split, one)
    (sample,) = next(b for b in engine.train_loader(cfg, 0, one) if not b["data_samples"][0].flip)["data_samples"]
    assert sample.gt_instances.labels.tolist() == [0], "the crowd is no truth"
    (seen,) = sample.gt_instances.masks.to_ndarray()
    assert seen.shape == (60, 40)
    assert seen[20:40, 10:30].all() and seen.sum() <= 22 * 22
    assert bool(one.notes) == isinstance(mask, dict), "bitmaps are said"


def test_a_split_without_any_object_is_an_error(tmp_path, pair):
    empty = dataclasses.replace(pair, pictures=tuple(dataclasses.replace(p, instances=()) for p in pair.pictures))
    with pytest.raises(DataError, match="voc trainval: no image has an object to train on"):
        engine.train(course("c4"), backbone(), empty, job(tmp_path))


def test_pictures_are_read_as_stored_by_both_engines(tmp_path):
    """A viewer rotates it by its EXIF tag; boxes and the header's size refer to the stored pixels."""
    from mmcv.transforms import Compose

    pixels, turned = np.zeros((40, 64, 3), np.uint8), Image.Exif()
    pixels[:, :32, 0], turned[274] = 255, 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=turned)
    picture = Picture("turned", 64, 40, (Instance(0, (0, 0, 32, 40)),))
    split = DetectionSplit("own", "train", Files(tmp_path, ("turned.png",)), (picture,), ("red",))
    spec = course("c4", sides_train=(40,), side_test=40, batch=1)
    cfg = engine.write_native(spec, backbone(), split, job(tmp_path))
    batch = next(b for b in engine.train_loader(cfg, 0, job(tmp_path)) if not b["data_samples"][0].flip)
    asked = {"img_path": str(split.file(0)), "img_id": 0, "width": 64, "height": 40}
    tested = Compose(mmdet_protocol.test_pipeline(spec))(asked)
    assert tested["data_samples"].ori_shape == (40, 64)
    for seen in (batch["inputs"][0], tested["inputs"]):
        assert np.array_equal(seen.numpy()[::-1].transpose(1, 2, 0), pixels)
    assert np.array_equal(reading.read_image(split.file(0), 64, 40), pixels), "what Detectron2 starts from"


def test_a_broken_image_is_named(tmp_path, pair):
    cfg = engine.write_native(course("c4", batch=1), backbone(), pair, job(tmp_path))
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptImage, match=r"a\.png: not a whole image"):
        next(engine.train_loader(cfg, 0, job(tmp_path)))
    with pytest.raises(CorruptImage, match=r"a\.png"):
        engine.detect(torch.nn.Identity(), course("c4"), pair, job(tmp_path))


def test_an_image_of_another_size_than_annotated_is_named(tmp_path, pair):
    Image.new("RGB", (21, 30)).save(tmp_path / "a.png")
    cfg = engine.write_native(course("c4", batch=1), backbone(), pair, job(tmp_path))
    with pytest.raises(DataError, match=r"a\.png: has 21x30 pixels, but 20x30 in its annotation"):
        next(engine.train_loader(cfg, 0, job(tmp_path)))
    with pytest.raises(DataError, match=r"a\.png: has 21x30 pixels, but 20x30 in its annotation"):
        engine.detect(torch.nn.Identity(), course("c4"), pair, job(tmp_path))


# ---------------------------------------------------------------- is it usable


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "mmcv" else object())
    assert engine.missing() == "mmcv not installed: python -m transfer.detection install"


def test_operators_are_tried(monkeypatch):
    import mmcv.ops

    engine.try_operators()
    assert "mmdet 3." in engine.version()
    assert "mmengine" in engine.version()
    served = importlib.metadata.version("torchvision")
    monkeypatch.setattr(engine, "compiled", lambda: False)
    assert engine.version().endswith(f", operators torchvision {served}")
    monkeypatch.setattr(engine, "compiled", lambda: True)
    assert engine.version().endswith(", operators compiled")
    monkeypatch.undo()
    assert engine.compiled() in (True, False)
    monkeypatch.setattr(mmcv.ops, "nms", lambda boxes, scores, iou: (boxes, torch.tensor([0, 1, 2])))
    with pytest.raises(BackbenchError, match="is broken"):
        engine.try_operators()


# ---------------------------------------------------------------- whole runs


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "losses.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("head", ["c4", "fpn"])
@pytest.mark.sample(1)
def test_trains_and_detects_in_the_images_own_pixels(tmp_path, head, monkeypatch):
    spec, train, test = course(head, score_threshold=0.0), demo_split(head), demo_split(head, "test", 3)
    model = engine.train(spec, backbone(), train, job(tmp_path))
    lines = records(tmp_path)
    assert [line["iteration"] for line in lines] == [0, 1, 2]
    names = {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"} | ({"loss_mask"} if spec.masks else set())
    for line in lines:
        assert set(line) == {"iteration", "total", "lr"} | names
        assert all(math.isfinite(value) for value in line.values())
    moved = [n for n, t in backbone().state.items() if n.endswith("conv1.weight") and n.startswith("layer1")
             and not torch.equal(t, model.state_dict()[f"backbone.{n}"])]  # fmt: skip
    assert len(moved) == 2, "no stage is frozen"
    found = engine.detect(model, spec, test, job(tmp_path))
    check_detections(found, test, spec)
    monkeypatch.setattr(engine, "train_loader", lambda *_: pytest.fail("a finished run is trained or measured again"))
    again = engine.train(spec, backbone(), train, job(tmp_path))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])


def check_detections(found, test, spec) -> None:
    width, height = render.SCENE
    assert len(found) == len(test)
    for one in found:
        assert one.boxes.dtype == one.scores.dtype == np.float32
        assert one.labels.dtype == np.int64
        assert len(one.boxes) == len(one.scores) == len(one.labels) > 0
        assert (np.diff(one.scores) <= 0).all()
        assert one.boxes.min() >= 0
        assert (one.boxes.max(axis=0) <= [width, height, width, height]).all()
        assert one.boxes[:, 2].max() > 120, "wider than what the network sees (120x96)"
        if spec.masks:
            assert [tuple(mask["size"]) for mask in one.masks] == [(height, width)] * len(one.boxes)


@pytest.mark.slow
def test_a_course_of_another_backbone_is_refused(tmp_path):
    spec, split = course("c4", iterations=1, precise_bn=0), demo_split("c4")
    engine.train(spec, backbone(), split, job(tmp_path))
    with pytest.raises(BackbenchError, match=r"model_final\.pth is of a run with another weights_sha256"):
        engine.train(spec, backbone(seed=1), split, job(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["rpn_head.rpn_cls", "rpn_head.rpn_reg", "roi_head.bbox_head.fc_reg"])
def test_a_detector_that_is_not_finite_is_one_sentence(tmp_path, layer, monkeypatch):
    build = engine.build

    def broken_detector(*arguments):
        model = build(*arguments)
        model.get_submodule(layer).weight.data.fill_(float("nan"))
        return model

    monkeypatch.setattr(engine, "build", broken_detector)
    with pytest.raises(BackbenchError, match=r"not finite at iteration 0, rate \S+: .*; no checkpoint yet"):
        engine.train(course("c4"), backbone(), demo_split("c4"), job(tmp_path))


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_with_the_last_good_checkpoint(tmp_path):
    spec = course("c4", lr=1e12, warmup=0, iterations=20, precise_bn=0)
    with pytest.raises(BackbenchError, match=r"not finite (after|at) iteration \d+, rate 1e\+12: ") as error:
        engine.train(spec, backbone(), demo_split("c4"), job(tmp_path, checkpoint_every=1))
    kept = checkpoints.under_way(tmp_path)
    assert kept and f"the last good checkpoint is {kept[0]}" in str(error.value)
    assert all(torch.isfinite(tensor).all() for tensor in load_torch(kept[0])["state_dict"].values())
    assert not (tmp_path / checkpoints.FINAL).exists()


def own_tool(name: str, folder: Path, *arguments: str, prepared: tuple[str, ...] = ()) -> str:
    """Return the output of an MMDetection tool on the native file in the folder."""
    import mmdet

    tool = Path(mmdet.__file__).parent / ".mim/tools" / name
    done = warm.run([*prepared, str(tool), str(folder / engine.NATIVE), *arguments], cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


PREPARED = ("-m", "transfer.detection.engines.mmdet.native")


@pytest.mark.slow
def test_mmdetections_own_tools_train_resume_and_test_from_the_native_file(tmp_path):
    spec, test = course("c4", iterations=2, precise_bn=1), demo_split("c4", "test", 3)
    engine.write_native(spec, backbone(), demo_split("c4"), job(tmp_path, checkpoint_every=1, test=test))
    own_tool("train.py", tmp_path)
    again = own_tool("train.py", tmp_path, "--resume", "--cfg-options", "train_cfg.max_iters=3")
    assert "resumed epoch: 0, iter: 2" in again
    seen = [
        int(load_torch(tmp_path / f"native/iter_{i}.pth")["state_dict"]["backbone.bn1.num_batches_tracked"])
        for i in (1, 2, 3)
    ]
    assert seen == [seen[0], seen[0] + 2, seen[0] + 4], "PreciseBN's batch is in the last checkpoint of each run"
    assert Path((tmp_path / "native/last_checkpoint").read_text()).name == "iter_3.pth"
    assert not (tmp_path / "precise.pth").exists()
    said = own_tool("test.py", tmp_path, str(tmp_path / "native/iter_3.pth"), prepared=PREPARED)
    assert "pascal_voc/AP50" in said and "pascal_voc/AP95" in said


@pytest.mark.parametrize("training", [True, False])
def test_statistics_of_a_native_run_are_estimated_after_its_last_iteration(training):
    from transfer.detection.engines.mmdet.parts import PreciseStatisticsHook

    class Detector(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.BatchNorm1d(1)

        def data_preprocessor(self, batch, _training):
            return {"x": batch}

        def forward(self, x, mode):
            return {"loss": self.norm(x).mean()}

    model = Detector().train(training)
    given = torch.tensor([[1.0], [3.0]])
    runner = SimpleNamespace(model=model, iter=3, max_iters=5, seed=0, cfg=SimpleNamespace(train_dataloader={}))
    runner.build_dataloader = lambda _fields, seed: [given]
    PreciseStatisticsHook(1).after_train_iter(runner, 3)
    assert model.norm.running_mean.item() == 0, "not the last"
    runner.iter = 4
    PreciseStatisticsHook(1).after_train_iter(runner, 4)
    assert model.norm.running_mean.item() == 2 and model.norm.running_var.item() == pytest.approx(1)
    assert model.training is training


def as_found(split: DetectionSplit, found: list[Detections], file: Path) -> DetectionSplit:
    """The split with every third detection as truth, so that an untrained detector has some precision."""
    pictures = tuple(
        dataclasses.replace(
            p,
            instances=tuple(
                Instance(int(d.labels[i]), tuple(map(float, d.boxes[i])), mask=d.masks[i])
                for i in range(0, len(d.boxes), 3)
                if d.boxes[i][2:].min() > 1 and (d.boxes[i][2:] - d.boxes[i][:2]).min() > 2
            ),
        )
        for p, d in zip(split.pictures, found, strict=True)
    )
    split = dataclasses.replace(split, pictures=pictures, annotations=file)
    file.write_text(json.dumps(native_data.in_coco_format(split, difficult=True)))
    numbered = tuple(dataclasses.replace(p, id=str(i + 1)) for i, p in enumerate(pictures))
    return dataclasses.replace(split, pictures=numbered)


@pytest.mark.slow
@pytest.mark.sample(0)
def test_mmdetections_own_tool_measures_our_checkpoint_as_we_do(tmp_path):
    """With COCO's metric."""
    spec, test = course("fpn", iterations=1, precise_bn=0, score_threshold=0.0), demo_split("fpn", "test", 3)
    own, train = job(tmp_path), demo_split("fpn", count=2)
    model = engine.train(spec, backbone(), train, own)
    found = engine.detect(model, spec, test, own)
    own.test = as_found(test, found, tmp_path / "truth.json")
    engine.write_native(spec, backbone(), train, own)
    expected = coco_eval.evaluate(own.test, found, masks=True)
    assert min(expected["box_AP"], expected["mask_AP"]) > 5
    said = own_tool("test.py", tmp_path, str(tmp_path / checkpoints.FINAL), prepared=PREPARED)
    for kind, ours in (("bbox", "box_AP"), ("segm", "mask_AP")):
        (value,) = re.findall(rf"coco/{kind}_mAP: ([\d.]+)", said)
        assert float(value) == pytest.approx(expected[ours] / 100, abs=2e-3)


def test_difficult_objects_are_learnt_and_not_measured(tmp_path, pair):
    engine.write_native(course("c4"), backbone(), pair, job(tmp_path, test=pair))
    crowds = {
        name: [a["iscrowd"] for a in json.loads((tmp_path / name).read_text())["annotations"]]
        for name in ("train.json", "test.json")
    }
    assert crowds == {"train.json": [0, 0, 1], "test.json": [0, 1, 1, 1]}
