"""Files of other libraries: their models, saved their way, and the layouts in their sources."""

import json
import re

import numpy as np
import pytest
import timm
import torch
import torchvision
from backbones import initial, tiny
from safetensors.torch import save_file
from torch import nn

from backbench.errors import CheckpointError
from model_zoo import formats
from model_zoo.architecture import Architecture
from model_zoo.load import load

pytestmark = pytest.mark.slow  # the libraries take seconds to import

ARCH = Architecture(name="resnet18", width=0.25)
X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def unlike_fresh(module):
    """Set statistics and affine parameters that no fresh network has."""
    generator = torch.Generator().manual_seed(1)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1, generator=generator)
            part.running_var.uniform_(0.5, 2, generator=generator)
            part.weight.data.uniform_(0.5, 1.5, generator=generator)
            part.bias.data.normal_(0, 0.1, generator=generator)
    return module.eval()


def assert_same_features(path, expected, **fields):
    backbone = load(path)
    for name, value in fields.items():
        assert getattr(backbone, name) == value
    with torch.no_grad():
        torch.testing.assert_close(backbone.build().eval()(X), expected, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def state():
    return dict(unlike_fresh(tiny(ARCH).build()).state_dict())


@pytest.fixture(scope="module")
def twin():
    return initial(ARCH, 1)


@pytest.fixture
def write(tmp_path):
    def put(obj, name="photos.pth"):
        torch.save(obj, tmp_path / name)
        return tmp_path / name

    return put


def under(prefix, tensors):
    return {prefix + name: tensor for name, tensor in tensors.items()}


# ---------------------------------------------------------------- built and saved by the library


@pytest.mark.parametrize(("name", "ending"), [("resnet18", "pth"), ("resnet50", "safetensors")])
@torch.no_grad()
def test_timm(tmp_path, name, ending):
    model = unlike_fresh(timm.create_model(name, num_classes=10))
    path = tmp_path / f"model.{ending}"
    save_file(model.state_dict(), path) if ending == "safetensors" else torch.save(
        {"state_dict": model.state_dict()}, path
    )
    expected = model.forward_head(model.forward_features(X), pre_logits=True)
    assert_same_features(path, expected, format="torchvision", arch=Architecture(name=name))


@torch.no_grad()
def test_timm_by_name(tmp_path, monkeypatch):
    """Let timm load its weights from a file instead of the hub."""
    model = unlike_fresh(timm.create_model("resnet18", num_classes=1000))
    torch.save(model.state_dict(), tmp_path / "r18.pth")
    own = {"file": str(tmp_path / "r18.pth"), "mean": (0.1, 0.2, 0.3)}
    create = timm.create_model
    monkeypatch.setattr(
        timm,
        "create_model",
        lambda n, pretrained, num_classes: create(n, pretrained, num_classes=num_classes, pretrained_cfg_overlay=own),
    )
    backbone = load("timm:resnet18.a1_in1k")
    assert (backbone.name, backbone.source) == ("resnet18.a1_in1k", "timm:resnet18.a1_in1k")
    assert (backbone.input.mean, backbone.input.size) == ((0.1, 0.2, 0.3), 224)
    model.fc = nn.Identity()
    torch.testing.assert_close(backbone.build().eval()(X), model(X), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@torch.no_grad()
def test_transformers(tmp_path, name):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    deep = name == "resnet50"
    config = transformers.ResNetConfig(
        embedding_size=64,
        hidden_sizes=[256, 512, 1024, 2048] if deep else [64, 128, 256, 512],
        depths=[3, 4, 6, 3] if deep else [2, 2, 2, 2],
        layer_type="bottleneck" if deep else "basic",
    )
    model = unlike_fresh(transformers.ResNetForImageClassification(config))
    model.save_pretrained(tmp_path / "saved")
    expected = model.resnet(X).pooler_output.flatten(1)
    assert_same_features(tmp_path / "saved" / "model.safetensors", expected, format="huggingface")


def test_timm_without_such_weights():
    with pytest.raises(CheckpointError, match="timm:none_such: timm cannot get these weights"):
        load("timm:none_such")


@pytest.mark.parametrize(("name", "zipped"), [("resnet18", True), ("resnet34", False)])
@torch.no_grad()
def test_torchvision(tmp_path, name, zipped):
    model = unlike_fresh(torchvision.models.get_model(name))
    torch.save(model.state_dict(), tmp_path / "model.pth", _use_new_zipfile_serialization=zipped)
    model.fc = nn.Identity()
    assert_same_features(tmp_path / "model.pth", model(X), format="torchvision", arch=Architecture(name=name))


@pytest.mark.parametrize("whole", [True, False])
@torch.no_grad()
def test_lightly(tmp_path, whole):
    """MoCo with lightly's heads and momentum copy: a named network as in its benchmarks, or numbered children."""
    heads = pytest.importorskip("lightly.models.modules.heads")
    from lightly.models.utils import deactivate_requires_grad

    class MoCo(nn.Module):
        def __init__(self):
            super().__init__()
            network = unlike_fresh(torchvision.models.resnet18())
            network.fc = nn.Identity()
            self.backbone = network if whole else nn.Sequential(*list(network.children())[:-1])
            self.projection_head = heads.MoCoProjectionHead(512, 512, 128)
            other = torchvision.models.resnet18()
            self.backbone_momentum = other if whole else nn.Sequential(*list(other.children())[:-1])
            self.projection_head_momentum = heads.MoCoProjectionHead(512, 512, 128)
            deactivate_requires_grad(self.backbone_momentum)

    model = MoCo().eval()
    if whole:
        model.backbone_momentum.fc = nn.Identity()
    torch.save(
        {"epoch": 1, "pytorch-lightning_version": "2.6.0", "state_dict": model.state_dict()}, tmp_path / "m.ckpt"
    )
    layout = "lightning" if whole else "sequential"
    assert_same_features(tmp_path / "m.ckpt", model.backbone(X).flatten(1), format=layout)


@pytest.mark.slow
@torch.no_grad()
def test_lightnings_own_checkpoint(tmp_path):
    """Lightning's trainer writes hyper-parameters that are not tensors; we read them without its classes."""
    lightning = pytest.importorskip("pytorch_lightning")

    class Module(lightning.LightningModule):
        def __init__(self, **options):
            super().__init__()
            self.save_hyperparameters()
            self.backbone = unlike_fresh(torchvision.models.resnet18())
            self.backbone.fc = nn.Identity()
            self.projection_head = nn.Linear(512, 8)

    import argparse

    model = Module(options=argparse.Namespace(lr=0.1), scale=np.float64(2)).eval()
    trainer = lightning.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", enable_model_summary=False)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(tmp_path / "epoch=1.ckpt")
    assert_same_features(tmp_path / "epoch=1.ckpt", model.backbone(X), format="lightning")


def test_a_folder_of_the_hub(tmp_path, state):
    """Input and stride placement are read from a folder for `from_pretrained`."""
    bottleneck = initial(Architecture(name="resnet50", width=0.25))
    tensors = formats.modules()["huggingface"].example(bottleneck, Architecture(name="resnet50", width=0.25))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "resnet", "downsample_in_bottleneck": True}))
    backbone = load(tmp_path)
    assert backbone.arch.stride_in_1x1 and backbone.format == "huggingface"
    assert any("no preprocessor_config.json: ImageNet's mean and std" in note for note in backbone.notes)
    said = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.1], "size": {"shortest_edge": 96}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    spec = load(tmp_path).input
    assert (spec.size, spec.mean, spec.std) == (96, (0.5, 0.4, 0.3), (0.2, 0.2, 0.1))


