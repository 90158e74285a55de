"""Files for Detectron2 and MMDetection: their contents, reading them back, and loading them into the engines' ResNets."""

import os
import pickle
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from backbones import make_backbone

from backbench.errors import CheckpointError, ConfigError
from model_zoo import export, reading
from model_zoo.__main__ import main
from model_zoo.architecture import Architecture, InputSpec
from model_zoo.backbone import Backbone, save
from model_zoo.export import ExportError, detectron2, feature_difference, mmdet
from model_zoo.load import UNKNOWABLE, load
from model_zoo.resnet import LAYERS, build

BGR = InputSpec(order="bgr", mean=(0.1, 0.2, 0.4), std=(0.25, 0.5, 1.0))


def public_name(name):
    """Rename as MoCo's and torchvision's converters do (detection/convert-pretrain-to-detectron2.py at 132aea9)."""
    if "layer" not in name:
        name = "stem." + name
    for t in (1, 2, 3, 4):
        name = name.replace(f"layer{t}", f"res{t + 1}")
    for t in (1, 2, 3):
        name = name.replace(f"bn{t}", f"conv{t}.norm")
    return name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")


def public_pickle(state):
    """Return what those converters dump."""
    model = {public_name(name): tensor.numpy() for name, tensor in state.items()}
    return {"model": model, "__author__": "MOCO", "matching_heuristics": True}


# ---------------------------------------------------------------- Detectron2's file


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_detectron2_names_are_those_of_its_own_converters(name):
    table = detectron2.key_table(Architecture(name=name))
    assert table == {ours: public_name(ours) for ours in table}


def test_detectron2_payload():
    backbone = make_backbone()
    payload = detectron2.export(backbone)
    assert set(payload) == {"model", "__author__", "matching_heuristics"}
    model = payload["model"]
    assert not any("num_batches_tracked" in name for name in model)
    floats = [name for name in backbone.state if not name.endswith("num_batches_tracked")]
    assert len(model) == len(floats)
    for name in floats:
        array = model[public_name(name)]
        assert type(array) is np.ndarray and array.dtype == np.float32 and array.flags.c_contiguous
        assert np.array_equal(array, backbone.state[name].numpy())
    turned = detectron2.export(make_backbone(spec=BGR))["model"]["stem.conv1.weight"]
    assert np.array_equal(turned, backbone.state["conv1.weight"].numpy()[:, ::-1])


@pytest.mark.parametrize(
    ("name", "width", "stride_in_1x1", "expected"),
    [
        ("resnet18", 1, True, {"DEPTH": 18, "RES2_OUT_CHANNELS": 64, "WIDTH_PER_GROUP": 64, "STRIDE_IN_1X1": False}),
        ("resnet34", 1, False, {"DEPTH": 34, "RES2_OUT_CHANNELS": 64, "WIDTH_PER_GROUP": 64, "STRIDE_IN_1X1": False}),
        ("resnet50", 1, False, {"DEPTH": 50, "RES2_OUT_CHANNELS": 256, "WIDTH_PER_GROUP": 64, "STRIDE_IN_1X1": False}),
        ("resnet50", 2, True, {"DEPTH": 50, "RES2_OUT_CHANNELS": 512, "WIDTH_PER_GROUP": 128, "STRIDE_IN_1X1": True}),
        (
            "resnet101",
            0.5,
            True,
            {"DEPTH": 101, "RES2_OUT_CHANNELS": 128, "WIDTH_PER_GROUP": 32, "STRIDE_IN_1X1": True},
        ),
    ],
)
def test_detectron2_settings(name, width, stride_in_1x1, expected):
    arch = Architecture(name=name, width=width, stride_in_1x1=stride_in_1x1)
    found = detectron2.settings(Backbone("x", arch, {}, InputSpec(), "x", "x"))
    assert found["MODEL"]["RESNETS"] == {"STEM_OUT_CHANNELS": 64, "NUM_GROUPS": 1, **expected}


