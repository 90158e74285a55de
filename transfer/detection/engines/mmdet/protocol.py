"""Translate the protocols to MMDetection's configuration. It names files in the run's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from backbench import distributed
from backbench.errors import ConfigError
from model_zoo.anatomy import feature_dim
from model_zoo.backbone import Backbone
from model_zoo.export import mmdet as exporter
from transfer.detection.annotations.split import DetectionSplit, mask_format
from transfer.detection.job import Job
from transfer.detection.spec import DetectionSpec

_OF_LAYER4 = ("depth", "base_channels", "style", "groups", "base_width", "avg_down")  # fields that define its blocks


def configuration(spec: DetectionSpec, backbone: Backbone, train: DetectionSplit, job: Job) -> Any:
    """Return the spec as MMDetection's configuration. It names files in the job's folder.

    Raises:
        ConfigError: the batch does not divide by the number of processes.
    """
    from mmengine.config import Config

    ranks = distributed.world_size()
    if spec.batch % ranks:
        raise ConfigError(f"batch={spec.batch} does not divide by {ranks} processes; set another one")
    folder = job.folder.resolve()
    course = {"by_epoch": False}
    warmup = min(spec.warmup, spec.iterations)
    schedulers = (
        [{"type": "LinearLR", "start_factor": 0.001, "begin": 0, "end": warmup + 1, **course}] if warmup else []
    )
    schedulers.append({"type": "MultiStepLR", "milestones": list(spec.milestones), "gamma": 0.1, **course})
    return Config({
        "default_scope": "mmdet",
        "custom_imports": {"imports": ["transfer.detection.engines.mmdet.native"], "allow_failed_imports": False},
        "model": _model(spec, backbone, len(train.classes), folder / "backbone.pth", trunk_frozen=job.frozen),
        "train_dataloader": _loader(spec, train, job, folder / "train.json", ranks),
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
        "custom_hooks": [{"type": "PreciseStatisticsHook", "count": spec.precise_bn}] if spec.estimates else [],
        "log_processor": course,
        "randomness": {"seed": job.seed},
        "sync_bn": "torch",  # with several processes
        "find_unused_parameters": True,
        "work_dir": str(folder / "native"),  # keeps the files of MMDetection's tools apart from our checkpoints
        **_test(spec, job.test, job, folder / "test.json"),
    })  # fmt: skip


def _model(
    spec: DetectionSpec, backbone: Backbone, classes: int, weights: Path, *, trunk_frozen: bool
) -> dict[str, Any]:
    implied = exporter.settings(backbone)
    frozen = spec.norm == "frozen"
    norm = {"type": "BN", "requires_grad": not frozen}
    pretrained = {"type": "Pretrained", "checkpoint": str(weights), "prefix": implied["prefix"]}
    common = {"norm_cfg": norm, "norm_eval": frozen, "init_cfg": pretrained}
    c4 = spec.head == "c4"
    stages = 3 if c4 else 4
    trunk = {
        **implied["backbone"], **common, "num_stages": stages, "strides": (1, 2, 2, 2)[:stages],
        "dilations": (1,) * stages, "out_indices": (2,) if c4 else (0, 1, 2, 3),
        "frozen_stages": stages if trunk_frozen else -1,
    }  # fmt: skip
    channels = [feature_dim(backbone.arch) // 2**i for i in (3, 2, 1, 0)]
    model: dict[str, Any] = {
        "type": "MaskRCNN" if spec.masks else "FasterRCNN",
        "data_preprocessor": {
            "type": "WholeBatchPreprocessor", **implied["data_preprocessor"],
            "pad_size_divisor": 1 if c4 else 32, "pad_mask": spec.masks,
        },
        "backbone": trunk,
        "rpn_head": _rpn(channels[2] if c4 else 256, c4),
        "roi_head": _c4_head(trunk, common, channels, classes) if c4 else _fpn_head(classes),
        "train_cfg": train_cfg(spec),
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
    shared = {name: value for name, value in trunk.items() if name in _OF_LAYER4}
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


def train_cfg(spec: DetectionSpec) -> dict[str, Any]:
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


def _loader(spec: DetectionSpec, train: DetectionSplit, job: Job, annotations: Path, ranks: int) -> dict[str, Any]:
    scales = [(spec.side_max, side) for side in spec.sides_train]
    pipeline = [
        {"type": "LoadNamedImage"},
        {
            "type": "LoadAnnotations",
            "with_bbox": True,
            "with_mask": spec.masks,
            "poly2mask": mask_format(train) == "bitmask",
        },  # with polygons, objects with run-length masks would be ignored
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
        "dataset": {**_dataset(train, annotations), "filter_cfg": None, "pipeline": pipeline},
    }


def _dataset(split: DetectionSplit, file: Path) -> dict[str, Any]:
    return {
        "type": "CocoDataset",
        "ann_file": str(file),
        "data_prefix": {"img": str(split.source.root.resolve())},
        "metainfo": {"classes": tuple(split.classes)},
    }


def test_pipeline(spec: DetectionSpec) -> list[dict[str, Any]]:
    keys = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")
    return [
        {"type": "LoadNamedImage"},
        {"type": "Resize", "scale": (spec.side_max, spec.side_test), "keep_ratio": True, "backend": "pillow"},
        {"type": "PackDetInputs", "meta_keys": keys},
    ]


def _test(spec: DetectionSpec, test: DetectionSplit | None, job: Job, file: Path) -> dict[str, Any]:
    """Return the evaluator for tools/test.py: COCO's metric, or without a COCO file VOC's at the protocol's overlaps.

    Without a test split, or with a federated one, whose metric MMDetection has only with the package lvis, there is none.
    Its numbers may differ from ours: object sizes (APs, APm, APl) come from boxes, and VOC's boxes are one pixel wider.
    """
    if test is None or test.frequencies:
        return {}
    truth = {"type": "LoadAnnotations", "with_bbox": True}
    load, resize, pack = test_pipeline(spec)
    pipeline = [load, resize, pack] if test.annotations else [load, resize, truth, pack]
    metric: dict[str, Any] = {"type": "CocoMetric", "ann_file": str(file), "metric": ["bbox", "segm"][: 1 + spec.masks]}
    if not test.annotations:
        metric = {"type": "VOCMetric", "metric": "mAP", "iou_thrs": [i / 100 for i in range(50, 100, 5)]}
        metric |= {"eval_mode": "11points"}
    return {
        "test_dataloader": {
            "batch_size": 1,
            "num_workers": job.workers,
            "sampler": {"type": "DefaultSampler", "shuffle": False},
            "dataset": {**_dataset(test, file), "test_mode": True, "pipeline": pipeline},
        },
        "test_cfg": {"type": "TestLoop"},
        "test_evaluator": metric,
    }
