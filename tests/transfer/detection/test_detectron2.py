"""Detectron2's engine: configuration, loaded weights, inputs, and resuming."""

from __future__ import annotations

import importlib.metadata
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from backbench import distributed
from backbench.config import build as build_config
from backbench.data import catalogue
from backbench.data.catalogue import info
from backbench.data.demo import render
from backbench.data.splits import Files
from backbench.errors import BackbenchError, ConfigError, DataError
from model_zoo.export import ExportError, feature_difference
from model_zoo.export import detectron2 as exporter
from model_zoo.reading import load_torch
from transfer import tasks
from transfer.detection.annotations.split import DetectionSplit, Instance, Picture, of_rows
from transfer.detection.engines import detectron2 as engine
from transfer.detection.job import Job
from transfer.detection.training import checkpoints

ROOT = Path(__file__).resolve().parents[3]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(engine.missing() is not None, reason="Detectron2 is not installed")]


@pytest.fixture(autouse=True)
def prepared():
    engine.prepare()


@pytest.fixture
def job(tmp_path):
    return Job(tmp_path / "run", 0, torch.device("cpu"), checkpoint_every=2, log_every=1)


def preset(task: str, name: str):
    module = tasks.get(task)
    return build_config(module.Config, {**tasks.preset_fields(module, name), "preset": name}).course()


def configured(spec, backbone, classes: int, job: Job):
    return engine.configuration(spec, backbone, classes, job, Path("backbone.pkl"))


def check(cfg, values: dict) -> None:
    """Compare every key of `values` with the configuration. Tuples equal lists."""
    found = {}
    for key in values:
        node = cfg
        for part in key.split("."):
            node = getattr(node, part)
        found[key] = json.loads(json.dumps(node))
    assert found == json.loads(json.dumps(values))


# What both protocols share: facebookresearch/moco detection/configs and Detectron2's defaults.
BOTH = {
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RESNETS.NORM": "SyncBN",
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "INPUT.FORMAT": "RGB",
    "INPUT.RANDOM_FLIP": "horizontal",
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": "choice",
    "INPUT.MAX_SIZE_TRAIN": 1333,
    "INPUT.MIN_SIZE_TEST": 800,
    "INPUT.MAX_SIZE_TEST": 1333,
    "INPUT.CROP.ENABLED": False,
    "MODEL.RPN.HEAD_NAME": "StandardRPNHead",
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 256,
    "MODEL.RPN.POSITIVE_FRACTION": 0.5,
    "MODEL.RPN.IOU_THRESHOLDS": [0.3, 0.7],
    "MODEL.RPN.NMS_THRESH": 0.7,
    "MODEL.RPN.SMOOTH_L1_BETA": 0.0,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 512,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": 0.25,
    "MODEL.ROI_HEADS.IOU_THRESHOLDS": [0.5],
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.05,
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": 0.5,
    "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT": True,
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIAlignV2",
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": 0,
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": 0.0,
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": False,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": [10.0, 10.0, 5.0, 5.0],
    "SOLVER.IMS_PER_BATCH": 16,
    "SOLVER.GAMMA": 0.1,
    "SOLVER.LR_SCHEDULER_NAME": "WarmupMultiStepLR",
    "SOLVER.WARMUP_METHOD": "linear",
    "SOLVER.WARMUP_FACTOR": 0.001,
    "SOLVER.MOMENTUM": 0.9,
    "SOLVER.NESTEROV": False,
    "SOLVER.WEIGHT_DECAY": 1e-4,
    "SOLVER.WEIGHT_DECAY_NORM": 0.0,
    "SOLVER.BIAS_LR_FACTOR": 1.0,
    "SOLVER.WEIGHT_DECAY_BIAS": None,
    "SOLVER.CLIP_GRADIENTS.ENABLED": False,
    "SOLVER.AMP.ENABLED": False,
    "TEST.DETECTIONS_PER_IMAGE": 100,
    "TEST.PRECISE_BN.ENABLED": True,
    "TEST.PRECISE_BN.NUM_ITER": 200,
    "DATALOADER.ASPECT_RATIO_GROUPING": True,
}
C4 = {
    "MODEL.BACKBONE.NAME": "build_resnet_backbone",
    "MODEL.RESNETS.OUT_FEATURES": ["res4"],
    "MODEL.ANCHOR_GENERATOR.SIZES": [[32, 64, 128, 256, 512]],
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[0.5, 1.0, 2.0]],
    "MODEL.RPN.IN_FEATURES": ["res4"],
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 12000,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 2000,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 6000,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 1000,
    "MODEL.ROI_HEADS.NAME": "Res5ROIHeadsExtraNorm",
    "MODEL.ROI_HEADS.IN_FEATURES": ["res4"],
    "MODEL.ROI_HEADS.NUM_CLASSES": 20,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 14,
    "MODEL.MASK_ON": False,
    "INPUT.MIN_SIZE_TRAIN": [480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800],
    "SOLVER.BASE_LR": 0.02,
    "SOLVER.MAX_ITER": 24000,
    "SOLVER.STEPS": [18000, 22000],
    "SOLVER.WARMUP_ITERS": 100,
}
FPN = {
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.NORM": "SyncBN",
    "MODEL.FPN.OUT_CHANNELS": 256,
    "MODEL.FPN.FUSE_TYPE": "sum",
    "MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64], [128], [256], [512]],
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[0.5, 1.0, 2.0]],
    "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 2000,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 1000,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": 1000,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 1000,
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
    "MODEL.ROI_HEADS.NUM_CLASSES": 80,
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_FC": 2,
    "MODEL.ROI_BOX_HEAD.NUM_CONV": 0,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 1024,
    "MODEL.ROI_BOX_HEAD.NORM": "",
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
    "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead",
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 4,
    "MODEL.ROI_MASK_HEAD.NORM": "",
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 14,
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": "ROIAlignV2",
    "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": False,
    "MODEL.MASK_ON": True,
    "INPUT.MASK_FORMAT": "polygon",
    "INPUT.MIN_SIZE_TRAIN": [640, 672, 704, 736, 768, 800],
    "SOLVER.MAX_ITER": 90000,
    "SOLVER.STEPS": [60000, 80000],
}