def test_images_are_told_as_rgb_in_0_to_255():
    """The usual values are from MoCo's pascal_voc_R_50_C4_24k_moco.yaml; those of BGR are reversed."""
    usual, turned = make_backbone(), make_backbone(spec=BGR)
    found = detectron2.settings(usual)
    assert found["INPUT"] == {"FORMAT": "RGB"}
    assert found["MODEL"]["PIXEL_MEAN"] == [123.675, 116.28, 103.53]
    assert found["MODEL"]["PIXEL_STD"] == [58.395, 57.12, 57.375]
    images = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375], "bgr_to_rgb": True}
    assert mmdet.settings(usual)["data_preprocessor"] == images
    images = {"mean": [102.0, 51.0, 25.5], "std": [255.0, 127.5, 63.75], "bgr_to_rgb": True}
    assert mmdet.settings(turned)["data_preprocessor"] == images
    assert detectron2.settings(turned)["INPUT"] == {"FORMAT": "RGB"}
    assert detectron2.settings(turned)["MODEL"]["PIXEL_MEAN"] == images["mean"]


def test_detectron2_takes_pickles_by_their_suffix(tmp_path):
    with pytest.raises(ExportError, match=r"out\.pth: .* name it out\.pkl"):
        detectron2.write(make_backbone(), tmp_path / "out.pth")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["resnet18", "resnet34"])
def test_detectron2_cannot_build_narrow_basic_blocks(name):
    backbone = make_backbone(name, 0.5)
    with pytest.raises(ExportError, match=r"width 1 only .* width 0\.5"):
        detectron2.export(backbone)
    assert mmdet.settings(backbone)["backbone"]["base_channels"] == 32


def test_c4_detectors_keep_the_last_stage_in_their_heads():
    """Res5ROIHeads in Detectron2 (with MoCo's extra norm), the shared head in MMDetection."""
    backbone = make_backbone()
    table = detectron2.key_table(backbone.arch)
    state = {}
    for name, tensor in backbone.state.items():
        state[("roi_heads." if name.startswith("layer4") else "backbone.") + table[name]] = tensor
    detectron2.check_engine_state(backbone, state | {"roi_heads.res5.norm.weight": torch.ones(3)})
    state["roi_heads.res5.2.conv3.weight"] = torch.zeros(3)
    with pytest.raises(ExportError, match=r"^1 of \d+ tensors .*roi_heads\.res5\.2\.conv3\.weight$"):
        detectron2.check_engine_state(backbone, state)
    place = {"layer4": "roi_head.shared_head."}
    state = {place.get(name[:6], "backbone.") + name: tensor for name, tensor in backbone.state.items()}
    mmdet.check_engine_state(backbone, state | {"roi_head.shared_head.norm.weight": torch.ones(3)})
    del state["roi_head.shared_head.layer4.1.bn2.bias"]
    with pytest.raises(ExportError, match=r"no place for 1 .*roi_head\.shared_head\.layer4\.1\.bn2\.bias$"):
        mmdet.check_engine_state(backbone, state)


# ---------------------------------------------------------------- MMDetection's file


def test_mmdet_payload():
    backbone = make_backbone(spec=BGR)
    payload = mmdet.export(backbone)
    assert set(payload) == {"state_dict", "meta"}
    assert set(payload["state_dict"]) == {f"backbone.{name}" for name in backbone.state}
    for name, tensor in backbone.state.items():
        assert torch.equal(
            payload["state_dict"][f"backbone.{name}"], tensor.flip(1) if name == "conv1.weight" else tensor
        )


