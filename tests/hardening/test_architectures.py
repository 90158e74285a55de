"""Near-ResNets, damaged, renamed and other networks give the right network or one right sentence.

Every file is small. The sentence names the kind of network or the wrong tensor; `load` never returns another network.
"""

from __future__ import annotations

import re

import pytest
import timm
import torch
from backbones import make_backbone
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from backbench.errors import BackbenchError, CheckpointError
from model_zoo.architecture import Architecture, InputSpec
from model_zoo.backbone import FORMAT
from model_zoo.export.detectron2 import key_table
from model_zoo.load import load

D = {"stem": "deep", "avg_down": True}


def tensors(name="resnet26", width=0.125, **fields):
    """Return a narrow ResNet's tensors, without counters."""
    state = make_backbone(name, width, **fields).state
    return {key: tensor.clone() for key, tensor in state.items() if not key.endswith("tracked")}


def plus(key, shape=(8,), **fields):
    """Add a tensor."""
    return tensors(**fields) | {key: torch.ones(shape)}


def renamed(pattern, replacement, **fields):
    return {re.sub(pattern, replacement, key): tensor for key, tensor in tensors(**fields).items()}


def without(pattern, **fields):
    return {key: tensor for key, tensor in tensors(**fields).items() if not re.search(pattern, key)}


def changed(changes, **fields):
    """Change the shapes of tensors."""
    return tensors(**fields) | {key: torch.ones(shape) for key, shape in changes.items()}


def torchvision(block=Bottleneck, layers=(2, 2, 2, 2), **fields):
    return {
        key: tensor for key, tensor in ResNet(block, list(layers), **fields).state_dict().items() if "fc" not in key
    }


def of_timm(name, **fields):
    return timm.create_model(name, **fields).state_dict()


def preactivation():
    """Return kuangliu's PreActBottleneck under torchvision's names: norms have the input channels."""
    state = without(r"^bn1")
    for stage in (1, 2, 3, 4):
        for block in (0, 1):
            taken = state[f"layer{stage}.{block}.conv1.weight"].shape[1]
            state |= {f"layer{stage}.{block}.bn1.{leaf}": torch.ones(taken)
                      for leaf in ("weight", "bias", "running_mean", "running_var")}  # fmt: skip
    return state


def arcface():
    state = renamed(r"nothing", "", name="resnet18", stem="3x3")
    return state | {"layer1.0.prelu.weight": torch.ones(8), "prelu.weight": torch.ones(8), "bn2.weight": torch.ones(8)}


def video():
    return {key: t[:, :, None].repeat(1, 1, 3, 1, 1) if t.ndim == 4 else t for key, t in tensors().items()}


def folded():
    """Fold BatchNorm into the convolutions."""
    state = without(r"bn\d|downsample\.1")
    return state | {key.replace("weight", "bias"): torch.ones(len(tensor)) for key, tensor in state.items()}


def mixed_groups():
    grouped, plain = tensors(groups=4, base_width=32), tensors()
    return {**grouped, **{key: tensor for key, tensor in plain.items() if key.startswith("layer3")}}


def mixed_shortcuts():
    averaging, plain = tensors(**D), tensors(stem="deep")
    here = r"layer3\.0\.downsample"
    kept = {key: tensor for key, tensor in averaging.items() if not re.match(here, key)}
    return kept | {key: tensor for key, tensor in plain.items() if re.match(here, key)}


