"""With the same weights both engines give the same losses, gradients and detections."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectors import ALL, as_detectron2, exhaustive, lively, stem, used

from model_zoo.backbone import Backbone
from transfer.detection import engines
from transfer.detection.annotations.split import DetectionSplit
from transfer.detection.job import Job
from transfer.detection.spec import DetectionSpec
from transfer.detection.training.steps import rle

pytestmark = pytest.mark.slow

HEADS = {  # Detectron2's names -> MMDetection's
    "proposal_generator.rpn_head.conv": "rpn_head.rpn_conv",
    "proposal_generator.rpn_head.objectness_logits": "rpn_head.rpn_cls",
    "proposal_generator.rpn_head.anchor_deltas": "rpn_head.rpn_reg",
    "roi_heads.box_predictor.cls_score": "roi_head.bbox_head.fc_cls",
    "roi_heads.box_predictor.bbox_pred": "roi_head.bbox_head.fc_reg",
    "roi_heads.box_head.fc1": "roi_head.bbox_head.shared_fcs.0",
    "roi_heads.box_head.fc2": "roi_head.bbox_head.shared_fcs.1",
    "roi_heads.res5.norm": "roi_head.shared_head.norm",
    "roi_heads.mask_head.deconv": "roi_head.mask_head.upsample",
    "roi_heads.mask_head.predictor": "roi_head.mask_head.conv_logits",
    **{f"roi_heads.mask_head.mask_fcn{i + 1}": f"roi_head.mask_head.convs.{i}.conv" for i in range(4)},
    **{f"backbone.fpn_{kind}{i + 2}.norm": f"neck.{part}.{i}.bn"
       for kind, part in (("lateral", "lateral_convs"), ("output", "fpn_convs")) for i in range(4)},
    **{f"backbone.fpn_{kind}{i + 2}": f"neck.{part}.{i}.conv"
       for kind, part in (("lateral", "lateral_convs"), ("output", "fpn_convs")) for i in range(4)},
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _both_engines():
    for name in engines.names():
        reason = engines.get(name).missing()
        if reason is not None:
            pytest.skip(reason)
    for name in engines.names():
        engines.get(name).prepare()


def pair(
    spec: DetectionSpec, fresh: Backbone, split: DetectionSplit, folder: Path, change: Callable[[Any, Any], None]
) -> tuple[Any, torch.nn.Module, torch.nn.Module]:
    """MMDetection's configuration and detector, and Detectron2's detector with the same weights.

    `change` may alter both configurations before the detectors are built.
    """
    theirs, ours = engines.get("detectron2"), engines.get("mmdet")
    shared, job = used(fresh, split), Job(folder, 0, torch.device("cpu"))
    configurations = [engine.write_native(spec, shared, split, job) for engine in (ours, theirs)]
    change(*configurations)
    a, b = (e.build(c, shared, job.device) for e, c in zip((ours, theirs), configurations, strict=True))
    lively(a)
    state, mine = b.state_dict(), a.state_dict()
    named = {
        n: HEADS[n.rpartition(".")[0]] + "." + n.rpartition(".")[2] for n in state if n.rpartition(".")[0] in HEADS
    }
    assert len(named) == {"c4": 6 + 4 + 5, "fpn": 6 + 4 + 4 + 12 + 48}[spec.head]
    b.load_state_dict({**state, **{n: mine[m].reshape(state[n].shape) for n, m in named.items()}})
    return configurations[0], a, b


# ---------------------------------------------------------------- losses


def with_runs(split: DetectionSplit) -> DetectionSplit:
    """Return the split with masks as COCO's run lengths."""
    from pycocotools import mask as coco_mask

    pictures = []
    for p in split.pictures:
        masks = [coco_mask.decode(coco_mask.frPyObjects(o.mask, p.height, p.width)).any(-1) for o in p.instances]
        objects = tuple(dataclasses.replace(o, mask=rle(m)) for o, m in zip(p.instances, masks, strict=True))
        pictures.append(dataclasses.replace(p, instances=objects))
    return dataclasses.replace(split, pictures=tuple(pictures))


@pytest.mark.parametrize(("head", "masks"), [("c4", None), ("fpn", "polygons"), ("fpn", "runs")])
@pytest.mark.sample(2)
def test_losses_and_gradients_are_the_same(tmp_path, head, masks, scenes, short, trained_like):
    """Two images of different sizes, norms in train mode: each loss to 1e-5, the stem's gradient to 1e-4 (relative)."""
    from detectron2.utils.events import EventStorage

    from transfer.detection.engines.mmdet.parts import losses

    engine, split = engines.get("mmdet"), scenes(tmp_path / "images", 4)
    if masks == "runs":
        split = with_runs(split)
    cfg, ours, theirs = pair(short(head), trained_like("resnet18"), split, tmp_path / "run", exhaustive)
    batches = engine.train_loader(cfg, 0, Job(tmp_path, 0, torch.device("cpu")))
    batch = next(b for b in batches if b["inputs"][0].shape != b["inputs"][1].shape)
    items = as_detectron2(batch, masks)
    found = losses(ours.train(), batch)
    with EventStorage() as storage:
        expected = theirs.train()(items)
        anchors = [storage.latest()[f"rpn/num_{kind}_anchors"][0] for kind in ("pos", "neg")]
        foreground = storage.latest()["roi_head/num_fg_samples"][0] if head == "fpn" else 1
    assert min(anchors) > 0 and foreground > 0
    for name in ("loss_rpn_cls", "loss_rpn_loc"):  # a share of the anchors asked for, not of those that were there
        expected[name] = expected[name] * ALL / sum(anchors)
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert float(value.detach()) > 1e-3, name
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")
    sum(found.values()).backward()
    sum(expected.values()).backward()
    stems = [model.get_parameter(n).grad for model, n in ((ours, "backbone.conv1.weight"), (theirs, stem(theirs)))]
    assert float((stems[0] - stems[1]).norm() / stems[1].norm()) < 1e-4


# ---------------------------------------------------------------- detections


@pytest.mark.parametrize("head", ["c4", "fpn"])
@pytest.mark.sample(1)
def test_detections_are_the_same(tmp_path, head, scenes, short, trained_like):
    fields = {"score_threshold": 0.1, "detections": 100, "side_test": 96, "side_max": 160, "proposals_test": (200, 50)}
    spec, test = short(head, **fields), scenes(tmp_path / "images", 4)
    _, ours, theirs = pair(spec, trained_like("resnet18"), test, tmp_path / "run", lambda *_: None)
    job = Job(tmp_path / "run", 0, torch.device("cpu"))
    found = engines.get("mmdet").detect(ours, spec, test, job)
    expected = engines.get("detectron2").detect(theirs, spec, test, job)
    total = 0
    for a, b in zip(found, expected, strict=True):
        assert len(a.scores) == len(b.scores)
        total += len(a.scores)
        np.testing.assert_allclose(a.scores, b.scores, atol=1e-4)
        for i in range(len(a.scores)):  # equal scores may change places
            near = [j for j in range(len(b.scores)) if a.labels[i] == b.labels[j] and abs(a.scores[i] - b.scores[j]) < 1e-4
                    and np.abs(a.boxes[i] - b.boxes[j]).max() < 0.02]  # fmt: skip
            assert near, (i, a.labels[i], a.scores[i], a.boxes[i])
            if spec.masks:
                from pycocotools import mask as coco_mask

                assert max(coco_mask.iou([a.masks[i]], [b.masks[j] for j in near], [0] * len(near))[0]) > 0.98
    assert total > 20