@pytest.mark.parametrize(
    ("depth", "width", "stride_in_1x1", "style"),
    [(18, 0.5, True, "pytorch"), (50, 1, False, "pytorch"), (101, 2, True, "caffe")],
)
def test_mmdet_settings(depth, width, stride_in_1x1, style):
    arch = Architecture(name=f"resnet{depth}", width=width, stride_in_1x1=stride_in_1x1)
    found = mmdet.settings(Backbone("x", arch, {}, InputSpec(), "x", "x"))
    stages = {"stem_channels": 64, "base_channels": int(64 * width)}
    assert found["backbone"] == {"type": "ResNet", "depth": depth, "style": style, **stages}
    assert found["prefix"] == "backbone."


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"groups": 32, "base_width": 8}, {"NUM_GROUPS": 32, "WIDTH_PER_GROUP": 8, "RES2_OUT_CHANNELS": 256}),
        (
            {"groups": 32, "base_width": 8, "width": 0.5},
            {"NUM_GROUPS": 32, "WIDTH_PER_GROUP": 4, "RES2_OUT_CHANNELS": 128},
        ),
        ({"base_width": 128}, {"NUM_GROUPS": 1, "WIDTH_PER_GROUP": 128, "RES2_OUT_CHANNELS": 256}),
    ],
    ids=str,
)
def test_detectron2_settings_of_relatives(fields, expected):
    """Compare with its mask_rcnn_X_101_32x8d_FPN_3x.yaml, and with a Wide ResNet."""
    arch = Architecture(name="resnet101", **fields)
    found = detectron2.settings(Backbone("x", arch, {}, InputSpec(), "x", "x"))["MODEL"]["RESNETS"]
    assert {key: found[key] for key in expected} == expected and found["DEPTH"] == 101


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"groups": 64, "base_width": 4}, {"type": "ResNeXt", "groups": 64, "base_width": 4}),
        ({"groups": 32, "base_width": 8, "width": 0.5}, {"type": "ResNeXt", "groups": 32, "base_width": 4}),
        ({"stem": "deep"}, {"type": "ResNet", "deep_stem": True}),
        ({"stem": "deep", "avg_down": True}, {"type": "ResNet", "deep_stem": True, "avg_down": True}),
    ],
    ids=str,
)
def test_mmdet_settings_of_relatives(fields, expected):
    """Compare with its mask-rcnn_x101-64x4d_fpn_1x_coco.py, and with its ResNetV1d."""
    arch = Architecture(name="resnet101", **fields)
    found = mmdet.settings(Backbone("x", arch, {}, InputSpec(), "x", "x"))["backbone"]
    usual = {"depth", "stem_channels", "base_channels", "style"}
    assert {key: value for key, value in found.items() if key not in usual} == expected


# ---------------------------------------------------------------- features


def test_feature_difference():
    backbone = make_backbone("resnet18")
    module = backbone.build().eval()
    assert feature_difference(backbone, module.stages) == 0
    assert feature_difference(backbone, lambda x: [1.5 * c for c in module.stages(x)]) == pytest.approx(0.5, rel=1e-4)
    last_only = lambda x: [*module.stages(x)[:3], module.stages(x)[3] * 1.01]  # noqa: E731
    assert feature_difference(backbone, last_only) == pytest.approx(0.01, rel=1e-2)
    assert np.isnan(feature_difference(backbone, lambda x: [c * torch.nan for c in module.stages(x)]))
    assert feature_difference(backbone, build(backbone.arch, seed=5).eval().stages) > 0.1
    with pytest.raises(ExportError, match="the engine's stages have shapes"):
        feature_difference(backbone, lambda x: module.stages(x)[:3])
    turned = make_backbone("resnet18", spec=BGR)
    assert feature_difference(turned, module.stages) > 0.01, "an engine gets RGB with weights for BGR"
    assert feature_difference(turned, export.in_rgb(turned).build().eval().stages) == 0


def test_stride_placement_shows_in_the_features():
    usual, moved = make_backbone(), make_backbone(stride_in_1x1=True)
    assert feature_difference(moved, usual.build().eval().stages) > 1e-2


# ---------------------------------------------------------------- reading back


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_public_converters_pickles_are_read(tmp_path, protocol):
    backbone = make_backbone()
    payload = public_pickle(backbone.state)
    payload["model"]["stem.fc.0.weight"] = np.zeros((4, 4), np.float32)
    (tmp_path / "moco.pkl").write_bytes(pickle.dumps(payload, protocol=protocol))
    found = load(tmp_path / "moco.pkl")
    assert (found.format, found.arch, found.name) == ("detectron2", backbone.arch, "moco")
    assert all(torch.equal(found.state[name], tensor) for name, tensor in backbone.state.items()), "counters too"
    assert any("stem.fc.0.weight" in note for note in found.notes)
    assert UNKNOWABLE in found.notes