KINDS = {
    # ---- other members of the family
    "squeeze-and-excitation": (lambda: plus("layer1.0.se.fc1.weight", (2, 32, 1, 1)), "SE-ResNet"),
    "squeeze-and-excitation of mmcls": (lambda: plus("layer1.0.se_layer.conv1.conv.weight"), "SE-ResNet"),
    "squeeze-and-excitation of Cadene": (lambda: plus("layer1.0.se_module.fc1.weight"), "SE-ResNet"),
    "efficient channel attention": (lambda: plus("layer1.0.se.conv.weight", (1, 1, 3)), "ECA-ResNet"),
    "selective kernels": (lambda: of_timm("skresnet18"), "SK-ResNet"),
    "split attention": (lambda: renamed(r"\.conv2\.", ".conv2.conv."), "ResNeSt"),
    "Res2Net": (lambda: renamed(r"\.conv2\.", ".convs.0."), "Res2Net"),
    "CBAM": (lambda: plus("layer1.0.ca.fc1.weight"), "CBAM"),
    "IBN": (lambda: renamed(r"(layer1\.\d\.bn1)\.", r"\1.IN."), "IBN-Net"),
    "BlurPool": (lambda: plus("layer2.0.conv3.0.filt", (8, 1, 3, 3)), "anti-aliased"),
    "ResNet-RS": (lambda: plus("maxpool.0.weight", (8, 8, 3, 3), **D), "ResNet-RS"),
    "CLIP": (lambda: plus("attnpool.positional_embedding", (50, 2048)), "CLIP"),
    "a deep stem of other names": (
        lambda: {re.sub(r"^conv1\.6", "conv3", re.sub(r"^conv1\.3", "conv2", re.sub(r"^conv1\.0", "conv1", k))): t
                 for k, t in tensors(**D).items() if not re.match(r"conv1\.[14]", k)}, "names of its own"),
    "deformable convolutions": (lambda: plus("layer4.0.conv2_offset.weight"), "deformable"),
    "non-local blocks": (lambda: plus("layer3.0.non_local.g.weight"), "attention between"),
    "GroupNorm as bn": (lambda: without(r"running_"), "norms without running statistics"),
    "GroupNorm as gn": (lambda: renamed(r"bn(\d)", r"gn\1"), "GroupNorm|no known layout"),
    "instance norms": (lambda: without(r"running_|bn\d\.(weight|bias)"), "missing|no known layout"),
    "pre-activation": (preactivation, "pre-activation"),
    "pre-activation of timm": (lambda: of_timm("resnetv2_18"), "no known layout"),
    "ArcFace": (arcface, "ArcFace"),
    "video": (video, "video"),
    "Fixup": (lambda: {**without(r"bn"), "layer1.0.bias1a": torch.ones(1)}, "missing|no known layout|left over"),
    "CIFAR": (lambda: without(r"layer4", name="resnet18", stem="3x3"), "a CIFAR ResNet"),
    "one block a stage": (lambda: without(r"layer\d\.1\."), r"bottleneck blocks \[1, 1, 1, 1\] per stage"),
    "Cadene's names": (lambda: renamed(r"^(conv1|bn1)", r"layer0.\1"), r"missing: conv1\.weight"),
    "five stages": (lambda: plus("layer5.0.conv1.weight"), r"left over.*layer5\.0\.conv1"),
    # ---- of another kind
    "EfficientNet": (lambda: of_timm("efficientnet_b0"), "no known layout"),
    "ViT": (lambda: of_timm("vit_tiny_patch16_224"), "no known layout"),
    "ConvNeXt": (lambda: of_timm("convnext_atto"), "no known layout"),
    "RegNet": (lambda: of_timm("regnetx_002"), "no known layout"),
    "MobileNet": (lambda: of_timm("mobilenetv3_small_050"), "no known layout"),
    "HRNet": (lambda: of_timm("hrnet_w18_small"), "no known layout|missing|no ResNet|3x3"),
    # ---- reparametrised
    "spectral norm": (lambda: renamed(r"conv1\.weight$", "conv1.weight_orig"), "reparametrisation"),
    "weight norm": (lambda: renamed(r"conv2\.weight$", "conv2.parametrizations.weight.original0"), "reparametrisation"),
    "pruning masks": (lambda: plus("layer1.0.conv1.weight_mask", (8, 8, 1, 1)), "reparametrisation"),
    "quantisation": (lambda: plus("layer1.0.conv1.activation_post_process.scale"), "integers"),
    "adapters": (lambda: plus("layer1.0.conv1.lora_A.weight"), "adapters"),
    "folded norms": (folded, "biases.*folded"),
    "biased convolutions": (lambda: plus("layer1.0.conv1.bias"), "biases"),
    # ---- parts missing, and shapes that contradict each other
    "no last stage": (lambda: without("layer4"), "layer4 of a resnet26 is missing"),
    "no first stage": (lambda: without("layer1"), "layer1 of a resnet26 is missing"),
    "no stage in the middle": (lambda: without("layer[23]", **D), "layer2 and layer3 of a resnet26 is missing"),
    "no stem": (lambda: without(r"^(conv1|bn1)"), r"missing: conv1\.weight"),
    "no shortcut": (lambda: without(r"layer2\.0\.downsample"), r"missing: layer2\.0\.downsample\.0"),
    "a block left out": (lambda: without(r"layer3\.0"), r"missing: layer3\.0"),
    "groups in all stages but one": (mixed_groups, r"layer3\.\S+' has shape .*groups=4"),
    "averages in all shortcuts but one": (mixed_shortcuts, r"missing: layer3\.0\.downsample|left over.*downsample"),
    "transposed 3x3": (lambda: changed({"layer1.0.conv2.weight": (3, 3, 8, 8)}), "has shape"),
    "transposed 1x1": (lambda: changed({"layer1.0.conv3.weight": (8, 32, 1, 1)}), "has shape|planes"),
    "3x3 that is 1x1": (lambda: changed({"layer2.0.conv2.weight": (16, 16, 1, 1)}), "has shape"),
    "groups that do not divide": (lambda: changed({"layer1.0.conv2.weight": (8, 3, 3, 3)}), "planes are not divisible"),
    "groups of nothing": (lambda: changed({"layer1.0.conv2.weight": (8, 0, 3, 3)}), "has shape"),
    "wide basic blocks": (lambda: changed({"layer1.0.conv1.weight": (16, 64, 3, 3)}, name="resnet18"), "has shape"),
    "planes that are no whole number": (lambda: changed({"layer1.0.conv3.weight": (34, 8, 1, 1)}), "planes"),
    "a stem of 5x5": (lambda: changed({"conv1.weight": (64, 3, 5, 5)}), r"has shape \(64, 3, 5, 5\)"),
    "grey": (lambda: changed({"conv1.weight": (64, 1, 7, 7)}), "1 channels, not RGB"),
    "grey, deep": (lambda: changed({"conv1.0.weight": (32, 1, 3, 3)}, **D), "1 channels, not RGB"),
    "RGB and depth": (lambda: changed({"conv1.weight": (64, 4, 7, 7)}), "4 channels, not RGB"),
    "a deep stem of other widths": (
        lambda: changed({"conv1.0.weight": (24, 3, 3, 3), "conv1.3.weight": (48, 24, 3, 3)}, **D), "24, 48, 64 planes"),
    "a deep stem of two": (lambda: without(r"^conv1\.[34]", **D), r"missing: conv1\.3"),
    "two stems": (lambda: {**tensors(**D), "conv1.weight": torch.ones(64, 3, 7, 7)}, r"left over|missing"),
    "a stem of 3x3": (lambda: tensors(stem="3x3"), "conv1 is 3x3"),
    "a gap in the numbers": (lambda: renamed(r"layer1\.1", "layer1.7"), r"blocks \[8, 2, 2, 2\]"),
    "a number of many digits": (lambda: plus(f"layer1.{'9' * 5000}.conv1.weight"), "left over"),
    "a number in other digits": (lambda: plus("layer1.\u0661.conv1.weight"), "left over|blocks"),
    "a number with zeros": (lambda: renamed(r"layer1\.1", "layer1.01"), "missing"),
    "an unknown depth": (lambda: torchvision(BasicBlock, (1, 1, 2, 1)), r"basic blocks \[1, 1, 2, 1\]"),
    "bottlenecks in one stage": (lambda: plus("layer1.0.conv3.weight", name="resnet18"), "left over|has shape|missing"),
    "weights of one dimension": (lambda: changed({"layer1.0.conv2.weight": (64,)}), "has shape"),
    "scalar weights": (lambda: changed({"conv1.weight": ()}), r"has shape \(\)"),
    "integers": (lambda: tensors() | {"conv1.weight": torch.ones(64, 3, 7, 7, dtype=torch.int8)}, "int8"),
    "complex numbers": (lambda: tensors() | {"bn1.weight": torch.ones(64, dtype=torch.complex64)}, "complex64"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_that_is_none_of_ours_is_one_right_sentence(kind, tmp_path):
    make, words = KINDS[kind]
    torch.save(make(), tmp_path / "net.pth")
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path / "net.pth")
    sentence = str(caught.value)
    assert re.search(words, sentence), sentence
    assert sentence.startswith(str(tmp_path / "net.pth")) and "\n" not in sentence and len(sentence) < 2000


RIGHT = {
    "frozen norms, no counters": (tensors, {}),
    "half precision": (lambda: {k: t.half() for k, t in tensors().items()}, {}),
    "bfloat16": (lambda: {k: t.bfloat16() for k, t in tensors(**D).items()}, D),
    "double": (lambda: {k: t.double() for k, t in tensors().items()}, {}),
    "parameters": (lambda: {k: nn.Parameter(t) for k, t in tensors().items()}, {}),
    "channels last": (
        lambda: {k: t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t for k, t in tensors().items()}, {}),
    "any order": (lambda: dict(reversed(tensors(base_width=128).items())), {"base_width": 128}),
    "ResNeXt": (lambda: tensors(groups=4, base_width=32), {"groups": 4, "base_width": 32}),
    "depthwise": (lambda: tensors(groups=8, base_width=8), {"groups": 8, "base_width": 8}),
    "wide and grouped": (lambda: tensors(groups=2, base_width=256), {"groups": 2, "base_width": 256}),
    "ResNet-C": (lambda: tensors(stem="deep"), {"stem": "deep"}),
    "ResNet-D of OpenMMLab": (
        lambda: {f"backbone.{re.sub('^bn1', 'stem.7', re.sub('^conv1.', 'stem.', k))}": t for k, t in tensors(**D).items()}, D),
    "tiered": (lambda: tensors(stem="deep-tiered", avg_down=True), {"stem": "deep-tiered", "avg_down": True}),
    "deep and narrow": (lambda: tensors(stem="deep", stem_width=0.125), {"stem": "deep", "stem_width": 0.125}),
    "200 layers": (lambda: tensors("resnet200", 0.0625), {"name": "resnet200", "width": 0.0625}),
    "a classifier": (lambda: tensors(**D) | {"fc.weight": torch.ones(10, 256), "fc.bias": torch.ones(10)}, D),
    "wrappers": (lambda: {"state_dict": {f"module._orig_mod.{k}": t for k, t in tensors(**D).items()}}, D),
    "Detectron2's DeepLab": (
        lambda: {key_table(Architecture(name="resnet26", stem="deep"))[k]: t for k, t in tensors(stem="deep").items()},
        {"stem": "deep"}),
    "in numbers": (
        lambda: {re.sub("^bn1", "1", re.sub(r"^conv1\.", "0.", re.sub(r"^layer(\d)", lambda m: str(int(m[1]) + 3), k))): t
                 for k, t in tensors(**D).items()}, D),
}  # fmt: skip


@pytest.mark.parametrize("kind", RIGHT)
def test_an_unusual_file_of_one_of_ours_is_the_right_network(kind, tmp_path):
    make, fields = RIGHT[kind]
    torch.save(make(), tmp_path / "net.pth")
    found = load(tmp_path / "net.pth")
    assert found.arch == Architecture(**{"name": "resnet26", "width": 0.125, **fields})
    twin = make_backbone(
        found.arch.name, found.arch.width, **{k: v for k, v in fields.items() if k not in ("name", "width")}
    )
    x = torch.randn(1, 3, 64, 64)
    loose = {"rtol": 0.1, "atol": 0.1} if kind in ("half precision", "bfloat16") else {}
    with torch.no_grad():
        torch.testing.assert_close(found.build().eval()(x), twin.build().eval()(x), **loose)


ARCHS = {
    "another name": ({"name": "resnet9000"}, "resnet18"),
    "a name of megabytes": ({"name": "r" * 5_000_000}, "name"),
    "no name": ({"name": None}, "name"),
    "a list for a name": ({"name": ["resnet18"]}, "name"),
    "a tensor for a name": ({"name": torch.ones(3)}, "name"),
    "another depth": ({"name": "resnet50"}, "missing"),
    "as large as it gets": ({"name": "resnet200", "width": 8.0, "groups": 256, "base_width": 2048}, "missing"),
    "a width in words": ({"width": "1"}, "width"),
    "a width of nothing": ({"width": 0.0}, "width"),
    "a tiny width": ({"width": 1e-9}, "planes"),
    "a fractional width": ({"width": 0.3}, "planes"),
    "a huge width": ({"width": 1e308}, "width"),
    "NaN": ({"width": float("nan")}, "width"),
    "infinity": ({"stem_width": float("inf")}, "stem_width"),
    "true for a width": ({"width": True}, "width"),
    "half a group": ({"groups": 2.5}, "groups"),
    "groups in basic blocks": ({"name": "resnet18", "groups": 2}, "basic blocks|missing"),
    "a number of groups without end": ({"groups": 10**400}, "groups"),
    "another width": ({"width": 0.25}, "left over|has shape"),
    "groups that are not there": ({"groups": 4, "base_width": 32}, "has shape"),
    "averages that are not there": ({"avg_down": True}, "missing"),
    "a stem that is not there": ({"stem": "deep"}, "missing"),
    "a stem in other words": ({"stem": "deeper"}, "stem"),
    "an unknown field": ({"depth": 26}, "depth"),
    "a field that is not a word": ({7: 1}, "word"),
    "a deep mapping": ({"name": {"a": {"b": {}}}}, "name"),
    "bytes": ({"name": b"resnet26"}, "name"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ARCHS)
def test_what_our_own_file_states_of_itself_is_checked(kind, tmp_path):
    fields, words = ARCHS[kind]
    arch = {**Architecture(name="resnet26", width=0.125).model_dump(mode="json"), **fields}
    held = {"format": FORMAT, "arch": arch, "input": InputSpec().model_dump(mode="json"), "state_dict": tensors()}
    torch.save(held, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=words) as caught:
        load(tmp_path / "model.pth")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    "text",
    ["{width: 0.3}", "{groups: 3}", "{name: resnet18, groups: 2}", "{stem: deep-tiered}", "{width: .nan}", "{base_width: 63}",
     "{groups: 1000000000000000000000}", "{avg_down: 1}", "[1, 2]", "7"],
)  # fmt: skip
def test_a_sidecar_that_contradicts_the_weights_is_one_sentence(text, tmp_path):
    torch.save(tensors(), tmp_path / "net.pth")
    (tmp_path / "net.pth.yaml").write_text(f"arch: {text}\n")
    with pytest.raises(BackbenchError, match=r"net\.pth") as caught:
        load(tmp_path / "net.pth")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    "name",
    ["resnet51", "resnext50_999x999d", "wide_resnet18_2", "resnet" + "9" * 5000, "", "resnext50_0x4d"],
    ids=lambda name: name[:30] or "none",
)
def test_a_random_network_of_no_architecture_is_one_sentence(name):
    with pytest.raises(CheckpointError, match="unknown architecture"):
        load(f"random:{name}")