def resnet50_like_the_published(trained_like):
    backbone = trained_like("resnet50")
    return replace(backbone, input=type(backbone.input)())  # ImageNet's mean and standard deviation


def test_c4_is_mocos_configuration(trained_like, job):
    cfg = configured(preset("voc_detection", "moco"), resnet50_like_the_published(trained_like), 20, job)
    check(cfg, BOTH | C4)


@pytest.mark.parametrize(("name", "lr", "warmup"), [("msbreg", 0.05, 50), ("moco", 0.02, 1000)])
def test_fpn_is_base_rcnn_fpn_with_synchronised_norms(trained_like, job, name, lr, warmup):
    spec = preset("coco_instance_segmentation", name)
    cfg = configured(spec, resnet50_like_the_published(trained_like), 80, job)
    check(cfg, BOTH | FPN | {"SOLVER.BASE_LR": lr, "SOLVER.WARMUP_ITERS": warmup})


def test_norms_stand_where_the_protocols_put_them(trained_like, job):
    """Extra norm after res5, norms in backbone and FPN but not in the heads, none frozen or decayed."""
    from detectron2.modeling import build_model
    from detectron2.solver import build_optimizer

    norms = {}
    for name in ("c4", "fpn"):
        spec = preset("voc_detection", "moco").model_copy(update={"head": name})
        cfg = configured(spec, trained_like("resnet18"), 3, job)
        model = build_model(cfg)
        norms[name] = [n for n, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        assert all(p.requires_grad for p in model.parameters())
        decay = {id(p): g["weight_decay"] for g in build_optimizer(cfg, model).param_groups for p in g["params"]}
        owned = {id(p) for n in norms[name] for p in model.get_submodule(n).parameters()}
        assert {decay[i] for i in owned} == {0.0}
        assert {decay[i] for i in set(decay) - owned} == {1e-4}
    assert "roi_heads.res5.norm" in norms["c4"]
    assert len(norms["c4"]) == 20 + 1, "ResNet-18's and the extra one"
    assert sorted(n for n in norms["fpn"] if "bottom_up" not in n) == sorted(
        f"backbone.fpn_{kind}{stage}.norm" for kind in ("lateral", "output") for stage in (2, 3, 4, 5)
    )


def test_untrained_statistics_are_looked_at_with_frozen_norms(trained_like, job, short):
    cfg = configured(short("fpn", norm="frozen"), trained_like("resnet18"), 3, job)
    check(cfg, {"MODEL.RESNETS.NORM": "FrozenBN", "MODEL.FPN.NORM": "", "TEST.PRECISE_BN.ENABLED": False})


def test_rates_of_a_whole_course_are_the_protocols(trained_like, job):
    """Rates from the formula of the warm-up and the drops."""
    from detectron2.solver import build_lr_scheduler

    cfg = configured(preset("voc_detection", "moco"), trained_like("resnet18"), 20, job)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=cfg.SOLVER.BASE_LR)
    scheduler, rates = build_lr_scheduler(cfg, optimizer), []
    i = np.array([0, 1, 50, 99, 100, 5000, 17_999, 18_000, 21_999, 22_000, 23_999])
    for scheduler.last_epoch in i.tolist():
        rates += scheduler.get_lr()
    expected = (
        0.02
        * np.where(i < 100, 0.001 + 0.999 * i / 100, 1.0)
        * np.where(i < 18_000, 1, np.where(i < 22_000, 0.1, 0.01))
    )
    np.testing.assert_allclose(rates, expected, rtol=1e-9)


