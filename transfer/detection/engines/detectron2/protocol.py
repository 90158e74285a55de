"""Translate the protocols to Detectron2's configuration, and define the C4 head that it lacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from backbench import distributed
from backbench.errors import ConfigError
from model_zoo.backbone import Backbone
from model_zoo.export import detectron2 as exporter
from transfer.detection.job import Job
from transfer.detection.spec import DetectionSpec

HEAD = "Res5ROIHeadsExtraNorm"
RESNET_STAGES = ("stem", "res2", "res3", "res4", "res5")  # FREEZE_AT counts them; a C4 trunk ends with res4


def configuration(spec: DetectionSpec, backbone: Backbone, classes: int, job: Job, weights: Path) -> Any:
    """Return the spec as Detectron2's configuration.

    Raises:
        ConfigError: the batch does not divide by the number of processes.
    """
    from detectron2.config import CfgNode, get_cfg

    if spec.batch % distributed.world_size():
        raise ConfigError(
            f"batch={spec.batch} does not divide by {distributed.world_size()} processes; set another one"
        )
    cfg = get_cfg()
    cfg.VERSION = 2
    cfg.OUTPUT_DIR = str(
        job.folder.resolve() / "native"
    )  # keeps the files of Detectron2's tools apart from our checkpoints
    cfg.SEED = job.seed + 1  # Detectron2 draws a seed for 0 or less
    cfg.MODEL.DEVICE = job.device.type
    cfg.MODEL.WEIGHTS = str(weights.resolve())
    cfg.merge_from_other_cfg(CfgNode(exporter.settings(backbone)))
    resnets, norm = cfg.MODEL.RESNETS, {"sync": "SyncBN", "frozen": "FrozenBN"}[spec.norm]
    resnets.NORM = norm
    cfg.MODEL.BACKBONE.FREEZE_AT = len(RESNET_STAGES) if job.frozen else 0
    cfg.MODEL.MASK_ON = spec.masks
    _head(cfg, spec, norm)
    heads, rpn, solver = cfg.MODEL.ROI_HEADS, cfg.MODEL.RPN, cfg.SOLVER
    heads.NUM_CLASSES, heads.BATCH_SIZE_PER_IMAGE, heads.SCORE_THRESH_TEST = classes, spec.rois, spec.score_threshold
    rpn.PRE_NMS_TOPK_TRAIN, rpn.POST_NMS_TOPK_TRAIN = spec.proposals_train
    rpn.PRE_NMS_TOPK_TEST, rpn.POST_NMS_TOPK_TEST = spec.proposals_test
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = spec.sides_train, spec.side_test
    cfg.INPUT.MAX_SIZE_TRAIN = cfg.INPUT.MAX_SIZE_TEST = spec.side_max
    solver.IMS_PER_BATCH, solver.BASE_LR, solver.MAX_ITER = spec.batch, spec.lr, spec.iterations
    solver.STEPS = tuple(step for step in spec.milestones if step < spec.iterations)
    solver.WARMUP_ITERS, solver.WARMUP_FACTOR = spec.warmup, 0.001
    solver.MOMENTUM, solver.WEIGHT_DECAY, solver.WEIGHT_DECAY_NORM = spec.momentum, spec.weight_decay, 0.0
    solver.CHECKPOINT_PERIOD = job.checkpoint_every
    cfg.TEST.PRECISE_BN.ENABLED = spec.estimates
    cfg.TEST.PRECISE_BN.NUM_ITER = max(spec.precise_bn, 1)
    cfg.TEST.DETECTIONS_PER_IMAGE = spec.detections
    cfg.DATALOADER.NUM_WORKERS = job.workers
    return cfg


def _head(cfg: Any, spec: DetectionSpec, norm: str) -> None:
    model = cfg.MODEL
    if spec.head == "c4":
        model.RESNETS.OUT_FEATURES, model.ROI_HEADS.IN_FEATURES = ["res4"], ["res4"]
        model.BACKBONE.NAME, model.ROI_HEADS.NAME = "build_resnet_backbone", HEAD
        model.ROI_BOX_HEAD.POOLER_RESOLUTION = 14
        return
    model.BACKBONE.NAME, model.RESNETS.OUT_FEATURES = "build_resnet_fpn_backbone", ["res2", "res3", "res4", "res5"]
    model.FPN.IN_FEATURES, model.FPN.NORM = ["res2", "res3", "res4", "res5"], norm if norm == "SyncBN" else ""
    model.ANCHOR_GENERATOR.SIZES = [[32], [64], [128], [256], [512]]
    model.ANCHOR_GENERATOR.ASPECT_RATIOS = [[0.5, 1.0, 2.0]]
    model.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    model.ROI_HEADS.NAME, model.ROI_HEADS.IN_FEATURES = "StandardROIHeads", ["p2", "p3", "p4", "p5"]
    model.ROI_BOX_HEAD.NAME, model.ROI_BOX_HEAD.NUM_FC = "FastRCNNConvFCHead", 2
    model.ROI_BOX_HEAD.POOLER_RESOLUTION = 7
    model.ROI_MASK_HEAD.NAME, model.ROI_MASK_HEAD.NUM_CONV = "MaskRCNNConvUpsampleHead", 4
    model.ROI_MASK_HEAD.POOLER_RESOLUTION = 14


def extra_norm_head() -> type:
    from detectron2.layers import get_norm
    from detectron2.modeling.backbone.resnet import BasicBlock, ResNet
    from detectron2.modeling.roi_heads import Res5ROIHeads

    class Res5ROIHeadsExtraNorm(Res5ROIHeads):
        """res5 as the head, followed by a norm (facebookresearch/moco detection/train_net.py); also with basic blocks."""

        @classmethod
        def _build_res5_block(cls, cfg: Any) -> tuple[nn.Sequential, int]:
            resnets = cfg.MODEL.RESNETS
            if resnets.DEPTH > 34:
                blocks, out = super()._build_res5_block(cfg)
            else:
                out = resnets.RES2_OUT_CHANNELS * 8
                count = {18: 2, 34: 3}[resnets.DEPTH]
                strides = [2] + [1] * (count - 1)
                blocks = nn.Sequential(
                    *ResNet.make_stage(
                        BasicBlock, count, stride_per_block=strides, in_channels=out // 2, out_channels=out,
                        norm=resnets.NORM,
                    )
                )  # fmt: skip
            blocks.add_module("norm", get_norm(resnets.NORM, out))
            return blocks, out

    return Res5ROIHeadsExtraNorm
