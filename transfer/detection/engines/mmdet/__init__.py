"""MMDetection 3, the same protocols as the Detectron2 engine; fields correct MMDetection's differing defaults.

It writes `mmdet_config.py` to the run's folder, a native configuration for MMDetection's own tools/train.py and
tools/test.py, with the annotations (`train.json`, `test.json`, COCO's format), exported weights and checkpoints. The detector
trained here is built from that configuration. Remaining differences: the order and draws of random numbers; deltas of box
sizes are also clamped from below; boxes under one pixel are left out (mmdet/datasets/coco.py); detections are scaled before
NMS, not after it; the losses of the proposal network are divided by the number of anchors present, not by the requested 256
(fewer only in tiny images).
"""

from __future__ import annotations

import contextlib
import copy
import importlib.metadata
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from backbench import batchnorm, distributed
from backbench.errors import BackbenchError
from backbench.files.atomic import atomic_write_text, make_folder
from backbench.progress import track
from model_zoo.backbone import Backbone
from model_zoo.export import FEATURE_TOLERANCE, ExportError, feature_difference
from model_zoo.export import mmdet as exporter
from transfer.detection.adapt import mmcv_lite
from transfer.detection.annotations import native_data
from transfer.detection.annotations.split import BITMAPS, Detections, DetectionSplit, mask_format, trainable
from transfer.detection.engines import absent, versions
from transfer.detection.engines.mmdet.protocol import configuration, test_pipeline
from transfer.detection.job import Job
from transfer.detection.spec import DetectionSpec
from transfer.detection.training import checkpoints, course, mmengine_course
from transfer.detection.training.course import ESTIMATE, Course
from transfer.detection.training.draws import after
from transfer.detection.training.steps import rle

NATIVE = "mmdet_config.py"  # a file mmdet.py would shadow the package for Python started in its folder
PACKAGES = ("mmengine", "mmcv", "mmdet", "addict", "yapf", "terminaltables", "shapely", "scipy", "termcolor",
            "pycocotools")  # fmt: skip


def prepare() -> None:
    """Apply the adaptations, register missing parts and make MMDetection's registries the default scope."""
    mmengine_course.prepare("transfer.detection.engines.mmdet.parts", "mmdet")


def missing() -> str | None:
    """Return why the engine cannot be used, or None."""
    return absent(PACKAGES)


def version() -> str:
    """Return the versions of the three packages and of the NMS and ROIAlign they call."""
    there = versions(("mmdet", "mmcv", "mmcv-lite", "mmengine"))
    operators = "compiled" if compiled() else f"torchvision {importlib.metadata.version('torchvision')}"
    return ", ".join([*(f"{name} {number}" for name, number in there.items()), f"operators {operators}"])


def compiled() -> bool:
    """True if mmcv has its own operators."""
    return mmcv_lite.is_compiled()


def try_operators() -> None:
    """Run a tiny NMS and ROIAlign through mmcv, forward and backward.

    Raises:
        BackbenchError: a result is wrong.
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
    assert pixels.grad is not None
    if not torch.allclose(pixels.grad.sum(), torch.tensor(4.0)):
        raise BackbenchError("mmcv's ROIAlign has a broken gradient")


# ---------------------------------------------------------------- training


def train(spec: DetectionSpec, backbone: Backbone, train: DetectionSplit, job: Job) -> nn.Module:
    """Train and return a detector. Resumes from the folder's last checkpoint.

    Raises:
        BackbenchError: the loaded weights differ from the exported ones, a loss is not finite, or the folder has the
            checkpoint of another run.
    """
    prepare()
    taught = new_course(spec, backbone, train, job)
    return course.run(taught, spec, checkpoints.identity(spec, backbone, train, job), job)


def new_course(spec: DetectionSpec, backbone: Backbone, train: DetectionSplit, job: Job) -> Course:
    """Build the detector with its optimiser, schedule and loader, and write the native configuration."""
    from transfer.detection.engines.mmdet.parts import losses

    cfg = write_native(spec, backbone, train, job)
    return mmengine_course.new(
        "mmdet",
        cfg,
        lambda: build(cfg, backbone, job.device),
        losses,
        lambda start: train_loader(cfg, start, job),
        job.seed,
    )


def write_native(spec: DetectionSpec, backbone: Backbone, train: DetectionSplit, job: Job) -> Any:
    """Write `backbone.pth`, `train.json`, `test.json` and `mmdet_config.py` to the job's folder. Return the configuration."""
    make_folder(job.folder)
    usable = trainable(train)
    cfg = configuration(spec, backbone, usable, job)
    if spec.masks and mask_format(usable) == "bitmask":
        job.notes.append(BITMAPS)
    if distributed.is_main():
        exporter.write(backbone, job.folder / "backbone.pth")
        native_data.write(usable, job)
        atomic_write_text(job.folder / NATIVE, mmengine_course.native_text(cfg))
    distributed.barrier()
    return cfg


