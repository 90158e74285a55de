"""MMDetection 3: the same protocols as `detectron2.py`, with everything in which MMDetection's defaults differ set right.

The run's folder gets `mmdet_config.py`, a native configuration that MMDetection's own tools/train.py runs, with the annotations
(`train.json`, COCO's format) and exported weights that it names, and checkpoints. What is trained here is built from that
configuration. Differences that stay: the order and draws of random numbers, deltas of box sizes clamped from below too,
boxes of less than one pixel left out (mmdet/datasets/coco.py), detections scaled before their NMS instead of after it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from core import distributed
from core.artifacts import atomic_write_text, make_folder
from core.errors import BackbenchError, ConfigError, DataError
from core.progress import track
from model_zoo.backbone import Backbone
from model_zoo.export import FEATURE_TOLERANCE, ExportError, feature_difference
from model_zoo.export import mmdet as exporter
from model_zoo.resnet import feature_dim
from transfer.detection import checkpoints
from transfer.detection.adapt import detectron2_v06, mmcv_lite, mmengine_resume
from transfer.detection.data import BITMAPS, Detections, DetectionSplit, mask_format, trainable
from transfer.detection.engines import Job
from transfer.detection.spec import DetectionSpec
from transfer.detection.training import cut, log, parallel, precise_statistics, rate, refuse_not_finite, rle

NATIVE = "mmdet_config.py"  # a file mmdet.py would be imported for the package by whoever works in its folder
PACKAGES = ("mmengine", "mmcv", "mmdet")


def prepare() -> None:
    """Apply the adaptations, register what MMDetection lacks and make its registries the ones that are searched."""
    if importlib.util.find_spec("detectron2") is not None:
        detectron2_v06.apply()  # mmdet imports Detectron2 where there is one
    mmcv_lite.apply()
    mmengine_resume.apply()
    from mmengine.registry import init_default_scope

    import transfer.detection.mmdet_parts  # noqa: F401 (registers)

    init_default_scope("mmdet")


def missing() -> str | None:
    """Why the engine cannot be used."""
    absent = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if absent:
        return f"{', '.join(absent)} not installed: python -m transfer.detection install"
    return None


def version() -> str:
    """Versions of the three packages."""
    from importlib.metadata import distributions

    there = {d.metadata["Name"]: d.version for d in distributions() if d.metadata["Name"]}
    names = ("mmdet", "mmcv", "mmcv-lite", "mmengine")
    return ", ".join(f"{name} {there[name]}" for name in names if name in there)


def compiled() -> bool:
    """Whether mmcv brings its own operators."""
    return mmcv_lite.is_compiled()


def try_operators() -> None:
    """A tiny NMS and ROIAlign through mmcv, forward and backward.

    Raises:
        BackbenchError: they give something else than they should.
    """
    prepare()
    from mmcv.ops import nms, roi_align

    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 3], [8, 8, 9, 9]])
    _, kept = nms(boxes, torch.tensor([0.5, 0.9, 0.1]), 0.5)
    pixels = torch.ones(1, 1, 8, 8, requires_grad=True)
    pooled = roi_align(pixels, torch.tensor([[0.0, 1, 1, 5, 5]]), 2)
    pooled.sum().backward()
    if kept.tolist() != [1, 2] or not torch.allclose(pooled, torch.ones(1, 1, 2, 2)):
        raise BackbenchError(f"mmcv's NMS or ROIAlign is broken: {kept.tolist()}, {pooled.tolist()}")
    if not torch.allclose(pixels.grad.sum(), torch.tensor(4.0)):
        raise BackbenchError("mmcv's ROIAlign has a broken gradient")


# ---------------------------------------------------------------- the protocol as an MMDetection configuration


def configuration(spec: DetectionSpec, backbone: Backbone, train: DetectionSplit, job: Job) -> Any:
    """The spec as MMDetection's own configuration; it names files of the job's folder.

    Raises:
        ConfigError: the batch does not divide by the number of processes.
    """
    from mmengine.config import Config

    ranks = distributed.world_size()
    if spec.batch % ranks:
        raise ConfigError(f"batch={spec.batch} does not divide by {ranks} processes")
    folder = job.folder.resolve()
    course = {"by_epoch": False}
    warmup = min(spec.warmup, spec.iterations)
    schedulers = (
        [{"type": "LinearLR", "start_factor": 0.001, "begin": 0, "end": warmup + 1, **course}] if warmup else []
    )
    schedulers.append({"type": "MultiStepLR", "milestones": list(spec.milestones), "gamma": 0.1, **course})
    precise = spec.precise_bn > 0 and spec.norm == "sync"
    return Config({
        "default_scope": "mmdet",
        "custom_imports": {"imports": ["transfer.detection.mmdet_native"], "allow_failed_imports": False},
        "model": _model(spec, backbone, len(train.classes), folder / "backbone.pth"),
        "train_dataloader": _loader(spec, train, job, folder / "train.json", ranks),
        "test_pipeline": _test_pipeline(spec),
        "train_cfg": {"type": "IterBasedTrainLoop", "max_iters": spec.iterations, "val_interval": spec.iterations + 1},
        "optim_wrapper": {
            "type": "OptimWrapper",
            "optimizer": {
                "type": "SGD", "lr": spec.lr, "momentum": spec.momentum, "weight_decay": spec.weight_decay,
            },
            "paramwise_cfg": {"norm_decay_mult": 0.0},
        },
        "param_scheduler": schedulers,
        "default_hooks": {"checkpoint": {"type": "CheckpointHook", "interval": job.checkpoint_every, **course}},
        "custom_hooks": [{"type": "PreciseStatisticsHook", "count": spec.precise_bn}] if precise else [],
        "log_processor": course,
        "randomness": {"seed": job.seed},
        "sync_bn": "torch",  # in a job of several processes
        "find_unused_parameters": True,
        "work_dir": str(folder),
    })  # fmt: skip


def _model(spec: DetectionSpec, backbone: Backbone, classes: int, weights: Path) -> dict[str, Any]:
    implied = exporter.settings(backbone)
    frozen = spec.norm == "frozen"
    norm = {"type": "BN", "requires_grad": not frozen}
    pretrained = {"type": "Pretrained", "checkpoint": str(weights), "prefix": implied["prefix"]}
    common = {"norm_cfg": norm, "norm_eval": frozen, "init_cfg": pretrained}
    c4 = spec.head == "c4"
    stages = 3 if c4 else 4
    trunk = {
        **implied["backbone"], **common, "num_stages": stages, "strides": (1, 2, 2, 2)[:stages],
        "dilations": (1,) * stages, "out_indices": (2,) if c4 else (0, 1, 2, 3), "frozen_stages": -1,
    }  # fmt: skip
    channels = [feature_dim(backbone.arch) // 2**i for i in (3, 2, 1, 0)]
    model = {
        "type": "MaskRCNN" if spec.masks else "FasterRCNN",
        "data_preprocessor": {
            "type": "WholeBatchPreprocessor", **implied["data_preprocessor"],
            "pad_size_divisor": 1 if c4 else 32, "pad_mask": spec.masks,
        },
        "backbone": trunk,
        "rpn_head": _rpn(channels[2] if c4 else 256, c4),
        "roi_head": _c4_head(trunk, common, channels, classes) if c4 else _fpn_head(classes),
        "train_cfg": _train_cfg(spec),
        "test_cfg": _test_cfg(spec),
    }  # fmt: skip
    if not c4:
        model["neck"] = {
            "type": "FPN", "in_channels": channels, "out_channels": 256, "num_outs": 5,
            "norm_cfg": None if frozen else norm, "init_cfg": {"type": "Caffe2Xavier", "layer": "Conv2d"},
        }  # fmt: skip
    if spec.masks:
        model["roi_head"] |= _mask_head(channels, classes, c4)
    return model


def _coder(*stds: float) -> dict[str, Any]:
    return {"type": "DeltaXYWHBBoxCoder", "target_means": [0.0] * 4, "target_stds": list(stds)}


def _rpn(channels: int, c4: bool) -> dict[str, Any]:
    strides = [16] if c4 else [4, 8, 16, 32, 64]
    return {
        "type": "RPNHead",
        "in_channels": channels,
        "feat_channels": channels,
        "anchor_generator": {
            "type": "AnchorGenerator",
            "scales": [2, 4, 8, 16, 32] if c4 else [8],  # times the stride: 32 to 512 pixels
            "ratios": [0.5, 1.0, 2.0],
            "scale_major": False,  # Detectron2's order
            "strides": strides,
        },
        "bbox_coder": _coder(1.0, 1.0, 1.0, 1.0),
        "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 1.0},
        "loss_bbox": {"type": "L1Loss", "loss_weight": 1.0},
    }


def _extractor(size: int, channels: int, strides: list[int]) -> dict[str, Any]:
    layer = {"type": "RoIAlign", "output_size": size, "sampling_ratio": 0, "aligned": True}
    return {"type": "SingleRoIExtractor", "roi_layer": layer, "out_channels": channels, "featmap_strides": strides}


def _box_head(classes: int, **fields: Any) -> dict[str, Any]:
    return {
        "roi_feat_size": 7,
        "num_classes": classes,
        "bbox_coder": _coder(0.1, 0.1, 0.2, 0.2),
        "reg_class_agnostic": False,
        "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 1.0},
        "loss_bbox": {"type": "L1Loss", "loss_weight": 1.0},
        **fields,
    }


def _c4_head(trunk: dict[str, Any], common: dict[str, Any], channels: list[int], classes: int) -> dict[str, Any]:
    shared = {name: trunk[name] for name in ("depth", "base_channels", "style")}
    return {
        "type": "StandardRoIHead",
        "shared_head": {"type": "ResLayerExtraNorm", **shared, **common},
        "bbox_roi_extractor": _extractor(14, channels[2], [16]),
        "bbox_head": _box_head(classes, type="BBoxHead", with_avg_pool=True, in_channels=channels[3]),
    }


def _fpn_head(classes: int) -> dict[str, Any]:
    init = [
        {"type": "Caffe2Xavier", "layer": "Linear"},
        {"type": "Normal", "std": 0.01, "override": {"name": "fc_cls"}},
        {"type": "Normal", "std": 0.001, "override": {"name": "fc_reg"}},
    ]
    head = _box_head(classes, type="Shared2FCBBoxHead", in_channels=256, fc_out_channels=1024, init_cfg=init)
    return {
        "type": "StandardRoIHead",
        "bbox_roi_extractor": _extractor(7, 256, [4, 8, 16, 32]),
        "bbox_head": head,
    }


def _mask_head(channels: list[int], classes: int, c4: bool) -> dict[str, Any]:
    head = {
        "type": "SmallStartMaskHead",
        "num_convs": 0 if c4 else 4,
        "in_channels": channels[3] if c4 else 256,
        "conv_out_channels": 256,
        "num_classes": classes,
        "loss_mask": {"type": "CrossEntropyLoss", "use_mask": True, "loss_weight": 1.0},
    }
    extractor = None if c4 else _extractor(14, 256, [4, 8, 16, 32])
    return {"mask_roi_extractor": extractor, "mask_head": head}


def _proposals(kept: tuple[int, int]) -> dict[str, Any]:
    before, after = kept
    nms = {"type": "nms", "iou_threshold": 0.7}
    return {"nms_pre": before, "max_per_img": after, "nms": nms, "min_bbox_size": 0}


def _train_cfg(spec: DetectionSpec) -> dict[str, Any]:
    def sampler(count: int, positive: float, truth: bool) -> dict[str, Any]:
        return {"type": "RandomSampler", "num": count, "pos_fraction": positive, "neg_pos_ub": -1,
                "add_gt_as_proposals": truth}  # fmt: skip

    def assigner(kind: str, positive: float, negative: float) -> dict[str, Any]:
        return {"type": kind, "pos_iou_thr": positive, "neg_iou_thr": negative, "match_low_quality": False,
                "ignore_iof_thr": -1}  # fmt: skip

    rcnn = {"assigner": assigner("MaxIoUAssigner", 0.5, 0.5), "sampler": sampler(spec.rois, 0.25, True),
            "pos_weight": -1, "debug": False}  # fmt: skip
    return {
        "rpn": {
            "assigner": assigner("LowQualityAssigner", 0.7, 0.3),
            "sampler": sampler(256, 0.5, False),
            "allowed_border": -1,
            "pos_weight": -1,
            "debug": False,
        },
        "rpn_proposal": _proposals(spec.proposals_train),
        "rcnn": rcnn | ({"mask_size": 14 if spec.head == "c4" else 28} if spec.masks else {}),
    }


def _test_cfg(spec: DetectionSpec) -> dict[str, Any]:
    nms = {"type": "nms", "iou_threshold": 0.5}
    rcnn = {"score_thr": spec.score_threshold, "nms": nms, "max_per_img": spec.detections}
    return {
        "rpn": _proposals(spec.proposals_test),
        "rcnn": rcnn | ({"mask_thr_binary": 0.5} if spec.masks else {}),
    }


def _load() -> dict[str, Any]:
    return {"type": "LoadNamedImage", "imdecode_backend": "pillow"}


def _loader(spec: DetectionSpec, train: DetectionSplit, job: Job, annotations: Path, ranks: int) -> dict[str, Any]:
    scales = [(spec.side_max, side) for side in spec.sides_train]
    pipeline = [
        _load(),
        {
            "type": "LoadAnnotations",
            "with_bbox": True,
            "with_mask": spec.masks,
            "poly2mask": mask_format(train) == "bitmask",
        },  # as polygons, objects with run-length masks would be ignored
        {"type": "RandomChoiceResize", "scales": scales, "keep_ratio": True, "backend": "pillow"},
        {"type": "RandomFlip", "prob": 0.5},
        {"type": "PackDetInputs"},
    ]
    return {
        "batch_size": spec.batch // ranks,
        "num_workers": job.workers,
        "persistent_workers": job.workers > 0,
        "sampler": {"type": "InfiniteSampler", "shuffle": True},
        "batch_sampler": {"type": "AspectRatioBatchSampler"},
        "dataset": {
            "type": "CocoDataset",
            "ann_file": str(annotations),
            "data_prefix": {"img": str(train.source.root.resolve())},
            "metainfo": {"classes": tuple(train.classes)},
            "filter_cfg": None,  # what cannot be trained on is not in the file
            "pipeline": pipeline,
        },
    }


def _test_pipeline(spec: DetectionSpec) -> list[dict[str, Any]]:
    keys = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")
    return [
        _load(),
        {"type": "Resize", "scale": (spec.side_max, spec.side_test), "keep_ratio": True, "backend": "pillow"},
        {"type": "PackDetInputs", "meta_keys": keys},
    ]


def annotations(split: DetectionSplit) -> dict[str, Any]:
    """The split in COCO's format: images numbered from 1 in the split's order, difficult objects as any other."""
    images, objects = [], []
    for i, picture in enumerate(split.pictures):
        images.append(
            {"id": i + 1, "file_name": split.source.paths[i], "width": picture.width, "height": picture.height}
        )
        for o in picture.instances:
            x0, y0, x1, y1 = o.box
            box = [x0, y0, x1 - x0, y1 - y0]
            record = {"id": len(objects) + 1, "image_id": i + 1, "category_id": o.label + 1, "bbox": box,
                      "area": box[2] * box[3], "iscrowd": int(o.crowd)}  # fmt: skip
            objects.append(record | ({"segmentation": o.mask} if o.mask is not None else {}))
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(split.classes)]
    return {"images": images, "annotations": objects, "categories": categories}


# ---------------------------------------------------------------- training


def train(spec: DetectionSpec, backbone: Backbone, train: DetectionSplit, job: Job) -> nn.Module:
    """The trained detector; goes on from the folder's last checkpoint.

    Raises:
        BackbenchError: the weights did not arrive as they were exported, a loss is not finite, or the folder holds the
            checkpoint of another run.
    """
    from mmengine.optim import build_optim_wrapper
    from mmengine.runner import set_random_seed

    prepare()
    from transfer.detection.mmdet_parts import losses

    cfg = write_native(spec, backbone, train, job)
    set_random_seed(job.seed)
    model = build(cfg, backbone, job.device)
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    schedulers = _schedulers(cfg, optimizer)
    course = {"state_dict": model, "optimizer": optimizer, "param_schedulers": schedulers}  # mmengine's names
    identity = checkpoints.identity(spec, backbone, train, job.seed)
    start = checkpoints.resume(job.folder, identity, course)
    if start == spec.iterations:
        return model
    set_random_seed((job.seed + 7919 * start) % 2**31, diff_rank_seed=True)
    _iterate(cfg, course, identity, spec.iterations, start, job)
    if spec.precise_bn and spec.norm == "sync":
        model.train()
        fresh = train_loader(cfg, 1_000_003, job)
        precise_statistics(model, lambda batch: losses(model, batch), fresh, spec.precise_bn)
    checkpoints.save(job.folder / checkpoints.FINAL, spec.iterations - 1, identity, course)
    distributed.barrier()
    return model


def _iterate(cfg: Any, course: dict[str, Any], identity: dict[str, Any], iterations: int, start: int, job: Job) -> None:
    """The course from iteration `start` on, with checkpoints and losses.jsonl."""
    from transfer.detection.mmdet_parts import losses

    model, optimizer, file = course["state_dict"], course["optimizer"], job.folder / "losses.jsonl"
    forward = parallel(model, job.device)
    cut(file, start)
    saved = next(iter(checkpoints.under_way(job.folder)), None)
    steps = track(range(start, iterations), total=iterations - start, label="mmdet")
    for iteration, batch in zip(steps, train_loader(cfg, start, job), strict=False):
        found = losses(model, batch, forward)
        total = sum(found.values())
        parts = {name: float(value.detach()) for name, value in found.items()}
        refuse_not_finite(total, parts, iteration, rate(optimizer), saved)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        if iteration % job.log_every == 0 or iteration == iterations - 1:
            log(file, iteration, parts, rate(optimizer))
        for scheduler in course["param_schedulers"]:
            scheduler.step()
        if (iteration + 1) % job.checkpoint_every == 0 and iteration + 1 < iterations:
            saved = checkpoints.save(job.folder / checkpoints.name(iteration), iteration, identity, course)


def write_native(spec: DetectionSpec, backbone: Backbone, train: DetectionSplit, job: Job) -> Any:
    """`backbone.pth`, `train.json` and `mmdet_config.py` in the job's folder; returns the configuration."""
    make_folder(job.folder)
    usable = trainable(train)
    cfg = configuration(spec, backbone, usable, job)
    if spec.masks and mask_format(usable) == "bitmask":
        job.notes.append(BITMAPS)
    if distributed.is_main():
        exporter.write(backbone, job.folder / "backbone.pth")
        atomic_write_text(job.folder / "train.json", json.dumps(annotations(usable)))
        atomic_write_text(job.folder / NATIVE, cfg.pretty_text)
    distributed.barrier()
    return cfg


