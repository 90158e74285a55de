"""Detectron2 v0.6, the reference engine of both protocols (facebookresearch/moco detection/, Base-RCNN-FPN).

It writes `detectron2.yaml` for Detectron2's own tools, the exported weights and checkpoints to the run's folder.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from backbench import batchnorm, distributed
from backbench.data.catalogue import is_published
from backbench.files.atomic import atomic_write_text, make_folder
from backbench.progress import track
from model_zoo.backbone import Backbone
from model_zoo.export import FEATURE_TOLERANCE, ExportError, feature_difference
from model_zoo.export import detectron2 as exporter
from transfer.detection.adapt import detectron2_v06, notices
from transfer.detection.annotations import native_data
from transfer.detection.annotations.pixels import read_image
from transfer.detection.annotations.split import BITMAPS, Detections, DetectionSplit, mask_format, trainable
from transfer.detection.engines import absent
from transfer.detection.engines.detectron2.data import mapped, records, skipped, skipping
from transfer.detection.engines.detectron2.protocol import HEAD, configuration, extra_norm_head
from transfer.detection.job import Job
from transfer.detection.spec import DetectionSpec
from transfer.detection.training import checkpoints, course
from transfer.detection.training.course import ESTIMATE, Course
from transfer.detection.training.draws import after
from transfer.detection.training.steps import rle

PACKAGES = ("detectron2", "fvcore", "iopath", "yacs", "omegaconf", "hydra", "cloudpickle", "tabulate", "termcolor",
            "pycocotools")  # fmt: skip
_OFFICIAL = {  # (data set, test split, train split) -> Detectron2's names of train and test
    ("voc", "test", "trainval07+12"): (("voc_2007_trainval", "voc_2012_trainval"), ("voc_2007_test",)),
    ("voc", "test", "trainval"): (("voc_2007_trainval",), ("voc_2007_test",)),
    ("coco", "val2017", "train2017"): (("coco_2017_train",), ("coco_2017_val",)),
}
_NATIVE_HEAD = """\
# Detectron2's own tools run this file: tools/train_net.py --config-file detectron2.yaml. Faster R-CNN C4 needs the head
# Res5ROIHeadsExtraNorm, which facebookresearch/moco detection/train_net.py registers under this name.
"""
_NATIVE_DATA = """\
# Detectron2 does not know its data set. Register it in the tool, and name it under DATASETS:
# from detectron2.data.datasets import register_coco_instances
# register_coco_instances("own_train", {{}}, "train.json", "{train}")
# register_coco_instances("own_test", {{}}, "test.json", "{test}")
"""


def prepare() -> None:
    """Apply the adaptations and register the C4 head with its extra norm."""
    notices.apply()
    detectron2_v06.apply()
    from detectron2.modeling import ROI_HEADS_REGISTRY

    if HEAD not in ROI_HEADS_REGISTRY:
        ROI_HEADS_REGISTRY.register(extra_norm_head())


def missing() -> str | None:
    """Return why the engine cannot be used, or None."""
    return absent(PACKAGES)


def version() -> str:
    """Return the versions of Detectron2, fvcore and torchvision (NMS and ROIAlign)."""
    from importlib.metadata import version as of

    import detectron2

    return f"detectron2 {detectron2.__version__}, fvcore {of('fvcore')}, torchvision {of('torchvision')}"


def compiled() -> bool:
    """True if this Detectron2 has its own operators. Both protocols use torchvision's in any case."""
    return importlib.util.find_spec("detectron2._C") is not None and not _is_pure()


def _is_pure() -> bool:
    import detectron2

    return Path(detectron2.__file__).with_name("_C.py").exists()


def try_operators() -> None:
    """Run a tiny NMS and ROIAlign through Detectron2's layers. Raises if they do not work."""
    from detectron2.layers import ROIAlign, batched_nms

    boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 3.9]])
    assert batched_nms(boxes, torch.tensor([0.9, 0.8]), torch.zeros(2), 0.5).tolist() == [0]
    pooled = ROIAlign((1, 1), 1.0, 0, aligned=True)(torch.ones(1, 1, 8, 8), torch.tensor([[0.0, 1.0, 1.0, 5.0, 5.0]]))
    assert abs(float(pooled) - 1) < 1e-6


# ---------------------------------------------------------------- training


def train(spec: DetectionSpec, backbone: Backbone, train: DetectionSplit, job: Job) -> nn.Module:
    """Train and return a detector. Resumes from the folder's last checkpoint.

    Raises:
        BackbenchError: the loaded weights differ from the exported ones, a loss is not finite, the folder has the
            checkpoint of another run, or there is nothing to train on.
    """
    prepare()
    from detectron2.utils.events import EventStorage

    taught = new_course(spec, backbone, train, job)
    with EventStorage():  # Detectron2's models write to it
        return course.run(taught, spec, checkpoints.identity(spec, backbone, train, job), job)