def build(cfg: Any, backbone: Backbone, device: torch.device) -> nn.Module:
    """Build the detector with the backbone's weights. Compares tensors and features with the exported ones.

    Raises:
        BackbenchError: a tensor is missing, extra or different, or the trunk's features differ.
    """
    from mmdet.registry import MODELS

    model = mmengine_course.built(cfg, MODELS)
    exporter.check_engine_state(backbone, model.state_dict())
    difference = feature_difference(backbone, lambda x: trunk_stages(model.eval(), x))
    if not difference <= FEATURE_TOLERANCE:
        raise ExportError(f"MMDetection's C2..C5 differ from torchvision's by {difference:.1e} of their largest value")
    return batchnorm.synchronise_batchnorm(model.train(), device).to(device)


def trunk_stages(model: Any, x: Tensor) -> list[Tensor]:
    """Return C2..C5 of a detector for normalised RGB (N, 3, H, W). C4 has its layer4 in the head, before the extra norm."""
    trunk = model.backbone
    stages = [getattr(trunk, name) for name in trunk.res_layers]
    if len(stages) == 3:
        stages.append(model.roi_head.shared_head.layer4)
    x, found = trunk.maxpool(trunk.stem(x) if trunk.deep_stem else trunk.relu(trunk.norm1(trunk.conv1(x)))), []
    for stage in stages:
        x = stage(x)
        found.append(x)
    return found


def train_loader(cfg: Any, start: int, job: Job) -> Iterator[Any]:
    """Return endless batches from iteration `start` on. Draws the earlier iterations' random numbers without reading images.

    PreciseBN's batches (`ESTIMATE`) have a separate order.
    """
    from mmengine.runner import Runner

    begin, skip = (start, 0) if start == ESTIMATE else (0, start)
    fields = copy.deepcopy(cfg.train_dataloader)
    if skip:
        fields.batch_sampler.update(type="SkippingBatchSampler", skip=skip)
        fields.dataset.type = "DrawingDataset"
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
        loader = Runner.build_dataloader(fields, seed=(job.seed + 7919 * begin) % 2**31)
        return after(loader, skip)


# ---------------------------------------------------------------- detection


@torch.no_grad()
def detect(model: Any, spec: DetectionSpec, test: DetectionSplit, job: Job) -> list[Detections]:
    """Return the detections in every image of the split, in order, with boxes in the original image's pixels.

    Raises:
        DataError: an image cannot be decoded, or has another size than its annotation states.
    """
    prepare()
    from mmcv.transforms import Compose
    from mmengine.dataset import pseudo_collate

    model.eval()
    load = Compose(test_pipeline(spec))
    found = []
    for index in track(range(len(test)), total=len(test), label=f"detecting in {test.dataset} {test.split}"):
        picture, file = test.pictures[index], test.file(index)
        loaded = load({"img_path": str(file), "img_id": index, "width": picture.width, "height": picture.height})
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
