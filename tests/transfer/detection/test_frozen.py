"""A frozen backbone: cells, both engines' training, and the error when it moves."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from backbench.config import build, digest
from backbench.errors import BackbenchError
from benchmarks import plan
from benchmarks.price import detection as pricing
from model_zoo import export
from transfer.detection import engines
from transfer.detection.job import Job
from transfer.detection.training import checkpoints, course, frozen

HEADS = {"c4": {"detectron2": "roi_heads.res5.", "mmdet": "roi_head.shared_head."}, "fpn": {}}


@pytest.mark.parametrize(
    ("cell", "pair", "head"),
    [
        ("voc0712_frozen_detection", "voc0712_detection", "c4"),
        ("coco_frozen_detection", "coco_detection", "fpn"),
    ],
)
def test_the_frozen_cells_differ_from_their_pairs_in_one_field(cell, pair, head):
    found, plain = plan.load_cell(cell).config, plan.load_cell(pair).config
    assert found.frozen and not plain.frozen and found.spec.head == head
    assert found.model_copy(update={"frozen": False}) == plain
    assert "frozen" not in plain.model_dump(mode="json"), "records of before keep their identity"
    assert digest(found.identity()) != digest(plain.identity())
    assert build(type(found), found.model_dump(mode="json")) == found
    assert plan.load_cell(pair, ["frozen=true"]).config == found


def storage(name: str) -> contextlib.AbstractContextManager[Any]:
    """Detectron2's models write to an event storage."""
    if name != "detectron2":
        return contextlib.nullcontext()
    from detectron2.utils.events import EventStorage

    return EventStorage()


def trunk(model: nn.Module) -> nn.Module:
    return getattr(model.backbone, "bottom_up", model.backbone)


def copied(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}


@pytest.mark.slow
@pytest.mark.parametrize("head", ["c4", "fpn"])
@pytest.mark.sample(1)
def test_a_frozen_backbone_is_the_exported_one_after_training(name, head, scenes, short, trained_like, tmp_path):
    """Neck and heads learn, PreciseBN estimates their norms only, and nothing of the trunk moves or gets a gradient."""
    engine, backbone, split = engines.get(name), trained_like("resnet18"), scenes(tmp_path / "images", 3)
    job = Job(tmp_path / "run", 0, torch.device("cpu"), log_every=1, frozen=True)
    spec = short(head, iterations=2, milestones=(), precise_bn=1, rois=8, sides_train=(64,))
    taught = engine.new_course(spec, backbone, split, job)
    before = copied(taught.model)
    with storage(name):
        model = course.run(taught, spec, checkpoints.identity(spec, backbone, split, job), job)
    own = {id(p) for p in trunk(model).parameters()}
    assert own and all(p.grad is None and not p.requires_grad for p in trunk(model).parameters())
    assert all(p.requires_grad for p in model.parameters() if id(p) not in own)
    norms = [m for m in trunk(model.train()).modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert not any(norm.training for norm in norms), "constants in Detectron2, in evaluation mode in MMDetection"
    after = model.state_dict()
    moved = {key for key in after if not torch.equal(after[key], before[key])}
    inside = {key for key in after if key.startswith(("backbone.", "backbone.bottom_up.")) and "fpn" not in key}
    assert not moved & inside
    assert any("rpn" in key or "proposal_generator" in key for key in moved)
    learned = HEADS[head].get(name, "fpn" if name == "detectron2" else "neck.")
    assert any(learned in key and key.endswith("weight") for key in moved)
    assert any(learned in key and key.endswith("running_mean") for key in moved), "PreciseBN"
    frozen.confirm(model, export.get(name), backbone, spec, job)
    assert job.notes[-1].startswith("frozen backbone: unchanged after training, SHA-256 ")
    assert job.notes[-1].endswith("its last stage is the head of C4 and was trained") == (head == "c4")
    with torch.no_grad():
        next(trunk(model).parameters())[0] += 1e-6
    with pytest.raises(
        BackbenchError, match=r"1 of \d+ tensors of .*'s frozen backbone changed while the detector was"
    ):
        frozen.confirm(model, export.get(name), backbone, spec, job)


HEAD_AND_STAGE = {"detectron2": ("roi_heads.", "res5."), "mmdet": ("roi_head.shared_head.", "layer4.")}


@pytest.mark.parametrize("engine", HEAD_AND_STAGE)
@pytest.mark.parametrize("c4", [True, False], ids=["c4", "fpn"])
def test_a_changed_tensor_of_the_trunk_is_named_and_one_of_the_head_is_not(engine, c4, trained_like, short, tmp_path):
    exporter, backbone = export.get(engine), trained_like("resnet18")
    head, stage = HEAD_AND_STAGE[engine]
    state = {}
    for ours, theirs in exporter.key_table(backbone.arch).items():
        name = theirs.removeprefix("backbone.")
        in_head = c4 and name.startswith(stage)
        state[(head if in_head else "backbone.") + name] = backbone.state[ours].clone()
    job, spec = Job(tmp_path, 0, torch.device("cpu")), short("c4" if c4 else "fpn")

    def confirm() -> None:
        frozen.confirm(SimpleNamespace(state_dict=lambda: state), exporter, backbone, spec, job)

    confirm()
    last = next(key for key in state if stage in key)
    state[last] += 1
    if c4:
        confirm()
        assert job.notes[0] == job.notes[1], "the head of C4 is trained"
        last = next(key for key in state if stage not in key)
        state[last] += 1
    with pytest.raises(BackbenchError, match=rf"1 of \d+ tensors of .*: {last}; remove "):
        confirm()


def test_a_checkpoint_of_a_detector_with_another_backbone_state_is_refused(short, trained_like, scenes, tmp_path):
    split, backbone = scenes(tmp_path / "images", 1), trained_like("resnet18")
    jobs = [Job(tmp_path, 0, torch.device("cpu"), frozen=value) for value in (False, True)]
    plain, other = (checkpoints.identity(short(), backbone, split, job) for job in jobs)
    assert {key for key in plain if plain[key] != other[key]} == {"frozen"}


@pytest.mark.parametrize("cell", ["voc0712_detection", "coco_detection"])
def test_a_frozen_trunk_costs_its_forward_passes_only(cell, trained_like):
    backbone, one = trained_like("resnet18"), plan.load_cell(cell, ["spec.sides_train=[600]"])
    other = plan.load_cell(cell, ["spec.sides_train=[600]", "frozen=true"])
    counts = (100, 10, 20)
    whole, part = (pricing.detection(each.config, backbone, counts)[1].detection for each in (one, other))
    spec = one.config.spec
    assert whole - part == pytest.approx(2 * 16 * spec.iterations * pricing.trunk_operations(spec, backbone, 600))