def test_huggingface_safetensors(tmp_path, state):
    tensors = formats.modules()["huggingface"].example(state, ARCH)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
    backbone = load(tmp_path / "model.safetensors")
    assert backbone.format == "huggingface"
    assert all(torch.equal(backbone.state[name], state[name]) for name in state)


# ---------------------------------------------------------------- documented in their sources

H = torch.zeros(8, 8)


def documented(s, t):
    """Return (layout, file) by family, with the network `s` and its twin `t`."""
    blocks = {"conv1": "0.Conv", "bn1": "0.bn"}
    sequence = dict(nn.Sequential(*list(unlike_fresh(tiny(ARCH).build()).children())).state_dict())
    return {
        "SimSiam": ("prefixed", {"state_dict": {**under("module.encoder.", s), "module.encoder.fc.0.weight": H,
                                                "module.predictor.0.weight": H}, "arch": "resnet50"}),
        "SwAV": ("prefixed", {**under("module.", s), "module.projection_head.0.weight": H, "module.prototypes.weight": H}),
        "DeepCluster-v2": ("prefixed", {**under("module.", s), "module.prototypes.prototypes0.weight": H}),
        "Barlow Twins, whole": ("prefixed", {"model": {**under("module.backbone.", s), "module.projector.0.weight": H,
                                                       "module.bn.running_mean": H}}),
        "DINO, backbone": ("torchvision", s),
        "DINO, run": ("dino", {"student": under("module.backbone.", t), "teacher": {**under("module.backbone.", s),
                               "module.head.mlp.0.weight": H}, "dino_loss": {"center": H}}),
        "OBoW, feature extractor": ("obow", {"epoch": 200, "meters": None, "network": {
            "_feature_blocks." + re.sub(r"^(layer)?(conv1|bn1|\d)", lambda m: blocks.get(m[2], m[2]), k): v
            for k, v in s.items()}}),
        "NPID of lemniscate": ("prefixed", {"epoch": 200, "arch": "resnet50", "best_prec1": 0.5, "optimizer": {"state": {}},
                               "state_dict": {**under("module.", s), "module.fc.weight": H, "module.fc.bias": H}}),
        "OBoW, features": ("obow", {"network": {**s, "fc.weight": H, "fc.bias": H}}),
        "PixPro, published": ("pixpro", {"model": {**under("module.encoder.", s), **under("module.encoder_k.", t),
                                         "module.projector.linear1.weight": H, "module.projector_k.linear1.weight": H}}),
        "PIRL of PyContrast": ("prefixed", {"model": {**under("module.encoder.", s), "module.head.0.weight": H,
                                            "module.head_jig.0.weight": H, "module.jigsaw.weight": H}, "contrast": {}}),
        "W-MSE of htdt": ("prefixed", {**under("model.module.", s), "head.0.weight": H}),
        "CompRess": ("prefixed", {"model": {**under("module.", s), "module.fc.0.weight": H}}),
        "ReSSL": ("moco", {"model": {**under("module.encoder_q.net.", s), **under("module.encoder_k.net.", t),
                                     "module.encoder_q.head.0.weight": H, "module.queue": H}}),
        "MSF": ("moco", {"state_dict": {**under("encoder_q.", s), **under("encoder_t.", t), "predict_q.0.weight": H,
                                        "encoder_q.fc.0.weight": H, "queue": H, "queue_ptr": H}}),
        "ReSim": ("moco", {"state_dict": {**under("module.encoder_q.", s), "module.encoder_q.fpn.0.weight": H}}),
        "VISSL, converted": ("vissl", {"model_state_dict": under("_feature_blocks.", s)}),
        "DenseCL, extracted": ("torchvision", {"state_dict": s, "author": "DenseCL"}),
        "mmselfsup 0.x": ("mmselfsup", {"meta": "text", "state_dict": {**under("backbone.", s), **under("online_net.0.", s),
                          **under("target_net.0.", t), "online_net.1.fc0.weight": H, "head.predictor.fc0.weight": H}}),
        "mmselfsup 1.x": ("mmselfsup", {"meta": {}, "state_dict": {**under("backbone.", s), "neck.fc0.weight": H,
                          **under("encoder_k.module.0.", t), "queue": H}}),
        "solo-learn, old": ("lightning", {"state_dict": {**under("encoder.", s), **under("momentum_encoder.", t),
                            "projector.0.weight": H}, "hyper_parameters": {}}),
        "bolts": ("lightning", {"pytorch-lightning_version": "1.0", "state_dict": {**under("encoder.", s),
                  "encoder.fc.weight": H, "projection.model.0.weight": H}}),
        "lightly's DINO": ("lightning", {"state_dict": {**under("backbone.", s), **under("student_backbone.", t),
                           "student_projection_head.layers.0.weight": H, "online_classifier.weight": H}}),
        "BYOL of yaox12": ("sequential", {"online_backbone": under("encoder.", sequence)}),
        "Caffe2, flat": ("caffe2", formats.modules()["caffe2"].example(s, ARCH)["blobs"]),
        "SimCLR v2, flat": ("simclr_pytorch", formats.modules()["simclr_pytorch"].example(s, ARCH)["resnet"]),
    }  # fmt: skip


