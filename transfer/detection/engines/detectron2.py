"""Detectron2 v0.6: the reference engine of both protocols (facebookresearch/moco detection/, Base-RCNN-FPN).

The run's folder gets `detectron2.yaml`, which Detectron2's own tools read, the exported weights and checkpoints.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from core import distributed
from core.artifacts import atomic_write_text, make_folder
from core.datasets import is_published
from core.errors import ConfigError
from core.progress import track
from model_zoo.backbone import Backbone
from model_zoo.export import FEATURE_TOLERANCE, ExportError, feature_difference
from model_zoo.export import detectron2 as exporter
from transfer.detection import checkpoints, course, native_data
from transfer.detection.adapt import detectron2_v06
from transfer.detection.course import ESTIMATE, Course
from transfer.detection.data import BITMAPS, Detections, DetectionSplit, mask_format, trainable
from transfer.detection.draws import after
from transfer.detection.engines import Job, absent
from transfer.detection.reading import read_image
from transfer.detection.spec import DetectionSpec
from transfer.detection.training import rle

PACKAGES = ("detectron2", "fvcore", "iopath", "yacs", "omegaconf", "hydra", "cloudpickle", "tabulate", "termcolor",
            "pycocotools")  # fmt: skip
HEAD = "Res5ROIHeadsExtraNorm"
_OFFICIAL = {  # (data set, its test split, train split) -> what Detectron2 itself calls train and test
    ("voc", "test", "trainval07+12"): (("voc_2007_trainval", "voc_2012_trainval"), ("voc_2007_test",)),
    ("voc", "test", "trainval"): (("voc_2007_trainval",), ("voc_2007_test",)),
    ("coco", "val2017", "train2017"): (("coco_2017_train",), ("coco_2017_val",)),
}
_NATIVE_HEAD = """\
# Detectron2's own tools run this file: tools/train_net.py --config-file detectron2.yaml. Faster R-CNN C4 needs the head
# Res5ROIHeadsExtraNorm, which facebookresearch/moco detection/train_net.py registers under this name.
"""
_NATIVE_DATA = """\
# Its data is no set that Detectron2 knows. Register it in the tool, and name it under DATASETS:
# from detectron2.data.datasets import register_coco_instances
# register_coco_instances("own_train", {{}}, "train.json", "{train}")
# register_coco_instances("own_test", {{}}, "test.json", "{test}")
"""


def prepare() -> None:
    """Apply the adaptations, and register the C4 head with its extra norm."""
    detectron2_v06.apply()
    from detectron2.modeling import ROI_HEADS_REGISTRY

    if HEAD not in ROI_HEADS_REGISTRY:
        ROI_HEADS_REGISTRY.register(_extra_norm_head())


def missing() -> str | None:
    """Why the engine cannot be used."""
    return absent(PACKAGES)


def version() -> str:
    """Of Detectron2, of fvcore, and of torchvision, whose NMS and ROIAlign it calls."""
    from importlib.metadata import version as of

    import detectron2

    return f"detectron2 {detectron2.__version__}, fvcore {of('fvcore')}, torchvision {of('torchvision')}"


def compiled() -> bool:
    """Whether this Detectron2 has its own operators; both protocols use torchvision's in any case."""
    return importlib.util.find_spec("detectron2._C") is not None and not _is_pure()


def _is_pure() -> bool:
    import detectron2

    return Path(detectron2.__file__).with_name("_C.py").exists()


def try_operators() -> None:
    """A tiny NMS and ROIAlign through Detectron2's layers; raises when they do not work."""
    from detectron2.layers import ROIAlign, batched_nms

    boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 3.9]])
    assert batched_nms(boxes, torch.tensor([0.9, 0.8]), torch.zeros(2), 0.5).tolist() == [0]
    pooled = ROIAlign((1, 1), 1.0, 0, aligned=True)(torch.ones(1, 1, 8, 8), torch.tensor([[0.0, 1.0, 1.0, 5.0, 5.0]]))
    assert abs(float(pooled) - 1) < 1e-6