def build(cfg: Any, backbone: Backbone, device: torch.device) -> nn.Module:
    """The detector with the backbone's weights in it, tensors and features compared with the exported ones.

    Raises:
        BackbenchError: a tensor is missing, over or another one, or the trunk computes something else.
    """
    from mmdet.registry import MODELS
    from mmengine.logging import MMLogger

    MMLogger.get_current_instance().setLevel("ERROR")  # or it prints how every tensor was initialised
    with contextlib.redirect_stdout(io.StringIO()):
        model = MODELS.build(cfg.model)
        try:
            model.init_weights()
        except AssertionError as error:  # mmengine found no tensor below the prefix
            raise BackbenchError(f"{cfg.model.backbone.init_cfg.checkpoint}: {error}") from None
    exporter.check_engine_state(backbone, model.state_dict())
    difference = feature_difference(backbone, lambda x: trunk_stages(model.eval(), x))
    if not difference <= FEATURE_TOLERANCE:
        raise ExportError(f"MMDetection's C2..C5 differ from torchvision's by {difference:.1e} of their largest value")
    return distributed.synchronise_batchnorm(model.train(), device).to(device)


def trunk_stages(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Normalised RGB (N, 3, H, W) -> C2..C5 of a detector; C4 keeps its layer4 in the head, the extra norm behind it."""
    trunk = model.backbone
    stages = [getattr(trunk, name) for name in trunk.res_layers]
    if len(stages) == 3:
        stages.append(model.roi_head.shared_head.layer4)
    x, found = trunk.maxpool(trunk.relu(trunk.norm1(trunk.conv1(x)))), []
    for stage in stages:
        x = stage(x)
        found.append(x)
    return found


def _schedulers(cfg: Any, optimizer: torch.optim.Optimizer) -> _Schedulers:
    from mmengine.registry import PARAM_SCHEDULERS

    return _Schedulers(
        PARAM_SCHEDULERS.build(dict(fields), default_args={"optimizer": optimizer}) for fields in cfg.param_scheduler
    )


def train_loader(cfg: Any, start: int, job: Job) -> Iterator[Any]:
    """Endless batches; another order after a resume (no position is kept)."""
    from mmengine.runner import Runner

    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools speaks there
        return iter(Runner.build_dataloader(cfg.train_dataloader, seed=(job.seed + 7919 * start) % 2**31))


class _Schedulers(list[Any]):
    """All of them as one part of the course."""

    def state_dict(self) -> list[dict[str, Any]]:
        """One after the other, as mmengine's own checkpoints hold them."""
        return [scheduler.state_dict() for scheduler in self]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """The inverse."""
        for scheduler, state in zip(self, states, strict=True):
            scheduler.load_state_dict(state)


# ---------------------------------------------------------------- detection


@torch.no_grad()
def detect(model: nn.Module, spec: DetectionSpec, test: DetectionSplit, job: Job) -> list[Detections]:
    """What the detector finds in every image of the split, in its order, boxes in the image's own pixels.

    Raises:
        DataError: an image cannot be decoded, or is of another size than its annotation says.
    """
    prepare()
    from mmcv.transforms import Compose
    from mmengine.dataset import pseudo_collate

    model.eval()
    load = Compose(_test_pipeline(spec))
    found = []
    for index in track(range(len(test)), total=len(test), label=f"detecting in {test.dataset} {test.split}"):
        picture, file = test.pictures[index], test.file(index)
        loaded = load({"img_path": str(file), "img_id": index})
        height, width = loaded["data_samples"].ori_shape
        if (width, height) != (picture.width, picture.height):
            raise DataError(f"{file}: is {width}x{height} pixels, its annotation says {picture.width}x{picture.height}")
        (out,) = model.test_step(pseudo_collate([loaded]))
        found.append(_detections(out.pred_instances.cpu(), spec.masks))
    return found


def _detections(instances: Any, masks: bool) -> Detections:
    return Detections(
        boxes=instances.bboxes.numpy(),
        scores=instances.scores.numpy(),
        labels=instances.labels.numpy().astype(np.int64),
        masks=[rle(mask) for mask in instances.masks.numpy()] if masks else None,
    )
