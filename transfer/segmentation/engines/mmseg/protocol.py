"""Translate the protocols to MMSegmentation's configuration. It names files in the run's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from backbench import distributed
from backbench.errors import ConfigError
from model_zoo.anatomy import feature_dim
from model_zoo.backbone import Backbone
from model_zoo.export import mmdet as exporter
from transfer.detection.job import Job
from transfer.segmentation.annotations.split import IGNORE, SegmentationSplit
from transfer.segmentation.spec import SegmentationSpec


def configuration(spec: SegmentationSpec, backbone: Backbone, train: SegmentationSplit, job: Job) -> Any:
    """Return the spec as MMSegmentation's configuration. It names files in the job's folder.

    Raises:
        ConfigError: the batch does not divide by the number of processes.
    """
    from mmengine.config import Config

    ranks = distributed.world_size()
    if spec.batch % ranks:
        raise ConfigError(f"batch={spec.batch} does not divide by {ranks} processes; set another one")
    folder = job.folder.resolve()
    return Config({
        "default_scope": "mmseg",
        "custom_imports": {"imports": ["transfer.segmentation.engines.mmseg.native"], "allow_failed_imports": False},
        "model": _model(spec, backbone, len(train.classes), folder / "backbone.pth"),
        "train_dataloader": _train_loader(spec, train, job, folder / "train.json", ranks),
        "train_cfg": {"type": "IterBasedTrainLoop", "max_iters": spec.iterations, "val_interval": spec.iterations + 1},
        "optim_wrapper": {
            "type": "OptimWrapper",
            "optimizer": {
                "type": "SGD", "lr": spec.lr, "momentum": spec.momentum, "weight_decay": spec.weight_decay,
            },
        },
        "param_scheduler": [_schedule(spec)],
        "default_hooks": {
            "checkpoint": {"type": "CheckpointHook", "interval": job.checkpoint_every, "by_epoch": False},
        },
        "log_processor": {"by_epoch": False},
        "randomness": {"seed": job.seed},
        "sync_bn": "torch",  # with several processes
        "find_unused_parameters": True,
        "work_dir": str(folder / "native"),  # keeps the files of MMSegmentation's tools apart from our checkpoints
        **(_test(spec, job.test, job, folder / "test.json") if job.test is not None else {}),
    })  # fmt: skip


def _schedule(spec: SegmentationSpec) -> dict[str, Any]:
    if spec.schedule == "steps":
        return {"type": "MultiStepLR", "milestones": list(spec.milestones), "gamma": 0.1, "by_epoch": False}
    return {"type": "PolyLR", "eta_min": spec.lr_min, "power": spec.power, "begin": 0, "end": spec.iterations,
            "by_epoch": False}  # fmt: skip


def _model(spec: SegmentationSpec, backbone: Backbone, classes: int, weights: Path) -> dict[str, Any]:
    implied = exporter.settings(backbone)
    frozen = spec.norm == "frozen"
    trunk = {
        **implied["backbone"], "num_stages": 4, "strides": spec.strides, "dilations": spec.dilations,
        "contract_dilation": True, "out_indices": (0, 1, 2, 3), "frozen_stages": -1, "norm_eval": frozen,
        "norm_cfg": {"type": "BN", "requires_grad": not frozen},
        "init_cfg": {"type": "Pretrained", "checkpoint": str(weights), "prefix": implied["prefix"]},
    }  # fmt: skip
    channels = [feature_dim(backbone.arch) // 2**i for i in (3, 2, 1, 0)]
    preprocessor = {
        "type": "SegDataPreProcessor", **implied["data_preprocessor"], "size": spec.crop, "pad_val": 0,
        "seg_pad_val": IGNORE,
    }  # fmt: skip
    slide = {"mode": "slide", "crop_size": spec.crop, "stride": spec.stride_test}
    return {
        "type": "EncoderDecoder",
        "data_preprocessor": preprocessor,
        "backbone": trunk,
        "decode_head": _fcn(spec, channels, classes) if spec.head == "fcn" else _upernet(spec, channels, classes),
        "auxiliary_head": _auxiliary(spec, channels, classes) if spec.auxiliary else None,
        "train_cfg": {},
        "test_cfg": slide if spec.stride_test else {"mode": "whole"},
    }


def _common(spec: SegmentationSpec, classes: int, weight: float) -> dict[str, Any]:
    return {
        "num_classes": classes,
        "out_channels": classes,  # also for two classes, where MMSegmentation suggests one output
        "dropout_ratio": spec.dropout,
        "norm_cfg": {"type": "BN", "requires_grad": True},
        "align_corners": spec.align_corners,
        "ignore_index": IGNORE,
        "loss_decode": {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": weight},
    }


def _fcn(spec: SegmentationSpec, channels: list[int], classes: int) -> dict[str, Any]:
    return {
        "type": "FCNHead",
        "in_channels": channels[3],
        "in_index": 3,
        "channels": spec.channels,
        "num_convs": spec.convs,
        "dilation": spec.head_dilation,
        "concat_input": spec.concat_input,
        **_common(spec, classes, 1.0),
    }


def _upernet(spec: SegmentationSpec, channels: list[int], classes: int) -> dict[str, Any]:
    return {
        "type": "UPerHead",
        "in_channels": channels,
        "in_index": [0, 1, 2, 3],
        "pool_scales": (1, 2, 3, 6),
        "channels": spec.channels,
        **_common(spec, classes, 1.0),
    }


def _auxiliary(spec: SegmentationSpec, channels: list[int], classes: int) -> dict[str, Any]:
    return {
        "type": "FCNHead",
        "in_channels": channels[2],
        "in_index": 2,
        "channels": 256,
        "num_convs": 1,
        "concat_input": False,
        **_common(spec, classes, 0.4),
    }


def _train_loader(spec: SegmentationSpec, train: SegmentationSplit, job: Job, file: Path, ranks: int) -> dict[str, Any]:
    pipeline: list[dict[str, Any]] = [
        {"type": "LoadListedImage"},
        {"type": "LoadListedMask"},
        {"type": "RandomResize", "scale": spec.resize, "ratio_range": spec.ratio, "keep_ratio": True},
        {"type": "RandomCrop", "crop_size": spec.crop, "cat_max_ratio": spec.one_class},
        {"type": "RandomFlip", "prob": 0.5},
        *([{"type": "PhotoMetricDistortion"}] if spec.colour else []),
        {"type": "PackSegInputs"},
    ]
    return {
        "batch_size": spec.batch // ranks,
        "num_workers": job.workers,
        "persistent_workers": job.workers > 0,
        "sampler": {"type": "NumberedSampler"},
        "dataset": {**_dataset(train, file), "seed": job.seed, "pipeline": pipeline},
    }


def _dataset(split: SegmentationSplit, file: Path) -> dict[str, Any]:
    return {"type": "ListedDataset", "ann_file": str(file), "metainfo": {"classes": tuple(split.classes)}}


def test_pipeline(spec: SegmentationSpec) -> list[dict[str, Any]]:
    """Return the transforms of a test image, given `list` and `row`."""
    resize = [{"type": "Resize", "scale": spec.resize_test, "keep_ratio": True}] if spec.resize_test else []
    return [{"type": "LoadListedImage"}, *resize, {"type": "PackSegInputs"}]


def _test(spec: SegmentationSpec, test: SegmentationSplit, job: Job, file: Path) -> dict[str, Any]:
    """Return the evaluator for tools/test.py. Masks are read after the resizing, so that they keep their own size."""
    *load, pack = test_pipeline(spec)
    pipeline = [*load, {"type": "LoadListedMask"}, pack]
    return {
        "test_dataloader": {
            "batch_size": 1,
            "num_workers": job.workers,
            "sampler": {"type": "DefaultSampler", "shuffle": False},
            "dataset": {**_dataset(test, file), "test_mode": True, "pipeline": pipeline},
        },
        "test_cfg": {"type": "TestLoop"},
        "test_evaluator": {"type": "IoUMetric", "iou_metrics": ["mIoU"], "ignore_index": IGNORE},
    }
