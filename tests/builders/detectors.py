"""Rendered scenes as detection splits, and detectors small enough for a test."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from backbones import initial
from PIL import Image
from torch import nn

from backbench import batchnorm
from backbench.data.demo import render
from backbench.data.splits import Files
from model_zoo.architecture import Architecture, InputSpec
from model_zoo.backbone import Backbone
from transfer.detection import engines
from transfer.detection.annotations.split import DetectionSplit, Instance, Picture
from transfer.detection.job import Job
from transfer.detection.spec import DetectionSpec
from transfer.detection.training.steps import parallel

WEIGHTS = {"detectron2": "model", "mmdet": "state_dict"}  # where a checkpoint has them
ALL = 1_000_000  # more than there are anchors or proposals: nothing is drawn


def scenes(folder: Path, count: int, *, first: int = 0) -> DetectionSplit:
    """`count` pictures of 160 x 128 pixels with one to four shapes each, polygons as masks."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = []
    for number in range(first, first + count):
        pixels, placed = render.render_scene(np.random.default_rng(number))
        Image.fromarray(pixels).save(folder / f"{number}.png")
        instances = tuple(Instance(p.label, p.box, mask=[p.polygon.reshape(-1).tolist()]) for p in placed)
        pictures.append(Picture(str(number), *render.SCENE, instances))
    files = Files(folder, tuple(f"{p.id}.png" for p in pictures))
    return DetectionSplit("scenes", "train", files, tuple(pictures), render.CLASSES)


def trained_like(name: str, *, seed: int = 0, order: str = "rgb") -> Backbone:
    """A backbone whose statistics are not those of a fresh one, so that no tensor is what an engine starts with."""
    arch = Architecture(name=name)
    generator = torch.Generator().manual_seed(seed)
    state = initial(arch, seed)
    for key, tensor in state.items():
        if key.endswith("running_mean"):
            state[key] = torch.randn(tensor.shape, generator=generator) * 0.1
        elif key.endswith(("running_var", "bn1.weight", "bn2.weight", "bn3.weight", "downsample.1.weight")):
            state[key] = 0.75 + 0.5 * torch.rand(tensor.shape, generator=generator)
    spec = InputSpec(mean=(0.4, 0.45, 0.5), std=(0.2, 0.25, 0.3), order=order)
    return Backbone("trained", arch, state, spec, "test", "backbench")


def short(head: str = "fpn", **fields: object) -> DetectionSpec:
    """A few iterations of two small images."""
    values = {
        "head": head, "masks": head == "fpn", "iterations": 4, "batch": 2, "lr": 0.005, "milestones": (3,), "warmup": 2,
        "sides_train": (64, 80), "side_test": 80, "side_max": 128, "rois": 16, "proposals_train": (60, 30),
        "proposals_test": (60, 20), "precise_bn": 2, "score_threshold": 0.0, "detections": 10,
    }  # fmt: skip
    return DetectionSpec.model_validate({**values, **fields})


def lively(model: nn.Module) -> None:
    """Heads whose boxes and scores differ from place to place."""
    generator = torch.Generator().manual_seed(3)
    for name, p in model.named_parameters():
        if name.endswith("weight") and ("cls" in name or "predictor" in name or "logits" in name):
            p.data = torch.randn(p.shape, generator=generator) * 0.3
        elif name.endswith("weight") and ("reg" in name or "deltas" in name):
            p.data = torch.randn(p.shape, generator=generator) * 0.03


def used(fresh: Backbone, split: DetectionSplit) -> Backbone:
    """A backbone with statistics of real activations."""
    trunk = fresh.build().train()
    for module in trunk.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    pixels = np.stack([np.asarray(split.source.pil(i)) for i in range(len(split))]).transpose(0, 3, 1, 2)
    trunk((torch.from_numpy(pixels).float() / 255 - 0.45) / 0.225)
    return dataclasses.replace(fresh, state=trunk.state_dict())