def test_detectron2s_own_torch_files_are_read(tmp_path):
    backbone = make_backbone()
    torch.save({"model": {public_name(n): t for n, t in backbone.state.items()}, "iteration": 3}, tmp_path / "x.pth")
    assert load(tmp_path / "x.pth").weights_sha256 == backbone.weights_sha256


def broken(change):
    payload = public_pickle(make_backbone("resnet18").state)
    change(payload["model"])
    return payload


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.pop("res4.1.conv2.norm.running_var"), r"1 of \d+ tensors missing: layer3\.1\.bn2\.running_var"),
        (lambda m: m.pop("stem.conv1.weight"), r"missing: conv1\.weight"),
        (lambda m: m.update({"res5.7.conv1.weight": np.zeros(3, np.float32)}), r"left over .*res5\.7\.conv1\.weight"),
        (lambda m: m.update({"proposal_generator.x": np.zeros(3, np.float32)}), r"left over .*proposal_generator\.x"),
        (lambda m: [m.pop(k) for k in list(m) if k.startswith("res5.1")], r"basic blocks \[2, 2, 2, 1\]"),
        (lambda m: m.update({"stem.conv1.norm.bias": np.full(64, np.nan, np.float32)}), "has NaN"),
        (lambda m: m.update({f"backbone.{k}": m.pop(k) for k in list(m)}), "whole Detectron2 detector .*'backbone.'"),
        (
            lambda m: m.update({f"backbone.bottom_up.{k}": m.pop(k) for k in list(m)}),
            "whole Detectron2 detector .*'backbone.bottom_up.'",
        ),
    ],
)
def test_damaged_detectron2_files_are_named(tmp_path, change, words):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(broken(change)))
    with pytest.raises(CheckpointError, match=words):
        load(tmp_path / "x.pkl")


def test_whole_mmdet_detectors_are_refused_and_pretrainings_are_not(tmp_path):
    backbone = make_backbone("resnet18")
    tensors = mmdet.export(backbone)["state_dict"]
    neck = {"neck.bn1.weight": torch.zeros(3), "head.fc.weight": torch.zeros(3)}
    torch.save({"state_dict": tensors | neck, "meta": {}}, tmp_path / "mmselfsup.pth")
    assert load(tmp_path / "mmselfsup.pth").weights_sha256 == backbone.weights_sha256
    torch.save({"state_dict": tensors | {"rpn_head.x.weight": torch.zeros(3)}, "meta": {}}, tmp_path / "detector.pth")
    with pytest.raises(CheckpointError, match=r"a whole detector \(rpn_head\.x\.weight"):
        load(tmp_path / "detector.pth")
    twin = {"momentum.conv1.weight": torch.zeros(3)}
    torch.save({"state_dict": tensors | twin, "meta": {}}, tmp_path / "twin.pth")
    with pytest.raises(CheckpointError, match=r"1 tensors left over .*momentum\.conv1\.weight"):
        load(tmp_path / "twin.pth")


# ---------------------------------------------------------------- plain pickles


class _Payload:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (os.mkdir, (str(self.target),))


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_code_in_a_pickle_is_named_and_not_run(tmp_path, protocol):
    target, path = tmp_path / "was-run", tmp_path / "code.pkl"
    payload = public_pickle(make_backbone("resnet18").state) | {"extra": _Payload(target)}
    path.write_bytes(pickle.dumps(payload, protocol=protocol))
    backbone = load(path)
    notes = "; ".join(backbone.notes)
    assert "that is not a tensor (posix.mkdir): left unread, nothing was run" in notes
    assert "functions that only an attack calls" in notes
    assert not target.exists()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.array([print], dtype=object), "array of 'O"),
        (np.array([None], dtype=object), "array of 'O"),
        (np.array(["text"]), "array of 'U"),
        (np.dtype, "no known layout"),
        (np.float32(1), "no known layout"),
    ],
)
def test_only_numbers_come_out_of_a_pickle(tmp_path, value, words):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"model": {"res2.0.conv1.norm.weight": value}}))
    with pytest.raises(CheckpointError, match=words):
        load(tmp_path / "x.pkl")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f2", ">f8", "|u1", ">i8", "|b1"])
