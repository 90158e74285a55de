"""Rendered scenes as detection splits, and a course small enough for a test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from backbench.data.demo import render
from backbench.data.splits import Files
from model_zoo.architecture import Architecture, InputSpec
from model_zoo.backbone import Backbone
from model_zoo.resnet import build
from transfer.detection.annotations.split import DetectionSplit, Instance, Picture
from transfer.detection.spec import DetectionSpec


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
    state = dict(build(arch, seed=seed).state_dict())
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


@pytest.fixture(scope="session", name="scenes")
def scenes_fixture() -> Callable[..., DetectionSplit]:
    """`scenes(folder, count)`."""
    return scenes


@pytest.fixture(scope="session", name="short")
def short_fixture() -> Callable[..., DetectionSpec]:
    """`short(head, **fields)`."""
    return short


@pytest.fixture(scope="session", name="trained_like")
def trained_like_fixture() -> Callable[..., Backbone]:
    """`trained_like(architecture)`."""
    return trained_like