# ---------------------------------------------------------------- what is loaded


@pytest.mark.parametrize("head", ["c4", "fpn"])
def test_the_backbone_arrives_whole(head, trained_like, scenes, short, job, tmp_path):
    check_loaded("resnet18", head, trained_like, scenes, short, job, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet34", "resnet50", "resnet101"])
@pytest.mark.parametrize("head", ["c4", "fpn"])
def test_deeper_backbones_arrive_whole(name, head, trained_like, scenes, short, job, tmp_path):
    check_loaded(name, head, trained_like, scenes, short, job, tmp_path)


def check_loaded(name, head, trained_like, scenes, short, job, tmp_path) -> None:
    backbone = trained_like(name)
    cfg = engine.write_native(short(head), backbone, scenes(tmp_path / "images", 1), job)
    model = engine.build(cfg, backbone, job.device)
    state, table = model.state_dict(), exporter.key_table(backbone.arch)
    for theirs, tensor in backbone.state.items():
        if not theirs.endswith("num_batches_tracked"):
            (ours,) = (n for n in state if n.endswith(f".{table[theirs]}"))
            assert torch.equal(state[ours], tensor), ours
    assert feature_difference(backbone, lambda x: engine.trunk_stages(model.eval(), x)) < 1e-4
    if head == "c4":
        assert torch.equal(
            model.roi_heads.res5.norm.weight,
            torch.ones(
                backbone.state["layer4.1.bn2.weight"].shape[0] * (4 if name in ("resnet50", "resnet101") else 1)
            ),
        )


def spoilt(monkeypatch, change) -> None:
    """The exported file has wrong names or tensors."""
    export = exporter.export

    def wrong(backbone):
        payload = export(backbone)
        change(payload)
        return payload

    monkeypatch.setattr(exporter, "export", wrong)


def rename(payload: dict) -> None:
    payload["model"] = {f"encoder_{name}": value for name, value in payload["model"].items()}


@pytest.mark.parametrize(
    "change",
    [
        rename,
        lambda payload: payload.pop("matching_heuristics"),
        lambda payload: payload["model"].pop("res3.0.conv1.weight"),
        lambda payload: payload["model"].pop("res5.1.conv2.norm.running_var"),
    ],
    ids=["wrong prefix", "names taken literally", "a missing tensor", "a missing statistic"],
)
@pytest.mark.parametrize("head", ["c4", "fpn"])
def test_nothing_is_trained_from_noise(head, change, monkeypatch, trained_like, scenes, short, job, tmp_path):
    spoilt(monkeypatch, change)
    with pytest.raises(ExportError, match="differ from the exported ones"):
        engine.train(short(head), trained_like("resnet18"), scenes(tmp_path / "images", 2), job)
    assert not (job.folder / "losses.jsonl").exists()


@pytest.mark.parametrize("name", ["resnet34", pytest.param("resnet50", marks=pytest.mark.slow)])
@pytest.mark.parametrize("head", ["c4", "fpn"])
def test_a_detector_of_another_depth_is_refused(head, name, trained_like, scenes, short, job, tmp_path):
    backbone = trained_like("resnet18")
    engine.write_native(short(head), backbone, scenes(tmp_path / "images", 1), job)
    other = configured(short(head), trained_like(name), 10, job)
    other.MODEL.WEIGHTS = str(job.folder / "backbone.pkl")
    with pytest.raises(ExportError):
        engine.build(other, backbone, job.device)


def test_a_trunk_that_computes_something_else_is_refused(monkeypatch, trained_like, scenes, short, job, tmp_path):
    backbone = trained_like("resnet18")
    cfg = engine.write_native(short(), backbone, scenes(tmp_path / "images", 1), job)
    stages = engine.trunk_stages
    monkeypatch.setattr(engine, "trunk_stages", lambda model, x: [1.001 * stage for stage in stages(model, x)])
    with pytest.raises(ExportError, match=r"differ from torchvision's by 1\.0e-03"):
        engine.build(cfg, backbone, job.device)


def test_a_backbone_for_bgr_sees_the_same_images(trained_like, scenes, short, job, tmp_path):
    """The detector's features of an RGB picture equal the backbone's of the BGR picture."""
    backbone = trained_like("resnet18", order="bgr")
    split = scenes(tmp_path / "images", 1)
    model = engine.build(engine.write_native(short(), backbone, split, job), backbone, job.device).eval()
    pixels = engine.read_image(split.file(0), 160, 128)
    seen = model.preprocess_image([{"image": torch.as_tensor(pixels.transpose(2, 0, 1).copy())}]).tensor
    bgr = torch.as_tensor(pixels[:, :, ::-1].copy()).permute(2, 0, 1)[None] / 255
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (backbone.input.mean, backbone.input.std))
    expected = backbone.build().eval().stages((bgr - mean) / std)
    with torch.no_grad():
        for ours, theirs in zip(engine.trunk_stages(model, seen), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


def test_the_native_file_builds_the_same_detector(trained_like, scenes, short, job, tmp_path):
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model

    cfg = engine.write_native(short("c4"), trained_like("resnet18"), scenes(tmp_path / "images", 1), job)
    read = get_cfg()
    read.merge_from_file(str(job.folder / "detectron2.yaml"))
    assert yaml.safe_load(read.dump()) == yaml.safe_load(cfg.dump())
    assert str(build_model(read)) == str(build_model(cfg))


@pytest.mark.slow
def test_detectron2s_own_trainer_runs_the_native_file(monkeypatch, trained_like, scenes, short, job, tmp_path):
    """Train from the files in the run's folder without our engine, with Detectron2's own PreciseBN hook."""
    from detectron2.config import get_cfg
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.data.datasets import register_coco_instances
    from detectron2.engine import DefaultTrainer

    spec, split = short(iterations=1, milestones=(), precise_bn=1), scenes(tmp_path / "images", 4)
    engine.write_native(spec, trained_like("resnet18"), split, job)
    (line,) = (t for t in (job.folder / "detectron2.yaml").read_text().splitlines() if '"own_train"' in t)
    monkeypatch.chdir(job.folder)
    exec(line.removeprefix("# "), {"register_coco_instances": register_coco_instances})
    try:
        cfg = get_cfg()
        cfg.merge_from_file(str(job.folder / "detectron2.yaml"))
        cfg.DATASETS.TRAIN = ("own_train",)
        trainer = DefaultTrainer(cfg)
        trainer.resume_or_load(resume=False)
        exporter.check_engine_state(trained_like("resnet18"), trainer.model.state_dict())
        trainer.train()
    finally:
        DatasetCatalog.remove("own_train")
        MetadataCatalog.remove("own_train")
    assert load_torch(job.folder / "native" / "model_final.pth")["iteration"] == 0
    assert not (job.folder / "model_final.pth").exists(), "that would be ours"


def test_what_detectron2s_own_tools_write_has_a_place_whatever_folder_they_run_in(
    trained_like, scenes, short, job, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    cfg = engine.write_native(
        short(), trained_like("resnet18"), scenes(tmp_path / "images", 1), replace(job, folder=Path("here"))
    )
    assert str(tmp_path / "here" / "native") == cfg.OUTPUT_DIR
    assert Path(cfg.MODEL.WEIGHTS).is_absolute()


def test_the_native_file_names_official_data_as_detectron2_does(
    trained_like, scenes, short, job, tmp_path, monkeypatch
):
    """With the published numbers of images and classes. Other data of that name get their own files."""
    counts = {"train2017": 2, "val2017": 1, "classes": len(render.CLASSES)}
    published = info("coco").model_copy(update={"counts": counts})
    monkeypatch.setattr(catalogue, "info", lambda _name: published)
    split = replace(scenes(tmp_path / "images", 2), dataset="coco", split="train2017")
    test = replace(scenes(tmp_path / "test", 1), dataset="coco", split="val2017")
    cfg = engine.write_native(short(), trained_like("resnet18"), split, replace(job, test=test))
    assert cfg.DATASETS.TRAIN == ("coco_2017_train",) and cfg.DATASETS.TEST == ("coco_2017_val",)
    assert not (job.folder / "train.json").exists()
    for train, tested in (
        (replace(split, split="train2017[8]"), test),
        (of_rows(split, [0]), test),
        (replace(split, classes=split.classes[1:]), test),
        (split, replace(test, classes=test.classes[1:])),
        (split, replace(test, split="train2017")),
    ):
        cfg = engine.write_native(short(), trained_like("resnet18"), train, replace(job, test=tested))
        assert cfg.DATASETS.TRAIN == () and (job.folder / "train.json").exists()
        (job.folder / "train.json").unlink()


# ---------------------------------------------------------------- what is fed


def a_split(folder: Path, pixels: list[Image.Image], instances: list[tuple[Instance, ...]]) -> DetectionSplit:
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(pixels):
        image.save(folder / f"{i}.png")
    pictures = tuple(Picture(str(i), *p.size, o) for i, (p, o) in enumerate(zip(pixels, instances, strict=True)))
    return DetectionSplit("own", "train", Files(folder, tuple(f"{p.id}.png" for p in pictures)), pictures, ("a", "b"))


SQUARE = (16.0, 8.0, 48.0, 40.0)
POLYGON = [[16, 8, 48, 8, 48, 40, 16, 40]]


def runs(width: int, height: int, box: tuple) -> dict:
    """Return a box as COCO's unpacked run lengths, column by column."""
    mask = np.zeros((height, width), np.uint8)
    mask[int(box[1]) : int(box[3]), int(box[0]) : int(box[2])] = 1
    flat = mask.T.reshape(-1)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [1 - flat[-1]]]).astype(np.int8)))
    return {"size": [height, width], "counts": np.diff(np.concatenate([[0], edges])).tolist()}