def _extra_norm_head() -> type:
    from detectron2.layers import get_norm
    from detectron2.modeling.backbone.resnet import BasicBlock, ResNet
    from detectron2.modeling.roi_heads import Res5ROIHeads

    class Res5ROIHeadsExtraNorm(Res5ROIHeads):
        """res5 as the head and a norm behind it (facebookresearch/moco detection/train_net.py); basic blocks too."""

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


# ---------------------------------------------------------------- the protocol as a Detectron2 configuration


def configuration(spec: DetectionSpec, backbone: Backbone, classes: int, job: Job, weights: Path) -> Any:
    """The spec as Detectron2's own configuration.

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
    cfg.OUTPUT_DIR = str(job.folder.resolve() / "native")  # what its own tools write is no checkpoint of ours
    cfg.SEED = job.seed + 1  # 0 or less means: draw one
    cfg.MODEL.DEVICE = job.device.type
    cfg.MODEL.WEIGHTS = str(weights.resolve())
    cfg.merge_from_other_cfg(CfgNode(exporter.settings(backbone)))
    resnets, norm = cfg.MODEL.RESNETS, {"sync": "SyncBN", "frozen": "FrozenBN"}[spec.norm]
    resnets.NORM = norm
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
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


def records(split: DetectionSplit) -> list[dict[str, Any]]:
    """The split in Detectron2's form."""
    from detectron2.structures import BoxMode

    return [
        {
            "file_name": str(split.file(i)),
            "image_id": picture.id,
            "width": picture.width,
            "height": picture.height,
            "annotations": [
                {
                    "bbox": list(o.box),
                    "bbox_mode": BoxMode.XYXY_ABS,
                    "category_id": o.label,
                    "iscrowd": int(o.crowd),
                    **({"segmentation": _packed(o.mask)} if o.mask is not None else {}),
                }
                for o in picture.instances
            ],
        }
        for i, picture in enumerate(split.pictures)
    ]


def _packed(mask: Any) -> Any:
    """Polygons as they are; a run-length mask packed, as Detectron2 wants it."""
    if isinstance(mask, dict) and isinstance(mask["counts"], list):
        from pycocotools import mask as coco_mask

        return coco_mask.frPyObjects(mask, *mask["size"])
    return mask


# ---------------------------------------------------------------- training


def train(spec: DetectionSpec, backbone: Backbone, train: DetectionSplit, job: Job) -> nn.Module:
    """The trained detector; goes on from the folder's last checkpoint.

    Raises:
        BackbenchError: the weights did not arrive as they were exported, a loss is not finite, the folder holds the
            checkpoint of another run, or nothing to train on.
    """
    from detectron2.solver import build_lr_scheduler, build_optimizer
    from detectron2.utils.env import seed_all_rng
    from detectron2.utils.events import EventStorage

    prepare()
    usable = trainable(train)
    cfg = write_native(spec, backbone, train, job)
    seed_all_rng(cfg.SEED)
    model = build(cfg, backbone, job.device)
    optimizer = build_optimizer(cfg, model)  # it knows the norms it must not decay, and not the global ones
    scheduler = build_lr_scheduler(cfg, optimizer)
    model = distributed.synchronise_batchnorm(model, job.device)
    taught = Course(
        label="detectron2",
        model=model,
        optimizer=optimizer,
        parts={"model": model, "optimizer": optimizer, "scheduler": scheduler},
        advance=scheduler.step,
        losses=lambda forward, batch: forward(batch),
        loader=lambda start: train_loader(cfg, usable, start, job),
        # ranks draw other proposals and flips
        seed=lambda start: seed_all_rng(cfg.SEED + 7919 * start + 104_729 * distributed.rank()),
    )
    with EventStorage():  # Detectron2's models write to it
        return course.run(taught, spec, checkpoints.identity(spec, backbone, train, job.seed), job)


