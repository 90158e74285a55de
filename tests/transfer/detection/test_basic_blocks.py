"""Faster R-CNN C4 on ResNet-18 and -34: both engines build the head from basic blocks, train it and detect."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from transfer.detection import engines
from transfer.detection.annotations.split import of_rows
from transfer.detection.job import Job
from transfer.detection.run import DetectionConfig, unfit

BLOCKS = {"resnet18": 2, "resnet34": 3}  # of the last stage


@pytest.mark.parametrize("arch", BLOCKS)
@pytest.mark.parametrize("engine", engines.names())
def test_no_engine_refuses_a_c4_detector_of_basic_blocks(engine, arch, trained_like, short):
    assert unfit(trained_like(arch), DetectionConfig(engine=engine, spec=short("c4"))) is None


def head_of(model: nn.Module, engine: str) -> tuple[int, nn.Module]:
    """Return the number of blocks of the last stage and the extra norm after it."""
    if engine == "mmdet":
        return len(model.roi_head.shared_head.layer4), model.roi_head.shared_head.norm
    return len(model.roi_heads.res5) - 1, model.roi_heads.res5.norm


@pytest.mark.slow
@pytest.mark.parametrize("arch", BLOCKS)
@pytest.mark.sample(0)
def test_c4_of_basic_blocks_trains_and_detects(name, arch, scenes, short, trained_like, tmp_path):
    engine, split = engines.get(name), scenes(tmp_path / "images", 2)
    job = Job(tmp_path / "run", 0, torch.device("cpu"))
    spec = short("c4", iterations=1, milestones=(), precise_bn=1, rois=8, sides_train=(64,))
    model = engine.train(spec, trained_like(arch), split, job)
    blocks, norm = head_of(model, name)
    assert blocks == BLOCKS[arch] and norm.num_features == 512
    assert not torch.equal(norm.running_mean, torch.zeros(512)), "the extra norm saw the proposals"
    (found,) = engine.detect(model, spec, of_rows(split, [0]), job)
    assert len(found.scores) == len(found.boxes) <= spec.detections