@pytest.fixture(scope="module")
def families(state, twin):
    return documented(state, twin)


@pytest.mark.parametrize("family", sorted(documented({}, {})))
def test_documented_layout(write, state, families, family):
    layout, obj = families[family]
    backbone = load(write(obj))
    assert backbone.format == layout
    same = (name for name in state if not name.endswith("num_batches_tracked"))
    assert all(torch.equal(backbone.state[name], state[name]) for name in same)


def test_caffe2_states_its_input(write, state):
    spec = load(write(formats.modules()["caffe2"].example(state, ARCH))).input
    assert spec.order == "bgr" and spec.std == pytest.approx((1 / 255,) * 3)
    assert load(write(formats.modules()["simclr_pytorch"].example(state, ARCH))).input.std == (1, 1, 1)


@pytest.mark.parametrize("layout", sorted(set(formats.modules()) - {"backbench", "detectron2"}))
def test_a_tensor_beside_the_network_is_an_error_that_names_it(write, state, layout):
    obj = formats.modules()[layout].example(state, ARCH)

    def add(part):
        if isinstance(part, dict) and any(
            isinstance(value, torch.Tensor) and value.ndim == 4 for value in part.values()
        ):
            part["surprise"] = torch.zeros(2, 2)
        elif isinstance(part, dict):
            for value in part.values():
                add(value)

    if layout == "haiku":
        obj["experiment_state"]["online_params"]["surprise"] = {"w": torch.zeros(2)}
    else:
        add(obj)
    with pytest.raises(CheckpointError, match=r"1 tensors left over .*surprise"):
        load(write(obj))