def write_native(spec: DetectionSpec, backbone: Backbone, train: DetectionSplit, job: Job) -> Any:
    """`backbone.pkl` and `detectron2.yaml` in the job's folder; returns the configuration. Data that Detectron2 does not
    know go there too, in COCO's format."""
    weights = make_folder(job.folder) / "backbone.pkl"
    cfg = configuration(spec, backbone, len(train.classes), job, weights)
    official = _official(train, job.test)
    head = _NATIVE_HEAD
    if official:
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = official
    else:
        head += _NATIVE_DATA.format(train=train.source.root.resolve(), test=(job.test or train).source.root.resolve())
    if spec.masks:
        cfg.INPUT.MASK_FORMAT = mask_format(train)
        if cfg.INPUT.MASK_FORMAT == "bitmask":
            job.notes.append(BITMAPS)
    if distributed.is_main():
        exporter.write(backbone, weights)
        if not official:
            native_data.write(train, job)
        atomic_write_text(job.folder / "detectron2.yaml", head + cfg.dump())
    distributed.barrier()
    return cfg


def _official(train: DetectionSplit, test: DetectionSplit | None) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """Detectron2's names for the images, where they are exactly those that it knows under a name."""
    if test is None:
        return None
    names = _OFFICIAL.get((train.dataset, test.split, train.split))
    return names if names and is_published(train.dataset, {"train": train, "test": test}) else None


def build(cfg: Any, backbone: Backbone, device: torch.device) -> nn.Module:
    """The detector with the backbone's weights in it, tensors and features compared with the exported ones.

    Raises:
        ExportError: something was not loaded, or the trunk computes something else.
    """
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.modeling import build_model

    model = build_model(cfg).cpu()
    logging.getLogger("fvcore.common.checkpoint").setLevel(logging.ERROR)  # only warns of what is checked below
    DetectionCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    exporter.check_engine_state(backbone, model.state_dict())
    model.eval()
    difference = feature_difference(backbone, lambda x: trunk_stages(model, x))
    if not difference <= FEATURE_TOLERANCE:
        raise ExportError(f"Detectron2's C2..C5 differ from torchvision's by {difference:.1e} of their largest value")
    return model.train().to(device)