def exhaustive(ours: Any, theirs: Any) -> None:
    """No sampling: every anchor and every proposal counts, whatever it is."""
    for part in ("rpn", "rcnn"):
        ours.model.train_cfg[part].sampler.update(num=ALL, pos_fraction=1.0)
    for part in (theirs.MODEL.RPN, theirs.MODEL.ROI_HEADS):
        part.BATCH_SIZE_PER_IMAGE, part.POSITIVE_FRACTION = ALL, 1.0


def as_detectron2(batch: dict[str, Any], masks: str | None) -> list[dict[str, Any]]:
    """A collated batch of MMDetection's pipeline, resized and flipped, in Detectron2's form."""
    from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks

    items = []
    for image, sample in zip(batch["inputs"], batch["data_samples"], strict=True):
        truth, instances = sample.gt_instances, Instances(tuple(image.shape[1:]))
        instances.gt_boxes, instances.gt_classes = Boxes(truth.bboxes.tensor.clone()), truth.labels
        if masks == "runs":
            instances.gt_masks = BitMasks(torch.from_numpy(truth.masks.to_ndarray()))
        elif masks:
            instances.gt_masks = PolygonMasks([list(polygons) for polygons in truth.masks.masks])
        items.append({"image": image.flip(0), "instances": instances})
    return items


def stem(model: nn.Module) -> str:
    return next(name for name, _ in model.named_parameters() if name.endswith("stem.conv1.weight"))


def step(name: str, folder: Path, rows: list[int], device: torch.device) -> dict[str, torch.Tensor]:
    """Losses, some gradients and the statistics after a step on two scenes, or on one of them; nothing is drawn."""
    engine, backbone = engines.get(name), trained_like("resnet18")
    spec = short("c4", sides_train=(64,), proposals_train=(400, 20))
    split, job = two_alike(scenes(folder / "images", 8)), Job(folder.parent / "run", 0, device)
    for one in ("mmdet", "detectron2"):
        engines.get(one).prepare()
    configurations = {one: engines.get(one).write_native(spec, backbone, split, job) for one in ("mmdet", "detectron2")}
    exhaustive(*configurations.values())
    data = configurations["mmdet"]
    data.model.train_cfg.rpn.assigner.neg_iou_thr = 0.7  # no anchor is ignored: as many count in each image
    data.train_dataloader.dataset.pipeline[3].prob = 0.0  # no flip
    torch.manual_seed(0)
    model = batchnorm.synchronise_batchnorm(engine.build(configurations[name], backbone, device), device)
    batch, forward = batch_of(data, rows), parallel(model, device)
    if name == "mmdet":
        from transfer.detection.engines.mmdet.parts import losses

        found, first = losses(model, batch, forward), "backbone.conv1.weight"
    else:
        from detectron2.utils.events import EventStorage

        with EventStorage():
            found, first = forward(as_detectron2(batch, None)), stem(model)
    sum(found.values()).backward()
    statistics = {n: b.clone() for n, b in model.named_buffers() if "running" in n}
    gradients = {f"gradient of {n}": model.get_parameter(n).grad for n in (first, f"{heads(model)}.weight")}
    return {n: v.detach() for n, v in (found | statistics | gradients).items()}


def heads(model: nn.Module) -> str:
    """The first layer of the proposal network."""
    return next(n for n, m in model.named_modules() if n.endswith(("rpn_head.rpn_conv", "rpn_head.conv")))


def two_alike(split):
    """Two images with as many objects: each rank's losses are means over as many proposals."""
    from transfer.detection.annotations.split import of_rows

    counts = [len(picture.instances) for picture in split.pictures]
    return of_rows(split, [i for i, n in enumerate(counts) if n == 3][:2])


def batch_of(cfg, rows: list[int]):
    """These images of MMDetection's own data set, collated."""
    from mmdet.registry import DATASETS
    from mmengine.dataset import pseudo_collate

    data = DATASETS.build(cfg.train_dataloader.dataset)
    return pseudo_collate([data[row] for row in rows])