def test_arrays_come_out_as_numpy_reads_them(tmp_path, protocol, dtype):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    values = {"c": array, "fortran": np.asfortranarray(array), "part": array[:, ::2], "scalar": array[1, 1, 1:2][0:1]}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"nested": values, "zero": np.array(7)}, protocol=protocol))
    found = reading.read(tmp_path / "x.pkl").value
    assert found["zero"].item() == 7 and found["zero"].shape == ()
    for key, value in values.items():
        assert found["nested"][key].numpy().dtype == array.dtype.newbyteorder("=")
        assert np.array_equal(found["nested"][key].numpy(), value)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_pickle(tmp_path, share):
    data = pickle.dumps(public_pickle(make_backbone("resnet18").state))
    (tmp_path / "cut.pkl").write_bytes(data[: int(share * len(data))])
    with pytest.raises(CheckpointError, match=r"cut\.pkl: not a readable pickle; truncated"):
        load(tmp_path / "cut.pkl")


# ---------------------------------------------------------------- the command


@pytest.mark.parametrize(("engine", "file"), [("detectron2", "out.pkl"), ("mmdet", "out.pth")])
def test_convert_there_and_back(engine, file, tmp_path, capsys):
    backbone = make_backbone(spec=InputSpec(size=64, mean=(0.1, 0.2, 0.4)), stride_in_1x1=True)
    save(tmp_path / "model.pth", backbone.state, backbone.arch, backbone.input)
    out, back = tmp_path / "new" / file, tmp_path / "back.pth"
    assert main(["convert", str(tmp_path / "model.pth"), "--to", engine, "-o", str(out)]) == 0
    printed = capsys.readouterr().out
    assert backbone.weights_sha256[:8] in printed and f"{file}.settings.yaml: settings for {engine}" in printed
    assert main(["convert", str(out), "-o", str(back)]) == 0
    assert f"from layout '{engine}'" in capsys.readouterr().out
    found = load(back)
    assert (found.arch, found.input) == (backbone.arch, backbone.input)
    assert found.weights_sha256 == backbone.weights_sha256


def test_convert_says_that_it_turned_the_channels(tmp_path, capsys):
    backbone = make_backbone("resnet18", spec=BGR)
    save(tmp_path / "model.pth", backbone.state, backbone.arch, backbone.input)
    main(["convert", str(tmp_path / "model.pth"), "--to", "mmdet", "-o", str(tmp_path / "out.pth")])
    assert "from BGR to RGB" in capsys.readouterr().out
    assert yaml.safe_load((tmp_path / "out.pth.yaml").read_text())["input"]["order"] == "rgb"


@pytest.mark.parametrize("existing", ["out.pkl", "out.pkl.yaml", "out.pkl.settings.yaml"])
def test_convert_overwrites_no_sidecar_either(tmp_path, existing):
    (tmp_path / existing).write_text("precious")
    with pytest.raises(CheckpointError, match=f"{existing}: exists already"):
        main(["convert", str(tmp_path / "model.pth"), "--to", "detectron2", "-o", str(tmp_path / "out.pkl")])
    assert (tmp_path / existing).read_text() == "precious"
    assert [p.name for p in tmp_path.iterdir()] == [existing]