def test_two_copies_that_differ_are_refused(write, state, twin):
    tensors = {**under("backbone.", state), **under("encoder_q.0.", twin)}
    with pytest.raises(CheckpointError, match=r"'backbone\..*' and 'encoder_q\.0\..*' differ"):
        load(write({"meta": {}, "state_dict": tensors}))


@pytest.mark.parametrize("name", ["bn1.bias", "layer1.0.bn1.running_mean", "bn1.running_var"])
def test_copies_that_differ_in_a_bias_or_a_statistic_are_refused(write, state, name):
    other = {**state, name: state[name] + 1}
    tensors = {**under("backbone.", state), **under("encoder_q.0.", other)}
    with pytest.raises(CheckpointError, match=rf"'backbone\.{name}' and 'encoder_q\.0\.{name}' differ"):
        load(write({"meta": {}, "state_dict": tensors}))


def test_both_old_and_new_names_in_one_lightning_file_are_refused(write, state, twin):
    tensors = {**under("backbone.", state), **under("encoder.", twin)}
    with pytest.raises(CheckpointError, match="contains two networks"):
        load(write({"pytorch-lightning_version": "2", "state_dict": tensors}))


@pytest.mark.parametrize(
    ("prefix", "near"),
    [
        ("module.base_encoders.", "moco_v3"),
        ("module.encoder_qq.", "moco"),
        ("_feature_block.", "vissl"),
        ("bakbone.", "lightning"),
    ],
)
def test_the_nearest_layouts_are_named(write, state, prefix, near):
    with pytest.raises(CheckpointError) as caught:
        load(write({"state_dict": under(prefix, state)}))
    text = str(caught.value)
    assert f"'{prefix}'" in text, "the prefix is named"
    assert near in re.search(r"nearest: ([^;]*);", text)[1]


def test_a_grey_encoder_of_cmc_is_refused(write, state):
    grey = {**state, "conv1.weight": state["conv1.weight"][:, :1]}
    with pytest.raises(CheckpointError, match=r"no known layout.*module\.encoder1\."):
        load(write({"model": {**under("module.encoder1.", grey), **under("module.encoder2.", state)}}))
