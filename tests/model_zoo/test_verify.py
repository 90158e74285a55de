"""`verify` on sound, untrained, collapsed and unusual backbones."""

import functools

import pytest
import torch
from backbones import initial

from backbench.spectra import effective_rank
from model_zoo import verify
from model_zoo.architecture import Architecture, InputSpec
from model_zoo.backbone import save
from model_zoo.resnet import build

ARCH = Architecture(name="resnet18", width=0.25)


def trained_state():
    """Return a new copy of `_trained`."""
    return {name: tensor.clone() for name, tensor in _trained().items()}


@functools.cache
def _trained():
    """Return a network with measured statistics and changed weights."""
    module = build(ARCH, seed=0).train()
    for i, tensor in enumerate(module.parameters()):
        if tensor.ndim == 4:
            tensor.data.mul_(0.5 + 0.1 * (i % 7))
    with torch.no_grad():
        for _ in range(5):
            module(verify.images(InputSpec(size=32)))
    return dict(module.state_dict())


@pytest.fixture
def look(tmp_path):
    def card(state, arch=ARCH, spec=InputSpec(size=32)):  # noqa: B008
        save(tmp_path / "model.pth", state, arch, spec)
        return verify.card(tmp_path / "model.pth")

    return card


def test_a_sound_one_has_no_warnings(look):
    card = look(trained_state())
    assert card["warnings"] == ["none"] and card["notes"] == ["none"]
    assert card["conventions"] == ["torchvision's"]
    assert card["batchnorm"].startswith("trained statistics;")
    assert "21 convolutions, spread 0.50 to 1.10" in card["weights"]


def test_an_untrained_one(look):
    card = look(initial(ARCH, 5))
    assert card["batchnorm"].startswith("UNTRAINED")
    assert any("hardly trained" in line for line in card["warnings"])
    assert any("statistics are those of a fresh network" in line for line in card["warnings"])


def test_folded_statistics_are_not_called_a_fresh_networks_alone(look):
    state = initial(ARCH, 5)
    state["bn1.weight"] *= 1.5
    assert "folded" in look(state)["batchnorm"]


def test_some_layers_untrained(look):
    state = trained_state()
    state["layer3.0.bn2.running_mean"].zero_()
    state["layer3.0.bn2.running_var"].fill_(1)
    card = look(state)
    assert "in 20 of 21 layers" in card["batchnorm"]
    assert any("1 of 21 layers are untrained: layer3.0.bn2" in line for line in card["warnings"])


def test_a_collapsed_one(look):
    state = trained_state()
    for norm in ("layer4.0.bn2", "layer4.0.downsample.1", "layer4.1.bn2"):
        state[f"{norm}.weight"].zero_()
        state[f"{norm}.bias"].fill_(0.1)
    card = look(state)
    assert any(line.startswith("COLLAPSED") for line in card["warnings"])
    assert "100% constant" in card["features"]


def test_an_unknown_files_conventions_are_assumed(tmp_path):
    torch.save(trained_state(), tmp_path / "model.pth")
    (tmp_path / "model.pth.yaml").write_text("input: {size: 32, order: bgr}")
    assert verify.card(tmp_path / "model.pth")["conventions"] == ["channels are BGR"]
    (tmp_path / "model.pth.yaml").unlink()
    assert verify.card(tmp_path / "model.pth")["conventions"] == ["torchvision's, assumed"]


def test_the_rank_is_that_of_the_features(look, tmp_path):
    state = trained_state()
    card = look(state)
    module = build(ARCH)
    module.load_state_dict(state)
    with torch.no_grad():
        rank = effective_rank(module.eval()(verify.images(InputSpec(size=32))))
    assert f"effective rank {rank:.1f} of 15" in card["features"]


def test_filters_without_weights_are_counted(look):
    state = trained_state()
    state["layer2.0.conv1.weight"][[1, 5, 7]] = 0
    assert "3 filters are all zero" in look(state)["warnings"]


def test_variances_that_are_0(look):
    state = trained_state()
    assert not any("variances" in line for line in look(state)["warnings"])
    state["layer2.0.bn1.running_var"][4] = 0
    assert any(line.startswith("1 running variances are 0") for line in look(state)["warnings"])


def test_features_that_are_no_numbers(look):
    state = trained_state()
    state["layer4.1.bn2.weight"].fill_(3e38)
    assert any("NaN or infinite" in line for line in look(state)["warnings"])


def test_conventions_are_called_out():
    def of(arch=None, **spec):
        arch = Architecture(name="resnet50", **(arch or {}))
        return " / ".join(verify.conventions(_Named(arch, InputSpec(**spec))))

    assert of() == ""
    assert "first 1x1" in of({"stride_in_1x1": True})
    assert "padded at the end" in of({"pool_padding": "end"})
    assert "3x3-nopool" in of({"stem": "3x3-nopool"})
    assert of(order="bgr", mean=(0.406, 0.456, 0.485)) == "channels are BGR"
    assert "SwAV's code" in of(std=(0.228, 0.224, 0.225))
    assert "SwAV" not in of(std=(1.0, 1.0, 1.0)) and "usual" in of(std=(1.0, 1.0, 1.0))


class _Named:
    def __init__(self, arch, spec):
        self.arch, self.input = arch, spec


def test_bgr_images_are_the_rgb_ones_turned_round():
    plain = {"size": 32, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    assert torch.equal(verify.images(InputSpec(**plain, order="bgr")), verify.images(InputSpec(**plain)).flip(1))
    assert 0 <= verify.images(InputSpec(**plain)).min() < verify.images(InputSpec(**plain)).max() <= 1 + 1e-6
