"""The trunk equals torchvision's and timm's ResNets."""

import functools

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision.models._utils import IntermediateLayerGetter

from model_zoo.anatomy import expected_shapes, feature_dim
from model_zoo.architecture import Architecture
from model_zoo.load import load
from model_zoo.resnet import (
    LAYERS,
    SameConv2d,
    SameMaxPool2d,
    Trunk,
    build,
    same_padding,
)


def shake(module, seed=1):
    """Give the norms random statistics and weights, so that none is an identity by chance."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.weight.copy_(torch.rand(part.weight.shape, generator=generator) + 0.5)
                part.bias.copy_(torch.randn(part.bias.shape, generator=generator) * 0.1)
                part.running_mean.copy_(torch.randn(part.bias.shape, generator=generator) * 0.1)
                part.running_var.copy_(torch.rand(part.bias.shape, generator=generator) + 0.5)
    return module


def without_head(network):
    return {name: tensor for name, tensor in network.state_dict().items() if not name.startswith("fc.")}


@pytest.fixture
def x():
    return torch.randn(2, 3, 64, 64)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_equals_torchvision(name, x):
    theirs = shake(getattr(torchvision.models, name)()).eval()
    ours = build(Architecture(name=name))
    ours.load_state_dict(without_head(theirs))
    ours.eval()
    stages = IntermediateLayerGetter(theirs, {f"layer{i}": str(i) for i in range(1, 5)})
    with torch.no_grad():
        expected = list(stages(x).values())
        found = ours.stages(x)
        theirs.fc = nn.Identity()
        pooled = theirs(x)
        assert len(found) == 4
        for mine, other in zip(found, expected, strict=True):
            assert torch.equal(mine, other)
        assert torch.equal(ours(x), pooled)
    assert pooled.shape == (2, feature_dim(Architecture(name=name)))
    assert [tuple(stage.shape[-2:]) for stage in found] == [(16, 16), (8, 8), (4, 4), (2, 2)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("resnet18", {}),
        ("resnet50", {}),
        ("resnext50_32x4d", {"name": "resnet50", "groups": 32, "base_width": 4}),
        ("wide_resnet50_2", {"name": "resnet50", "base_width": 128}),
    ],
)
def test_initialised_as_torchvision_under_the_same_seed(name, fields):
    torch.manual_seed(5)
    theirs = without_head(getattr(torchvision.models, name)())
    arch = Architecture(**{"name": name} | fields)
    ours = build(arch, seed=5).state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    torch.manual_seed(5)
    unseeded = build(arch).state_dict()
    assert all(torch.equal(unseeded[key], theirs[key]) for key in theirs)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_trains_as_torchvision_to_the_bit(name):
    """Statistics and gradients are equal, too: pretrained weights must not depend on the implementation."""
    ours, theirs = build(Architecture(name=name), seed=5), getattr(torchvision.models, name)()
    theirs.fc = nn.Identity()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    for network in (ours, theirs):
        network(images).pow(2).sum().backward()
    for key, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[key], tensor), key
    for (key, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad), key


@pytest.mark.slow
def test_timm_weights_give_timms_features(tmp_path):
    theirs = shake(timm.create_model("resnet50", pretrained=False)).eval()
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    ours = load(tmp_path / "timm.pth").build().eval()
    theirs.reset_classifier(0)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = theirs(x)
        assert expected.std() > 1e-3
        torch.testing.assert_close(ours(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_expected_shapes_are_torchvisions(name):
    with torch.device("meta"):  # timm has depths that torchvision lacks
        theirs = without_head(getattr(torchvision.models, name, functools.partial(timm.create_model, name))())
    assert list(expected_shapes(Architecture(name=name)).items()) == [(k, tensor.shape) for k, tensor in theirs.items()]


@pytest.mark.parametrize(("name", "channels"), [("resnet18", [32, 64, 128, 256]), ("resnet50", [128, 256, 512, 1024])])
def test_half_width(name, channels, x):
    arch = Architecture(name=name, width=0.5)
    trunk = build(arch, seed=0).eval()
    assert trunk.conv1.weight.shape == (64, 3, 7, 7), "the stem keeps its width"
    with torch.no_grad():
        assert [stage.shape[1] for stage in trunk.stages(x)] == channels
        assert trunk(x).shape == (2, channels[-1])
    assert feature_dim(arch) == channels[-1]
    assert {key: tensor.shape for key, tensor in trunk.state_dict().items()} == expected_shapes(arch)
    assert trunk.layer2[0].conv1.weight.shape[:2] == ((64, 32) if name == "resnet18" else (64, 128))


def test_half_width_is_initialised_by_the_same_rule():
    trunk = build(Architecture(name="resnet18", width=0.5), seed=0)
    for part in trunk.modules():
        if isinstance(part, nn.Conv2d) and part.weight.numel() > 20_000:
            fan_out = part.out_channels * part.kernel_size[0] ** 2
            assert part.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
        if isinstance(part, nn.BatchNorm2d):
            assert bool((part.weight == 1).all()) and bool((part.bias == 0).all())


def test_stride_in_1x1_moves_the_stride(x):
    usual = shake(build(Architecture(name="resnet50"), seed=0)).eval()
    moved = build(Architecture(name="resnet50", stride_in_1x1=True), seed=0).eval()
    moved.load_state_dict(usual.state_dict())
    for layer in (moved.layer2, moved.layer3, moved.layer4):
        assert layer[0].conv1.stride == (2, 2)
        assert layer[0].conv2.stride == (1, 1)
        assert layer[1].conv1.stride == layer[1].conv2.stride == (1, 1)
    assert moved.layer1[0].conv1.stride == moved.layer1[0].conv2.stride == (1, 1)
    assert usual.layer2[0].conv1.stride == (1, 1) and usual.layer2[0].conv2.stride == (2, 2)
    with torch.no_grad():
        a, b = usual.stages(x), moved.stages(x)
        assert [s.shape for s in a] == [s.shape for s in b]
        assert torch.equal(a[0], b[0])
        assert not torch.allclose(a[1], b[1])
        block = moved.layer2[0]
        y = F.relu(block.bn1(F.conv2d(b[0], block.conv1.weight, stride=2)))
        y = F.relu(block.bn2(F.conv2d(y, block.conv2.weight, padding=1)))
        y = block.bn3(F.conv2d(y, block.conv3.weight)) + block.downsample(b[0])
        torch.testing.assert_close(block(b[0]), F.relu(y))


def test_pool_padding_end(x):
    end = build(Architecture(name="resnet18", pool_padding="end"), seed=0)
    symmetric = build(Architecture(name="resnet18"), seed=0)
    maps = torch.randn(1, 4, 32, 32) - 5  # negative, so that a padding with zeros is visible
    expected = F.max_pool2d(maps, 3, 2, ceil_mode=True)  # windows start at 0; the last one exceeds the end
    assert torch.equal(end.maxpool(maps), expected)
    assert not torch.equal(symmetric.maxpool(maps), expected)
    assert set(end.state_dict()) == set(symmetric.state_dict())
    with torch.no_grad():
        assert end.eval()(x).shape == (2, 512)


@pytest.mark.parametrize(("stem", "side"), [("3x3", 16), ("3x3-nopool", 32)])
def test_small_stems(stem, side):
    trunk = build(Architecture(name="resnet18", stem=stem), seed=0).eval()
    assert trunk.conv1.weight.shape == (64, 3, 3, 3)
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        c2, *_, c5 = trunk.stages(x)
        assert c2.shape[-1] == side
        assert c5.shape[-1] == side // 8
        stem_out = F.relu(trunk.bn1(F.conv2d(x, trunk.conv1.weight, padding=1)))
        if stem == "3x3":
            stem_out = F.max_pool2d(stem_out, 3, 2, 1)
        torch.testing.assert_close(c2, trunk.layer1(stem_out))
    assert trunk.conv1.weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.1)


def test_build_is_reproducible_and_leaves_the_global_generator_alone():
    arch = Architecture(name="resnet18", width=0.25)
    before = torch.get_rng_state()
    a, b, c = (build(arch, seed=seed).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not torch.equal(a["conv1.weight"], c["conv1.weight"])
    assert not torch.equal(a["layer4.0.conv1.weight"], c["layer4.0.conv1.weight"])


def test_there_is_no_head():
    assert not hasattr(Trunk(Architecture(name="resnet18")), "fc")


def tensorflow_same(x, kernel, stride, reduce):
    """Second implementation: each output from its window, placed by TensorFlow's formula, without cells outside."""
    sides = x.shape[-2:]
    counts = [-(-side // stride) for side in sides]
    before = [
        max(kernel - stride if side % stride == 0 else kernel - side % stride, 0) // 2 for side in sides
    ]  # tensorflow.org/api_docs/python/tf/nn: padding, in an equivalent form
    rows = []
    for i in range(counts[0]):
        row = []
        for j in range(counts[1]):
            top, left = i * stride - before[0], j * stride - before[1]
            y = [k for k in range(kernel) if 0 <= top + k < sides[0]]
            z = [k for k in range(kernel) if 0 <= left + k < sides[1]]
            row.append(reduce(x[..., top + y[0] : top + y[-1] + 1, left + z[0] : left + z[-1] + 1], y, z))
        rows.append(torch.stack(row, -1))
    return torch.stack(rows, -2)


@pytest.mark.parametrize("sides", [(16, 16), (15, 18), (17, 9)])
@pytest.mark.parametrize("kernel", [1, 3, 7])
def test_same_padding_is_tensorflows(kernel, sides):
    x = torch.randn(2, 3, *sides, dtype=torch.float64)
    conv = SameConv2d(3, 4, kernel, 2, bias=False).double()

    def convolve(window, y, z):
        weight = conv.weight[..., y[0] : y[-1] + 1, z[0] : z[-1] + 1]
        return torch.einsum("nchw,ochw->no", window, weight)

    torch.testing.assert_close(conv(x), tensorflow_same(x, kernel, 2, convolve))
    pool = SameMaxPool2d(kernel, 2)
    x = x - 5  # negative, so that a padding with zeros is visible
    assert torch.equal(pool(x), tensorflow_same(x, kernel, 2, lambda window, y, z: window.amax((-2, -1))))


def test_same_padding_at_even_sides_is_one_pixel_more_at_the_end():
    x = torch.randn(1, 1, 224, 224)
    assert torch.equal(same_padding(x, 7, 2), F.pad(x, (2, 3, 2, 3)))
    assert torch.equal(same_padding(x, 3, 2), F.pad(x, (0, 1, 0, 1)))
    assert torch.equal(same_padding(x, 1, 2), x)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_trunk_with_tensorflows_padding(name, x):
    arch = Architecture(name=name, pool_padding="same", conv_padding="same")
    usual = shake(build(Architecture(name=name), seed=0)).eval()
    same = build(arch, seed=0)
    assert torch.equal(same.conv1.weight, build(Architecture(name=name), seed=0).conv1.weight), "initialised alike"
    assert {key: tensor.shape for key, tensor in usual.state_dict().items()} == expected_shapes(arch)
    same.load_state_dict(usual.state_dict())
    same.eval()
    strided = [part for part in same.modules() if isinstance(part, nn.Conv2d) and part.stride == (2, 2)]
    assert len(strided) == 7 and all(isinstance(part, SameConv2d) for part in strided), "stem, 3 blocks, 3 shortcuts"
    with torch.no_grad():
        a, b = usual.stages(x), same.stages(x)
        assert [s.shape for s in a] == [s.shape for s in b]
        assert not torch.allclose(a[0], b[0])
        y = F.relu(same.bn1(F.conv2d(F.pad(x, (2, 3, 2, 3)), usual.conv1.weight, stride=2)))
        y = F.max_pool2d(F.pad(y, (0, 1, 0, 1)), 3, 2)  # after a ReLU, zeros and minus infinity pad alike
        torch.testing.assert_close(b[0], usual.layer1(y))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_wide_stem(name, tmp_path, x):
    """SwAV's w2 and SimCLR's 2x widen the stem, too; the tensors show both widths."""
    arch = Architecture(name=name, width=2.0, stem_width=2.0)
    trunk = build(arch, seed=0).eval()
    assert trunk.conv1.weight.shape == (128, 3, 7, 7)
    assert trunk.layer1[0].conv1.weight.shape[1] == 128
    assert (trunk.layer1[0].downsample is None) == (name == "resnet18")
    with torch.no_grad():
        assert trunk(x).shape == (2, feature_dim(arch))
    torch.save(trunk.state_dict(), tmp_path / "wide.pth")
    assert load(tmp_path / "wide.pth").arch == arch
    assert arch.model_dump(mode="json")["stem_width"] == 2.0
    assert trunk.conv1.weight.std().item() == pytest.approx((2 / (128 * 49)) ** 0.5, rel=0.05)


def test_the_usual_padding_leaves_no_trace_in_a_record():
    """Records from before the field existed keep their identity."""
    plain = Architecture(name="resnet50")
    assert set(plain.model_dump(mode="json")) == {"name", "width", "stem", "stride_in_1x1", "pool_padding"}
    same = Architecture(name="resnet50", conv_padding="same")
    assert same.model_dump(mode="json")["conv_padding"] == "same"
    assert Architecture.model_validate_json(same.model_dump_json()) == same
    assert Architecture.model_validate_json(plain.model_dump_json()) == plain