def packed(mask: dict) -> dict:
    from pycocotools import mask as coco_mask

    found = coco_mask.frPyObjects(mask, *mask["size"])
    return {"size": found["size"], "counts": found["counts"].decode("ascii")}


RUNS = runs(64, 48, SQUARE)


@pytest.mark.parametrize("mask", [POLYGON, RUNS, packed(RUNS)], ids=["polygon", "runs", "packed runs"])
def test_masks_of_every_kind_reach_the_detector(mask, trained_like, short, job, tmp_path):
    split = a_split(tmp_path / "images", [Image.new("RGB", (64, 48))], [(Instance(0, SQUARE, mask=mask),)])
    cfg = engine.write_native(short(sides_train=(96,)), trained_like("resnet18"), split, job)
    cfg.INPUT.RANDOM_FLIP = "none"
    record = engine._mapper(cfg)(engine.records(split)[0])
    masks = record["instances"].gt_masks
    assert record["image"].shape == (3, 96, 128)
    box = torch.tensor([[32.0, 16.0, 96.0, 80.0]])
    torch.testing.assert_close(record["instances"].gt_boxes.tensor, box)
    torch.testing.assert_close(masks.get_bounding_boxes().tensor, box)
    cropped = masks.crop_and_resize(torch.tensor([[0.0, 16.0, 64.0, 80.0]]), 32)[0]
    assert cropped[:, 17:].all() and not cropped[:, :15].any(), "the right half of the crop is the object"
    assert bool(job.notes) == isinstance(mask, dict), "bitmaps are said"