def trunk_stages(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Normalised RGB (N, 3, H, W) -> C2..C5 of a detector; C4 keeps its res5 in the head, the extra norm behind it."""
    trunk = getattr(model.backbone, "bottom_up", model.backbone)
    stages = [getattr(trunk, name) for name in ("res2", "res3", "res4")]
    if hasattr(trunk, "res5"):
        stages.append(trunk.res5)
    else:
        stages.append(nn.Sequential(*(m for name, m in model.roi_heads.res5.named_children() if name != "norm")))
    x, found = trunk.stem(x), []
    for stage in stages:
        x = stage(x)
        found.append(x)
    return found


def train_loader(cfg: Any, split: DetectionSplit, start: int, job: Job) -> Iterable[Any]:
    """Endless batches from iteration `start` on; what the iterations before it draw is drawn, their images are not read.

    PreciseBN's (`ESTIMATE`) have an order of their own.
    """
    from detectron2.data import build_detection_train_loader
    from detectron2.data.samplers import TrainingSampler

    begin, skip = (start, 0) if start == ESTIMATE else (0, start)
    sampler = TrainingSampler(len(split), seed=job.seed + 7919 * begin)
    batch = cfg.SOLVER.IMS_PER_BATCH // distributed.world_size()
    loader = build_detection_train_loader(
        _dataset(split, _mapper(cfg)),
        mapper=None,
        sampler=_skipping(sampler, _skipped(split, sampler, batch, skip)),
        total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
        aspect_ratio_grouping=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        num_workers=job.workers,
    )
    return after(loader, skip) if skip else loader


def _skipped(split: DetectionSplit, sampler: Iterable[int], batch: int, count: int) -> set[int]:
    """Places in the sampler's order of the images of the first `count` batches, which are of wide ones or of others."""
    waiting: tuple[list[int], list[int]] = ([], [])
    skipped: set[int] = set()
    for place, row in enumerate(sampler if count else ()):
        picture = split.pictures[row]
        group = waiting[picture.width <= picture.height]
        group.append(place)
        if len(group) == batch:
            skipped |= set(group)
            group.clear()
            if len(skipped) == count * batch:
                break
    return skipped


def _skipping(sampler: Any, skipped: set[int]) -> Any:
    """The sampler's rows, -1 - row at the places that are skipped."""
    from torch.utils.data import Sampler

    class Skipping(Sampler[int]):
        def __iter__(self) -> Iterator[int]:
            return (-1 - row if place in skipped else row for place, row in enumerate(sampler))

    return Skipping() if skipped else sampler


def _dataset(split: DetectionSplit, mapper: Any) -> Any:
    """Mapped records by their rows; of -1 - row what is drawn for it alone."""
    from detectron2.data import DatasetFromList

    packed = DatasetFromList(records(split), copy=False)

    class Mapped(torch.utils.data.Dataset[Any]):
        def __getitem__(self, row: int) -> dict[str, Any]:
            return mapper(packed[row]) if row >= 0 else mapper.draw(packed[-1 - row])

        def __len__(self) -> int:
            return len(split)

    return Mapped()


def _mapper(cfg: Any) -> Any:
    """Detectron2's mapper over our reading: files are named in errors, and turned by no EXIF tag, as annotations are."""
    from detectron2.data import DatasetMapper
    from detectron2.data.transforms import AugInput

    class Mapper(DatasetMapper):
        def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
            record = copy.deepcopy(record)
            seen = AugInput(read_image(Path(record["file_name"]), record["width"], record["height"]))
            transforms = self.augmentations(seen)
            record["image"] = _planes(seen.image)
            self._transform_annotations(record, transforms, seen.image.shape[:2])
            return record

        def draw(self, record: dict[str, Any]) -> dict[str, Any]:
            """The random numbers of a call, and nothing else: they depend on no pixel."""
            pixels = np.broadcast_to(np.zeros((1, 1, 1), np.uint8), (record["height"], record["width"], 3))
            for augmentation in self.augmentations.augs:
                augmentation.get_transform(pixels)
            return {"width": record["width"], "height": record["height"]}

    return Mapper(cfg, is_train=True)


# ---------------------------------------------------------------- detection


@torch.no_grad()
def detect(model: nn.Module, spec: DetectionSpec, test: DetectionSplit, job: Job) -> list[Detections]:
    """What the detector finds in every image of the split, in its order, boxes in the image's own pixels.

    Raises:
        DataError: an image cannot be decoded, or is of another size than its annotation says.
    """
    from detectron2.data.transforms import AugInput, ResizeShortestEdge

    model.eval()
    resize = ResizeShortestEdge([spec.side_test, spec.side_test], spec.side_max)
    found = []
    for index in track(range(len(test)), total=len(test), label=f"detecting in {test.dataset} {test.split}"):
        picture = test.pictures[index]
        seen = AugInput(read_image(test.file(index), picture.width, picture.height))
        resize(seen)
        (out,) = model([{"image": _planes(seen.image), "height": picture.height, "width": picture.width}])
        found.append(_detections(out["instances"].to("cpu"), spec.masks))
    return found


def _planes(pixels: np.ndarray) -> Tensor:
    return torch.as_tensor(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def _detections(instances: Any, masks: bool) -> Detections:
    return Detections(
        boxes=instances.pred_boxes.tensor.numpy(),
        scores=instances.scores.numpy(),
        labels=instances.pred_classes.numpy(),
        masks=[rle(mask.numpy()) for mask in instances.pred_masks] if masks else None,
    )
