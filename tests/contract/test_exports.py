"""Every export target: invertible names, bitwise equal weights after reading back, refusals, settings in plain YAML."""

import dataclasses
import functools
import inspect

import pytest
import torch
import yaml
from backbones import make_backbone

from backbench.errors import ConfigError
from model_zoo import export, formats
from model_zoo.anatomy import expected_shapes
from model_zoo.architecture import Architecture, InputSpec
from model_zoo.backbone import Backbone
from model_zoo.export import ExportError
from model_zoo.load import load
from model_zoo.resnet import LAYERS

TARGETS = export.names()
BGR = InputSpec(size=96, order="bgr", mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))


shapes = functools.cache(expected_shapes)


@pytest.fixture(params=TARGETS)
def target(request):
    return export.get(request.param)


def test_the_targets_that_are_documented_are_there():
    assert {"detectron2", "mmdet"} <= set(TARGETS)
    assert set(TARGETS) <= set(formats.modules()), "exports can be read back"
    with pytest.raises(ConfigError, match="unknown target 'detectron'; did you mean 'detectron2'"):
        export.get("detectron")


def test_module_offers_what_the_registry_needs(target):
    assert target.__doc__ and len(target.__doc__.strip()) > 20
    for name, arguments in {
        "key_table": ["arch"],
        "refuse": ["backbone"],
        "export": ["backbone"],
        "write": ["backbone", "path"],
        "settings": ["backbone"],
        "check_engine_state": ["backbone", "state"],
    }.items():
        function = getattr(target, name)
        assert function.__doc__
        assert list(inspect.signature(function).parameters) == arguments


@pytest.mark.parametrize(
    ("name", "width"),
    [*((name, 1) for name in sorted(LAYERS)), ("resnet18", 0.25), ("resnet50", 0.25), ("resnet50", 2)],
)
def test_names_are_those_of_the_trunk_and_invertible(target, name, width):
    arch = Architecture(name=name, width=width)
    table = target.key_table(arch)
    assert set(table) == set(shapes(arch))
    assert len(set(table.values())) == len(table)


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("resnet18", 1),
        ("resnet50", 0.125),
        ("resnet50", 0.25),  # its first block has no shortcut
        ("resnet101", 0.125),
        pytest.param("resnet34", 1, marks=pytest.mark.slow),
        pytest.param("resnet50", 1, marks=pytest.mark.slow),
    ],
)
def test_weights_come_back_bit_for_bit(target, name, width, tmp_path):
    before = make_backbone(name, width, stride_in_1x1=True, spec=InputSpec(size=96, mean=(0.1, 0.2, 0.3)))
    target.write(before, tmp_path / "out.pkl")
    after = load(tmp_path / "out.pkl")
    assert after.format == target.__name__.rpartition(".")[2]
    assert (after.arch, after.input) == (before.arch, before.input)
    assert list(after.state) == list(before.state)
    assert after.weights_sha256 == before.weights_sha256
    assert all(torch.equal(after.state[k], before.state[k]) for k in before.state if not k.endswith("_tracked"))


@pytest.mark.parametrize(
    "fields",
    [{"groups": 4, "base_width": 32}, {"base_width": 128}, {"stem": "deep"}, {"stem": "deep", "avg_down": True}],
    ids=str,
)
def test_relatives_come_back_bit_for_bit_or_are_refused(target, fields, tmp_path):
    before = make_backbone("resnet50", 0.125, spec=BGR, **fields)
    table = target.key_table(before.arch)
    assert set(table) == set(shapes(before.arch)) and len(set(table.values())) == len(table)
    try:
        target.write(before, tmp_path / "out.pkl")
    except ExportError:
        assert list(tmp_path.iterdir()) == [], "a refused backbone writes nothing"
        return
    after = load(tmp_path / "out.pkl")
    assert after.arch == before.arch
    assert after.weights_sha256 == export.in_rgb(before).weights_sha256
    target.check_engine_state(before, engine_state(target, export.in_rgb(before)))


def test_a_bgr_backbone_leaves_as_the_same_function_of_rgb(target, tmp_path):
    before = make_backbone(spec=BGR)
    target.write(before, tmp_path / "out.pkl")
    after = load(tmp_path / "out.pkl")
    assert (after.input.order, after.input.size) == ("rgb", 96)
    assert after.weights_sha256 == export.in_rgb(before).weights_sha256 != before.weights_sha256
    image = torch.rand(
        2, 3, 48, 48, dtype=torch.float64
    )  # RGB in [0, 1]; double, so that the order of sums is irrelevant
    channels = {"rgb": [0, 1, 2], "bgr": [2, 1, 0]}
    features = []
    for backbone in (before, after):
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (backbone.input.mean, backbone.input.std))
        with torch.no_grad():
            features.append(backbone.build().eval().double()((image[:, channels[backbone.input.order]] - mean) / std))
    torch.testing.assert_close(features[1], features[0], rtol=1e-6, atol=1e-6)
    wrong = (image - torch.tensor(before.input.mean).view(3, 1, 1)) / torch.tensor(before.input.std).view(3, 1, 1)
    with torch.no_grad():
        assert not torch.allclose(before.build().eval().double()(wrong), features[0], rtol=1e-2)