def test_convert_overwrites_with_force(tmp_path):
    backbone = make_backbone()
    save(tmp_path / "model.pth", backbone.state, backbone.arch, backbone.input)
    for name in ("out.pkl", "out.pkl.yaml", "out.pkl.settings.yaml"):
        (tmp_path / name).write_text("old")
    command = ["convert", str(tmp_path / "model.pth"), "--to", "detectron2", "-o", str(tmp_path / "out.pkl")]
    assert main([*command, "--force"]) == 0
    assert load(tmp_path / "out.pkl").weights_sha256 == backbone.weights_sha256


def test_convert_to_an_unknown_engine(tmp_path):
    save(tmp_path / "model.pth", (b := make_backbone("resnet18")).state, b.arch, b.input)
    with pytest.raises(ConfigError, match="unknown target 'mmdett'; did you mean 'mmdet'"):
        main(["convert", str(tmp_path / "model.pth"), "--to", "mmdett", "-o", str(tmp_path / "x")])


# ---------------------------------------------------------------- the engines themselves

TRUNKS = [
    ("resnet18", {}),
    ("resnet50", {}),
    ("resnet50", {"stride_in_1x1": True, "width": 0.5}),
    ("resnet50", {"spec": BGR, "width": 0.25}),
]


@pytest.fixture
def old_pillow(monkeypatch):
    """Pillow 10 removed a name that Detectron2 0.6 needs on import; MMDetection imports Detectron2 if it is installed."""
    import PIL.Image

    if not hasattr(PIL.Image, "LINEAR"):
        monkeypatch.setattr(PIL.Image, "LINEAR", PIL.Image.BILINEAR, raising=False)


@pytest.fixture
def detectron2_library(old_pillow):
    pytest.importorskip("detectron2", reason="Detectron2 is not installed here")
    from detectron2 import checkpoint, config, modeling

    return types.SimpleNamespace(checkpoint=checkpoint, config=config, modeling=modeling)


def detectron2_config(library, settings_file, base=None):
    cfg = library.config.get_cfg()
    if base:
        cfg.merge_from_file(str(Path(library.config.__file__).parent.parent / "model_zoo" / "configs" / base))
    cfg.merge_from_file(str(settings_file))
    cfg.MODEL.DEVICE, cfg.MODEL.RESNETS.NORM, cfg.MODEL.BACKBONE.FREEZE_AT = "cpu", "BN", 0
    return cfg


@pytest.mark.slow
@pytest.mark.parametrize(("name", "fields"), TRUNKS)
def test_detectron2s_resnet_computes_the_same(detectron2_library, tmp_path, name, fields):
    backbone = make_backbone(name, **{"width": 1, **fields})
    detectron2.write(backbone, tmp_path / "out.pkl")
    cfg = detectron2_config(detectron2_library, tmp_path / "out.pkl.settings.yaml")
    cfg.MODEL.RESNETS.OUT_FEATURES = stages = ["res2", "res3", "res4", "res5"]
    model = detectron2_library.modeling.build_resnet_backbone(cfg, types.SimpleNamespace(channels=3)).eval()
    with pytest.raises(ExportError, match="differ from the exported ones"):
        detectron2.check_engine_state(backbone, model.state_dict())
    detectron2_library.checkpoint.DetectionCheckpointer(model).load(str(tmp_path / "out.pkl"))
    detectron2.check_engine_state(backbone, model.state_dict())
    assert feature_difference(backbone, lambda x: [model(x)[stage] for stage in stages]) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    "base", ["COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml", "PascalVOC-Detection/faster_rcnn_R_50_C4.yaml"]
)
def test_detectron2s_detectors_find_the_backbone(detectron2_library, tmp_path, base):
    """Load the file as `MODEL.WEIGHTS`; without matching_heuristics the detectors keep random weights."""
    backbone = make_backbone(width=1)
    detectron2.write(backbone, tmp_path / "out.pkl")
    cfg = detectron2_config(detectron2_library, tmp_path / "out.pkl.settings.yaml", base)
    model = detectron2_library.modeling.build_model(cfg)
    payload = detectron2.export(backbone) | {"matching_heuristics": False}
    (tmp_path / "strict.pkl").write_bytes(pickle.dumps(payload))
    detectron2_library.checkpoint.DetectionCheckpointer(model).load(str(tmp_path / "strict.pkl"))
    with pytest.raises(ExportError, match="differ from the exported ones"):
        detectron2.check_engine_state(backbone, model.state_dict())
    detectron2_library.checkpoint.DetectionCheckpointer(model).load(str(tmp_path / "out.pkl"))
    detectron2.check_engine_state(backbone, model.state_dict())
    assert model.pixel_mean.flatten().tolist() == pytest.approx([123.675, 116.28, 103.53])


