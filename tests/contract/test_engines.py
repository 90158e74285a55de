"""Every detection engine offers the required functions, and cells can name it."""

from __future__ import annotations

import inspect
import re
import typing
from pathlib import Path

import pytest
import torch
from backbones import make_backbone
from PIL import Image

from backbench.data.splits import Files
from backbench.errors import ConfigError
from model_zoo.architecture import Architecture, architecture_fields
from model_zoo.export import ExportError, feature_difference
from transfer.detection import engines
from transfer.detection.annotations.split import DetectionSplit, Instance, Picture
from transfer.detection.job import Job
from transfer.detection.run import DetectionConfig, unfit
from transfer.detection.spec import DetectionSpec


def test_the_engines_of_the_protocols_are_there():
    assert {"detectron2", "mmdet"} <= set(engines.names())


def test_a_cell_can_name_every_engine_and_no_other():
    assert sorted(typing.get_args(DetectionConfig.model_fields["engine"].annotation)) == engines.names()


@pytest.mark.parametrize("name", engines.names())
def test_module_offers_an_engine(name):
    engine = engines.get(name)
    assert engine.__doc__
    for function, member in vars(engines.Engine).items():
        if inspect.isfunction(member) and not function.startswith("_"):
            offered = getattr(engine, function)
            assert offered.__doc__
            wanted = [p for p in inspect.signature(member).parameters if p != "self"]
            assert list(inspect.signature(offered).parameters) == wanted, function


@pytest.mark.parametrize("name", engines.names())
def test_absence_is_a_reason_that_says_what_to_do(name):
    reason = engines.get(name).missing()
    assert reason is None or "python -m transfer.detection install" in reason


@pytest.mark.slow
@pytest.mark.parametrize("name", engines.names())
def test_a_present_engine_names_its_version_and_works(name):
    engine = engines.get(name)
    if engine.missing() is not None:
        pytest.skip(engine.missing())
    engine.prepare()
    engine.prepare()  # may be called more than once
    assert any(character.isdigit() for character in engine.version())
    assert isinstance(engine.compiled(), bool)
    engine.try_operators()


def test_an_unknown_engine_names_the_nearest():
    with pytest.raises(ConfigError, match="unknown engine 'detectron'; did you mean 'detectron2'"):
        engines.get("detectron")


ARCHITECTURES = [  # variants of a ResNet; narrow, so that they are built quickly
    {},
    {"name": "resnet18", "width": 1},
    {"groups": 4, "base_width": 32},
    {"groups": 4, "base_width": 32, "stride_in_1x1": True},
    {"base_width": 128},
    {"stem": "deep"},
    {"stem": "deep", "stem_width": 2.0},
    {"avg_down": True},
    {"stem": "deep", "avg_down": True, "groups": 8, "base_width": 16},
    {"stem": "deep", "avg_down": True, "name": "resnet34"},
    {"stem": "deep", "avg_down": True, "stride_in_1x1": True},
    {"stem": "deep-tiered", "avg_down": True},
    {"stem": "deep", "base_width": 128},
    {"name": "resnet101", "groups": 4, "base_width": 32, "width": 0.25},
    {"name": "resnet26"},
    {"name": "resnet200"},
    {"name": "resnet152", "groups": 4, "base_width": 32},
]
CANNOT = {  # a word in the reason why an engine cannot build it
    "detectron2": [("resnet26", "18, 34, 50"), ("resnet200", "18, 34, 50"), ("deep", "three of 3x3"), ("avg_down", "avg_down"),
                   ("resnet18", None), ("resnet34", "width 1 only")],
    "mmdet": [("resnet26", "18, 34, 50"), ("resnet200", "18, 34, 50"), ("deep-tiered", "deep-tiered"),
              ("base_width=128", "Wide ResNet")],
}  # fmt: skip


def cannot(engine: str, arch: Architecture) -> str | None:
    """Return the word, or None if the engine must build it."""
    return next((word for feature, word in CANNOT[engine] if feature in architecture_fields(arch)), None)


def tiny_split(folder: Path) -> DetectionSplit:
    Image.new("RGB", (64, 48)).save(folder / "a.png")
    picture = Picture("a", 64, 48, (Instance(0, (2, 2, 30, 40)),))
    return DetectionSplit("voc", "trainval", Files(folder, ("a.png",)), (picture,), ("cup",))


def words(fields: dict[str, object]) -> str:
    return " ".join(f"{k}={v}" for k, v in fields.items())


# With the other head where stages differ: a res5 in the trunk, basic blocks, groups, deep stems.
CASES = [("c4", fields) for fields in ARCHITECTURES]
CASES += [("fpn", fields) for fields in ARCHITECTURES if fields in ({}, *ARCHITECTURES[1:4], ARCHITECTURES[8])]


@pytest.mark.slow
@pytest.mark.parametrize(("head", "fields"), CASES, ids=[f"{head} {words(fields)}" for head, fields in CASES])
@pytest.mark.parametrize("name", engines.names())
@pytest.mark.sample(14)
def test_an_engine_holds_the_backbone_or_says_why_not(name, fields, head, tmp_path):
    """`build` compares every tensor and the features, with either head, so it never builds another network."""
    engine = engines.get(name)
    if engine.missing() is not None:
        pytest.skip(engine.missing())
    engine.prepare()
    backbone = make_backbone(**{"width": 0.25, **fields})
    spec = DetectionSpec(
        head=head, iterations=3, batch=2, lr=0.01, warmup=1, precise_bn=1, rois=16, side_max=160, sides_train=(64,),
        side_test=96, masks=False, proposals_train=(200, 50), proposals_test=(200, 50),
    )  # fmt: skip
    config = DetectionConfig(engine=name, spec=spec, data={"name": "voc"})
    if word := cannot(name, backbone.arch):
        assert word in (unfit(backbone, config) or ""), "the cell is skipped with the reason"
        with pytest.raises(ExportError, match=re.escape(word)):
            engine.train(spec, backbone, tiny_split(tmp_path), Job(tmp_path / "run", 0, torch.device("cpu")))
        return
    assert unfit(backbone, config) is None
    cfg = engine.write_native(spec, backbone, tiny_split(tmp_path), Job(tmp_path / "run", 0, torch.device("cpu")))
    model = engine.build(cfg, backbone, torch.device("cpu"))
    assert feature_difference(backbone, lambda x: engine.trunk_stages(model.eval(), x)) < 1e-4
    assert any("backbone" in parameter for parameter, _ in model.named_parameters())
