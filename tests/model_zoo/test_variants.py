"""Wide ResNet, ResNeXt and ResNet-C, -D, -S and -T: inferred from weights, and equal to torchvision's and timm's."""

import pytest
import timm
import torch
import torchvision
from backbones import initial, make_backbone, tiny
from pydantic import ValidationError
from torch import nn
from torchvision.models._utils import IntermediateLayerGetter

from backbench.errors import CheckpointError
from model_zoo.__main__ import main
from model_zoo.anatomy import expected_shapes, feature_dim
from model_zoo.architecture import Architecture, InputSpec, architecture_fields, named, unusual
from model_zoo.backbone import Backbone, save
from model_zoo.load import load
from model_zoo.resnet import Trunk, build

slow = pytest.mark.slow


def shaken(module, seed=1):
    """Give the norms random statistics and weights, so that none is an identity by chance."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.weight.uniform_(0.5, 1.0, generator=generator)
                part.bias.normal_(0, 0.1, generator=generator)
                part.running_mean.normal_(0, 0.1, generator=generator)
                part.running_var.uniform_(0.5, 1.5, generator=generator)
    return module.eval()


D = {"stem": "deep", "avg_down": True}
NAMES = {
    "wide_resnet50_2": ("resnet50", {"base_width": 128}),
    "resnet18d": ("resnet18", D),
}
RARER = {
    "resnext50_32x4d": ("resnet50", {"groups": 32, "base_width": 4}),
    "resnet26t": ("resnet26", {"stem": "deep-tiered", "avg_down": True}),
    "resnet50s": ("resnet50", {"stem": "deep", "stem_width": 2.0}),
    "resnext50d_32x4d": ("resnet50", {"groups": 32, "base_width": 4, **D}),
    "resnet26d": ("resnet26", D),
    "resnet50c": ("resnet50", {"stem": "deep"}),
    "resnet200": ("resnet200", {}),
}
ONLY_NAMED = {  # other depths and widths of the variants above
    "wide_resnet101_2": ("resnet101", {"base_width": 128}),
    "resnext101_32x8d": ("resnet101", {"groups": 32, "base_width": 8}),
    "resnext101_64x4d": ("resnet101", {"groups": 64, "base_width": 4}),
    "resnet34d": ("resnet34", D),
    "resnet50d": ("resnet50", D),
    "resnet50t": ("resnet50", {"stem": "deep-tiered", "avg_down": True}),
    "resnet101d": ("resnet101", D),
    "resnet152d": ("resnet152", D),
}
BOTH = [pytest.param(name, marks=() if name == "resnet18d" else slow) for name in (*NAMES, *RARER)]


def wanted(name):
    base, fields = (NAMES | RARER | ONLY_NAMED)[name]
    return Architecture(name=base, **fields)


def theirs(name):
    """Return timm's or torchvision's network, with its stages' maps and pooled features of one batch."""
    network = shaken(timm.create_model(name))
    x = torch.randn(2, 3, 90, 70, generator=torch.Generator().manual_seed(2))  # gives odd sides in between
    stages = IntermediateLayerGetter(network, {f"layer{i}": str(i) for i in range(1, 5)})
    with torch.no_grad():
        maps = list(stages(x).values())
        network.reset_classifier(0)
        return network, x, maps, network(x)


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.sample(4)
def test_timms_weights_give_timms_function(name, tmp_path):
    network, x, maps, pooled = theirs(name)
    torch.save(network.state_dict(), tmp_path / "file.pth")
    found = load(tmp_path / "file.pth")
    assert found.arch == wanted(name)
    module = found.build().eval()
    with torch.no_grad():
        for ours, stage in zip(module.stages(x), maps, strict=True):
            torch.testing.assert_close(ours, stage, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(module(x), pooled, rtol=1e-5, atol=1e-5)
    assert pooled.shape[1] == found.feature_dim == feature_dim(found.arch)


@pytest.mark.parametrize("fields", [{"width_per_group": 128}, {"groups": 32, "width_per_group": 4}], ids=str)
def test_wide_and_grouped_blocks_of_torchvision(fields, tmp_path):
    """Test the kind at a small depth; slow tests cover the published depths."""
    network = shaken(torchvision.models.ResNet(torchvision.models.resnet.Bottleneck, [2, 2, 2, 2], **fields))
    torch.save(network.state_dict(), tmp_path / "file.pth")
    found = load(tmp_path / "file.pth")
    assert found.arch == Architecture(
        name="resnet26", **{k.replace("width_per_group", "base_width"): v for k, v in fields.items()}
    )
    network.fc = nn.Identity()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(found.build().eval()(x), network(x))


@slow
@pytest.mark.parametrize("name", ["resnext50_32x4d", "wide_resnet50_2"])
def test_torchvisions_weights_give_torchvisions_function(name, tmp_path):
    network = shaken(getattr(torchvision.models, name)())
    torch.save(network.state_dict(), tmp_path / "file.pth")
    found = load(tmp_path / "file.pth")
    network.fc = nn.Identity()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(found.build().eval()(x), network(x))


@pytest.mark.parametrize(
    "name", [pytest.param("resnext50_32x4d", marks=slow), pytest.param("wide_resnet50_2", marks=slow)]
)
def test_random_ones_are_initialised_as_torchvision(name):
    torch.manual_seed(5)
    network = getattr(torchvision.models, name)().state_dict()
    ours = load(f"random:{name}", seed=5)
    assert ours.arch == wanted(name)
    assert all(torch.equal(network[key], tensor) for key, tensor in ours.state.items())


@pytest.mark.parametrize("name", [*NAMES, *RARER, *ONLY_NAMED])
def test_names(name):
    assert named(name) == wanted(name)


@pytest.mark.parametrize(
    "name",
    ["resnet51", "wide_resnet50", "resnext50", "resnext18_32x4d", "resnet50_32x4d", "resnet50_2", "resnet50x", "vgg16",
     "wide_resnet18_2", "resnext50_300x4d", "resnext50_3x0d", ""],
)  # fmt: skip
def test_names_of_no_architecture(name):
    assert named(name) is None
    with pytest.raises(CheckpointError, match="unknown architecture"):
        load(f"random:{name}")


COMBINED = [
    *(fields | {"name": base} for base, fields in (NAMES | RARER | ONLY_NAMED).values()),
    {"name": "resnet50", "width": 0.5, "groups": 4, "base_width": 32, "stem": "deep", "stem_width": 0.25},
    {"name": "resnet50", "avg_down": True, "stride_in_1x1": True, "width": 0.25},
    {"name": "resnet18", "avg_down": True, "stem": "3x3", "width": 0.25},
    {"name": "resnet50", "width": 0.25, "conv_padding": "same", "pool_padding": "same", **D},
    {"name": "resnet34", "width": 2.0, "stem_width": 2.0, "stem": "deep-tiered", "pool_padding": "end"},
]


@pytest.mark.parametrize("fields", COMBINED, ids=lambda fields: architecture_fields(Architecture(**fields)))
def test_expected_shapes_are_the_trunks(fields):
    arch = Architecture(**fields)
    with torch.device("meta"):
        state = Trunk(arch).state_dict()
    assert list(expected_shapes(arch).items()) == [(name, tensor.shape) for name, tensor in state.items()]


def test_fresh_layers_follow_one_rule():
    trunk = build(Architecture(name="resnet50", width=0.25, groups=2, base_width=64, **D), seed=0)
    for part in trunk.modules():
        if isinstance(part, nn.Conv2d) and part.weight.numel() > 5_000:
            fan_out = part.out_channels * part.kernel_size[0] ** 2 / part.groups
            assert part.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05) or part.groups > 1