@pytest.fixture
def mmdet_models(old_pillow):
    from transfer.detection.engines import mmdet as engine  # only its adaptations, which last for the process

    if reason := engine.missing():
        pytest.skip(reason)
    engine.prepare()
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules

    register_all_modules(init_default_scope=True)
    return MODELS


@pytest.mark.slow
@pytest.mark.parametrize(("name", "fields"), [*TRUNKS, ("resnet18", {"width": 0.5})])
def test_mmdets_resnet_computes_the_same(mmdet_models, tmp_path, name, fields):
    backbone = make_backbone(name, **{"width": 1, **fields})
    mmdet.write(backbone, tmp_path / "out.pth")
    settings = yaml.safe_load((tmp_path / "out.pth.settings.yaml").read_text())
    weights = {"type": "Pretrained", "checkpoint": str(tmp_path / "out.pth"), "prefix": settings["prefix"]}
    model = mmdet_models.build({**settings["backbone"], "init_cfg": weights})
    model.eval()  # mmdet's eval() returns nothing
    with pytest.raises(ExportError, match="differ from the exported ones"):
        mmdet.check_engine_state(backbone, model.state_dict())
    model.init_weights()
    mmdet.check_engine_state(backbone, model.state_dict())
    assert feature_difference(backbone, model) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("base", ["faster-rcnn_r50_fpn.py", "faster-rcnn_r50-caffe-c4.py"])
def test_mmdets_detectors_find_the_backbone(mmdet_models, tmp_path, base):
    import mmdet as library
    from mmengine.config import Config
    from mmengine.runner import load_checkpoint

    backbone = make_backbone(width=1)
    mmdet.write(backbone, tmp_path / "out.pth")
    settings = mmdet.settings(backbone)
    cfg = Config.fromfile(Path(library.__file__).parent / ".mim" / "configs" / "_base_" / "models" / base).model
    weights = {"type": "Pretrained", "checkpoint": str(tmp_path / "out.pth"), "prefix": settings["prefix"]}
    cfg.backbone.update({**settings["backbone"], "init_cfg": weights})
    c4 = "shared_head" in cfg.roi_head
    if c4:
        cfg.roi_head.shared_head.update({"style": "pytorch", "init_cfg": weights, "pretrained": None})
    model = mmdet_models.build(cfg)
    load_checkpoint(model, str(tmp_path / "out.pth"))
    if c4:  # the shared head is not part of the backbone
        with pytest.raises(ExportError, match=r"differ from the exported ones .*: roi_head\.shared_head\.layer4"):
            mmdet.check_engine_state(backbone, model.state_dict())
        model.init_weights()
    mmdet.check_engine_state(backbone, model.state_dict())


@pytest.mark.slow
def test_mmdets_preprocessor_gives_the_backbone_its_input(mmdet_models):
    """mmdet converts its BGR image to the backbone's input, in RGB."""
    backbone = make_backbone(spec=BGR)
    preprocessor = mmdet_models.build({"type": "DetDataPreprocessor", **mmdet.settings(backbone)["data_preprocessor"]})
    image = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)  # BGR
    from mmdet.structures import DetDataSample

    found = preprocessor({"inputs": [image], "data_samples": [DetDataSample(metainfo={"img_shape": (8, 8)})]})[
        "inputs"
    ][0]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (BGR.mean, BGR.std))
    expected = (image / 255 - mean) / std
    torch.testing.assert_close(found, expected.flip(0), rtol=1e-4, atol=1e-4)