def test_a_crowds_run_lengths_do_not_decide_the_masks_form(tmp_path):
    objects = (Instance(0, SQUARE, mask=POLYGON), Instance(1, SQUARE, crowd=True, mask=RUNS))
    split = a_split(tmp_path / "images", [Image.new("RGB", (64, 48))], [objects])
    assert engine.mask_format(split) == "polygon"


@pytest.mark.slow
def test_objects_of_both_kinds_and_a_crowd_in_one_course(trained_like, short, job, tmp_path):
    pixels = [Image.fromarray(np.random.default_rng(i).integers(0, 255, (48, 64), np.uint8)) for i in range(3)]  # grey
    objects = [
        (Instance(0, SQUARE, mask=POLYGON), Instance(1, SQUARE, crowd=True, mask=RUNS)),
        (Instance(1, SQUARE, mask=RUNS),),
        (),
    ]
    split = a_split(tmp_path / "images", pixels, objects)
    spec = short(iterations=1, precise_bn=0)
    model = engine.train(spec, trained_like("resnet18"), split, job)
    (line,) = (json.loads(row) for row in (job.folder / "losses.jsonl").read_text().splitlines())
    assert {"loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc"} < set(line)
    assert len(engine.detect(model, spec, split, job)) == 3


def test_a_split_without_any_object_is_an_error(trained_like, short, job, tmp_path):
    split = a_split(tmp_path / "images", [Image.new("L", (64, 48))], [()])
    with pytest.raises(DataError, match="own train: no image has an object"):
        engine.train(short(), trained_like("resnet18"), split, job)