@pytest.mark.parametrize(
    "fields",
    [pytest.param({"base_width": 128}, marks=slow), pytest.param({"groups": 8, "base_width": 16}, marks=slow), D],
    ids=str,
)
def test_everything_that_is_written_can_be_read(fields, tmp_path, capsys):
    """Test our own file, its card, and a random baseline with its architecture."""
    arch = Architecture(name="resnet50", width=0.25, **fields)
    backbone = Backbone("x", arch, shaken(tiny(arch).build()).state_dict(), InputSpec(size=64), "x", "x")
    save(tmp_path / "model.pth", backbone.state, arch, backbone.input)
    found = load(tmp_path / "model.pth")
    assert (found.arch, found.weights_sha256) == (arch, backbone.weights_sha256)
    assert Architecture.model_validate_json(arch.model_dump_json()) == arch
    assert main(["verify", str(tmp_path / "model.pth")]) == 0
    printed = capsys.readouterr().out
    assert all(f"{field}={value}" in printed for field, value in fields.items())
    assert load("random:resnet50", like=found).arch == arch
    assert unusual(arch).keys() == {"width", *fields}


def test_the_young_fields_leave_no_trace_where_they_say_nothing():
    """Records from before the fields existed keep their identity."""
    assert set(Architecture(name="resnet50").model_dump(mode="json")) == {
        "name", "width", "stem", "stride_in_1x1", "pool_padding",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("key", "container"),
    [("backbone.{}", "mmengine"), ("backbone.{}", "flat"), ("module.encoder.{}", "flat"), ("{}", "flat")],
)
def test_openmmlabs_deep_stem(key, container, tmp_path):
    """mmpretrain's and mmdet's ResNetV1c and V1d name the stem `stem.0` to `stem.7`."""
    arch = Architecture(name="resnet18", width=0.25, **D)
    state = shaken(tiny(arch).build()).state_dict()
    tensors = {}
    for name, tensor in state.items():
        place = name.replace("conv1.", "stem.", 1) if name.startswith("conv1.") else name
        tensors[key.format("stem.7." + place[4:] if place.startswith("bn1.") else place)] = tensor
    torch.save({"state_dict": tensors, "meta": {}} if container == "mmengine" else tensors, tmp_path / "x.pth")
    found = load(tmp_path / "x.pth")
    assert found.arch == arch
    assert all(torch.equal(found.state[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("name", ["resnet18d", pytest.param("resnext50_32x4d", marks=slow),
                                  pytest.param("wide_resnet50_2", marks=slow)])  # fmt: skip
def test_timms_names_are_resnets_of_ours(name):
    found = load(f"timm:{name}?pretrained=false")
    assert found.is_resnet and found.arch == wanted(name)


@slow
@pytest.mark.parametrize(
    "name", ["resnetaa34d", "resnetblur18", "seresnet18", "ecaresnet26t", "resnet50_gn", "resnetrs50"]
)
def test_timms_other_relatives_are_not(name):
    assert not load(f"timm:{name}?pretrained=false").is_resnet


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": "resnet18", "groups": 2}, "basic blocks, which take neither groups nor base_width"),
        ({"name": "resnet34", "base_width": 128}, "basic blocks"),
        ({"width": 0.3}, r"width 0.3 is 19.2 planes, a whole number is needed; nearest: width 0.296875 \(19\)"),
        ({"width": 1e-9}, "a whole number is needed; nearest: width 0.015625"),
        ({"stem_width": 0.01}, "stem_width 0.01 is 0.64 planes"),
        ({"width": float("nan")}, "finite|greater than 0"),
        ({"width": float("inf")}, "finite|less than or equal to 8"),
        ({"width": 1e300}, "less than or equal to 8"),
        ({"width": -1.0}, "greater than 0"),
        ({"groups": 0}, "greater than or equal to 1"),
        ({"groups": 10**9}, "less than or equal to 256"),
        ({"base_width": 10**12}, "less than or equal to"),
        ({"width": 0.25, "base_width": 3}, "0.75 planes a group"),
        ({"stem": "deep", "stem_width": 1 / 64}, "needs an even number of planes"),
        ({"stem": "deep-tiered", "stem_width": 0.1875}, "a multiple of 8 of planes"),
        ({"stem": "5x5"}, "7x7"),
    ],
)
def test_combinations_that_are_no_network(fields, words):
    with pytest.raises(ValidationError, match=words):
        Architecture(**{"name": "resnet50", **fields})


@pytest.mark.parametrize("std", [0.0, -0.2, float("nan"), 1e-300])
def test_images_are_not_divided_by_nothing(std):
    with pytest.raises(ValidationError, match=r"greater than or equal to|finite"):
        InputSpec(std=(0.2, std, 0.2))


def test_a_sidecar_may_state_what_is_narrower(tmp_path):
    """No published network has narrower 3x3 convolutions: they need a sidecar."""
    state = initial(Architecture(name="resnet50", base_width=8))
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"has shape \(8, 64, 1, 1\), resnet50 needs \(64, 64, 1, 1\)"):
        load(tmp_path / "x.pth")
    (tmp_path / "x.pth.yaml").write_text("arch: {base_width: 8}\n")
    assert load(tmp_path / "x.pth").arch.base_width == 8


def test_a_bgr_backbone_with_a_deep_stem_turns_its_first_convolution():
    from model_zoo.export import in_rgb

    backbone = make_backbone("resnet18", 0.25, InputSpec(order="bgr"), **D)
    turned = in_rgb(backbone)
    assert torch.equal(turned.state["conv1.0.weight"], backbone.state["conv1.0.weight"].flip(1))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(turned.build().eval()(x), backbone.build().eval()(x.flip(1)))