def new_course(spec: DetectionSpec, backbone: Backbone, train: DetectionSplit, job: Job) -> Course:
    """Build the detector with its optimiser, schedule and loader, and write the native configuration."""
    from detectron2.solver import build_lr_scheduler, build_optimizer
    from detectron2.utils.env import seed_all_rng

    usable = trainable(train)
    cfg = write_native(spec, backbone, train, job)
    seed_all_rng(cfg.SEED)
    model = build(cfg, backbone, job.device)
    optimizer = build_optimizer(
        cfg, model
    )  # before synchronising: it gives norms no decay, but does not know GlobalBatchNorm
    scheduler = build_lr_scheduler(cfg, optimizer)
    model = batchnorm.synchronise_batchnorm(model, job.device)
    return Course(
        label="detectron2",
        model=model,
        optimizer=optimizer,
        parts={"model": model, "optimizer": optimizer, "scheduler": scheduler},
        advance=scheduler.step,
        losses=lambda forward, batch: forward(batch),
        loader=lambda start: train_loader(cfg, usable, start, job),
        # each rank draws its own proposals and flips
        seed=lambda start: seed_all_rng(cfg.SEED + 7919 * start + 104_729 * distributed.rank()),
    )


def write_native(spec: DetectionSpec, backbone: Backbone, train: DetectionSplit, job: Job) -> Any:
    """Write `backbone.pkl` and `detectron2.yaml` to the job's folder and return the configuration.

    Data that Detectron2 does not know are written there too, in COCO's format.
    """
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
    """Return Detectron2's names of train and test if the images are exactly those, else None."""
    if test is None:
        return None
    names = _OFFICIAL.get((train.dataset, test.split, train.split))
    return names if names and is_published(train.dataset, {"train": train, "test": test}) else None


def build(cfg: Any, backbone: Backbone, device: torch.device) -> nn.Module:
    """Build the detector with the backbone's weights. Compares tensors and features with the exported ones.

    Raises:
        ExportError: a tensor was not loaded, or the trunk's features differ.
    """
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.modeling import build_model

    model = build_model(cfg).cpu()
    logging.getLogger("fvcore.common.checkpoint").setLevel(logging.ERROR)  # it only warns; the next lines check
    DetectionCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    exporter.check_engine_state(backbone, model.state_dict())
    model.eval()
    difference = feature_difference(backbone, lambda x: trunk_stages(model, x))
    if not difference <= FEATURE_TOLERANCE:
        raise ExportError(f"Detectron2's C2..C5 differ from torchvision's by {difference:.1e} of their largest value")
    return model.train().to(device)


def trunk_stages(model: Any, x: Tensor) -> list[Tensor]:
    """Return C2..C5 of a detector for normalised RGB (N, 3, H, W). C4 has its res5 in the head, before the extra norm."""
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
    """Return endless batches from iteration `start` on. Draws the earlier iterations' random numbers without reading images.

    PreciseBN's batches (`ESTIMATE`) have a separate order.
    """
    from detectron2.data import build_detection_train_loader
    from detectron2.data.samplers import TrainingSampler

    begin, skip = (start, 0) if start == ESTIMATE else (0, start)
    sampler = TrainingSampler(len(split), seed=job.seed + 7919 * begin)
    batch = cfg.SOLVER.IMS_PER_BATCH // distributed.world_size()
    loader = build_detection_train_loader(
        mapped(records(split), _mapper(cfg)),
        mapper=None,
        sampler=skipping(sampler, skipped(split, sampler, batch, skip)),
        total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
        aspect_ratio_grouping=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        num_workers=job.workers,
    )
    return after(loader, skip) if skip else loader


def _mapper(cfg: Any) -> Any:
    """Return Detectron2's mapper with our reader: errors name the file, and EXIF tags rotate no image."""
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
            """Draw only the random numbers of a call. They do not depend on pixels."""
            pixels = np.broadcast_to(np.zeros((1, 1, 1), np.uint8), (record["height"], record["width"], 3))
            for augmentation in self.augmentations.augs:
                augmentation.get_transform(pixels)
            return {"width": record["width"], "height": record["height"]}

    return Mapper(cfg, is_train=True)


# ---------------------------------------------------------------- detection


@torch.no_grad()
def detect(model: nn.Module, spec: DetectionSpec, test: DetectionSplit, job: Job) -> list[Detections]:
    """Return the detections in every image of the split, in order, with boxes in the original image's pixels.

    Raises:
        DataError: an image cannot be decoded, or has another size than its annotation states.
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