def test_pictures_are_read_as_the_annotations_count(tmp_path):
    grey = np.arange(48 * 64, dtype=np.uint8).reshape(48, 64)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert (engine.read_image(tmp_path / "grey.png", 64, 48) == grey[:, :, None]).all()
    turned = Image.Exif()
    turned[274] = 6  # a viewer turns it by 90 degrees; boxes are counted in the file's own pixels
    Image.fromarray(grey).save(tmp_path / "turned.jpg", exif=turned)
    assert engine.read_image(tmp_path / "turned.jpg", 64, 48).shape == (48, 64, 3)
    with pytest.raises(DataError, match=r"grey\.png: has 64x48 pixels, but 48x64 in its annotation"):
        engine.read_image(tmp_path / "grey.png", 48, 64)
    whole = (tmp_path / "turned.jpg").read_bytes()
    (tmp_path / "torn.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"torn\.jpg: not a whole image"):
        engine.read_image(tmp_path / "torn.jpg", 64, 48)


def test_a_torn_picture_is_named_while_training(trained_like, scenes, short, job, tmp_path):
    split = scenes(tmp_path / "images", 1)
    whole = split.file(0).read_bytes()
    split.file(0).write_bytes(whole[: len(whole) // 2])
    cfg = configured(short(), trained_like("resnet18"), 10, job)
    with pytest.raises(DataError, match=r"0\.png: not a whole image"):
        next(iter(engine.train_loader(cfg, split, 0, job)))


def test_detections_are_in_the_pictures_own_pixels(scenes, short, job, tmp_path):
    """A detector that marks one place in its input: boxes and masks have that place in the original image."""
    from detectron2.modeling.postprocessing import detector_postprocess
    from detectron2.structures import Boxes, Instances

    class Marks(nn.Module):
        def forward(self, batch):
            (item,) = batch
            height, width = item["image"].shape[1:]
            assert item["image"].dtype == torch.uint8 and min(height, width) == 64
            found = Instances((height, width))
            found.pred_boxes = Boxes(torch.tensor([[0.25 * width, 0.5 * height, 0.75 * width, float(height)]]))
            found.scores, found.pred_classes = torch.tensor([0.9]), torch.tensor([3])
            found.pred_masks = torch.ones(1, 1, 28, 28)
            return [{"instances": detector_postprocess(found, item["height"], item["width"])}]

    split = scenes(tmp_path / "images", 2)
    for detections in engine.detect(Marks(), short(side_test=64), split, job):
        np.testing.assert_allclose(detections.boxes, [[40, 64, 120, 128]], atol=1e-4)
        assert detections.scores.tolist() == pytest.approx([0.9]) and detections.labels.tolist() == [3]
        assert detections.masks[0]["size"] == [128, 160]
        from pycocotools import mask as coco_mask

        filled = coco_mask.decode(detections.masks[0]).astype(bool)
        assert filled[66:126, 42:118].all() and filled.sum() <= 82 * 66


# ---------------------------------------------------------------- how a course goes on


def test_a_batch_that_processes_cannot_share_is_refused(monkeypatch, trained_like, short, job):
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    with pytest.raises(ConfigError, match="batch=2 does not divide by 3 processes"):
        configured(short(), trained_like("resnet18"), 3, job)


@pytest.mark.slow
def test_a_rate_that_diverges_stops_with_the_last_good_checkpoint(trained_like, scenes, short, job, tmp_path):
    job.checkpoint_every = 1
    spec = short(iterations=12, lr=1e8, warmup=1, milestones=())
    with pytest.raises(
        BackbenchError, match=r"not finite .*iteration \d+, rate 1e\+08|iteration \d+, rate 100000000"
    ) as error:
        engine.train(spec, trained_like("resnet18"), scenes(tmp_path / "images", 4), job)
    kept = checkpoints.under_way(job.folder)
    assert kept and str(kept[0]) in str(error.value)
    assert all(torch.isfinite(tensor).all() for tensor in load_torch(kept[0])["model"].values())
    assert not (job.folder / "model_final.pth").exists()


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["objectness_logits", "anchor_deltas", "bbox_pred"])
def test_a_detector_that_is_not_finite_is_one_sentence(layer, monkeypatch, trained_like, scenes, short, job, tmp_path):
    """Detectron2's proposals raise a FloatingPointError before there is a loss."""
    build = engine.build

    def broken(*arguments):
        model = build(*arguments)
        next(p for n, p in model.named_parameters() if n.endswith(f"{layer}.weight")).data.fill_(float("nan"))
        return model

    monkeypatch.setattr(engine, "build", broken)
    with pytest.raises(BackbenchError, match=r"not finite at iteration 0, rate \S+: .*; no checkpoint yet"):
        engine.train(short("c4"), trained_like("resnet18"), scenes(tmp_path / "images", 2), job)


def test_the_identity_names_what_serves_the_operators():
    served = [f"{name} {importlib.metadata.version(name)}" for name in ("fvcore", "torchvision")]
    assert engine.version().startswith("detectron2 ") and engine.version().endswith(", ".join(["", *served]))


@pytest.mark.slow
def test_a_finished_course_is_not_run_again(trained_like, scenes, short, job, tmp_path):
    backbone, split = trained_like("resnet18"), scenes(tmp_path / "images", 4)
    first = engine.train(short("c4"), backbone, split, job).state_dict()
    written = (job.folder / "model_final.pth").stat().st_mtime_ns
    second = engine.train(short("c4"), backbone, split, job).state_dict()
    assert (job.folder / "model_final.pth").stat().st_mtime_ns == written
    assert all(torch.equal(first[name], second[name]) for name in first), "statistics are not estimated once more"