def test_the_settings_file_is_the_settings(target, tmp_path):
    backbone = make_backbone(spec=BGR)
    target.write(backbone, tmp_path / "out.pkl")
    assert yaml.safe_load((tmp_path / "out.pkl.settings.yaml").read_text()) == target.settings(backbone)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.pkl", "out.pkl.settings.yaml", "out.pkl.yaml"]


@pytest.mark.parametrize("arch", [{"stem": "3x3"}, {"stem": "3x3-nopool"}, {"pool_padding": "end"}])
def test_what_an_engine_cannot_build_is_refused(target, arch, tmp_path):
    backbone = Backbone("x", Architecture(name="resnet50", **arch), {}, InputSpec(), "test", "backbench")
    for attempt in (target.export, target.settings, lambda b: target.write(b, tmp_path / "out.pkl")):
        with pytest.raises(ExportError, match=next(iter(arch.values()))):
            attempt(backbone)
    assert list(tmp_path.iterdir()) == []


def engine_state(target, backbone, prefix=""):
    """Return the state of the engine's ResNet after loading the export, built from the key table."""
    table = target.key_table(backbone.arch)
    bare = {table[name].removeprefix("backbone."): tensor.clone() for name, tensor in backbone.state.items()}
    return {prefix + name: tensor for name, tensor in bare.items()}


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_a_loaded_engine_passes(target, prefix):
    backbone = make_backbone()
    state = engine_state(target, backbone, prefix) | {"rpn.conv.weight": torch.zeros(2)}
    for name in [n for n in state if n.endswith("num_batches_tracked")]:
        state[name] += 3  # not part of the function
    target.check_engine_state(backbone, state)


def test_an_engine_that_did_not_load_everything_is_named(target):
    backbone = make_backbone()
    exported = engine_state(target, backbone)
    last = [name for name in exported if name.endswith("weight")][-1]
    cases = {
        "another": (exported | {last: exported[last] + 1e-6}, rf"^1 of \d+ tensors in .*: {last}$"),
        "missing": ({n: t for n, t in exported.items() if n != last}, rf"no place for 1 of \d+ tensors: {last}$"),
        "shape": (exported | {last: exported[last][:1]}, rf"^1 of \d+ tensors in .*: {last}$"),
        "prefix": ({f"model.{n}": t for n, t in exported.items()}, r"has no .*conv1\.weight .*start with model\."),
        "empty": ({}, "start with none"),
        "nan": (exported | {last: exported[last] * torch.nan}, last),
    }
    for state, words in cases.values():
        with pytest.raises(ExportError, match=words):
            target.check_engine_state(backbone, state)


def test_an_engine_of_another_depth_is_named(target):
    r50, r101 = make_backbone("resnet50"), make_backbone("resnet101")
    deeper = engine_state(target, r101) | engine_state(target, r50)  # has every tensor of the shallow one
    with pytest.raises(ExportError, match="tensors that were not exported"):
        target.check_engine_state(r50, deeper)
    with pytest.raises(ExportError, match="no place for"):
        target.check_engine_state(r101, engine_state(target, r50))


def test_an_engine_that_got_bgr_weights_is_named(target):
    """The export reverses conv1's channels; the backbone's own file must not pass for it."""
    backbone = make_backbone(spec=BGR)
    with pytest.raises(ExportError, match=r"^1 of \d+ tensors in .*conv1\.weight$"):
        target.check_engine_state(backbone, engine_state(target, backbone))
    target.check_engine_state(backbone, engine_state(target, export.in_rgb(backbone)))


def test_identity_of_the_turned_backbone_is_not_the_cached_one():
    backbone = make_backbone(spec=BGR)
    sha = backbone.weights_sha256
    turned = export.in_rgb(backbone)
    assert turned.weights_sha256 != sha
    back = dataclasses.replace(turned, input=turned.input.model_copy(update={"order": "bgr"}))
    assert export.in_rgb(back).weights_sha256 == sha
    assert export.in_rgb(turned) is turned


def test_a_backbone_of_other_tensors_has_a_hash_of_its_own():
    backbone = make_backbone()
    sha = backbone.weights_sha256
    state = {**backbone.state, "conv1.weight": backbone.state["conv1.weight"] + 1}
    assert dataclasses.replace(backbone, state=state).weights_sha256 != sha == backbone.weights_sha256
