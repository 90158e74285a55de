"""Checkpoint files of networks that the user names (`--arch timm:NAME`): DINO's, MAE's and MoCo v3's, and what is refused."""

from __future__ import annotations

import re

import pytest
import timm
import torch
import torch.nn.functional as F
import yaml

from backbench import load as api_load
from backbench.errors import CheckpointError, ConfigError
from benchmarks import run_all
from benchmarks.options import RunOptions
from benchmarks.records.store import read_all
from model_zoo import named
from model_zoo.__main__ import main
from model_zoo.choice import Choice
from model_zoo.load import load
from transfer import tasks

TINY = "timm:vit_tiny_patch16_224?depth=2&img_size=32"
SMALL = "timm:vit_small_patch16_224?depth=1&img_size=32"


def weights(arch, seed=1):
    """The tensors of a network of this architecture with other values than timm's initial ones."""
    name, _, query = arch.removeprefix("timm:").partition("?")
    fields = {k: v if k == "global_pool" else int(v) for k, v in (pair.split("=") for pair in query.split("&") if pair)}
    torch.manual_seed(seed)
    state = timm.create_model(name, num_classes=0, **fields).state_dict()
    return {k: t + 0.02 * torch.randn_like(t) if t.is_floating_point() else t for k, t in state.items()}


@pytest.fixture
def file(tmp_path):
    """Write a checkpoint and return its path."""

    def write(obj):
        torch.save(obj, tmp_path / "model.pth")
        return tmp_path / "model.pth"

    return write


def prefixed(state, prefix):
    return {prefix + name: tensor for name, tensor in state.items()}


def dino(state):
    head = {"mlp.0.weight": torch.zeros(4, 4), "last_layer.weight_g": torch.ones(4, 1)}
    student = prefixed({k: t + 1 for k, t in state.items()}, "module.backbone.")
    teacher = {**prefixed(state, "backbone."), **prefixed(head, "head.")}
    return {"student": student | prefixed(head, "module.head."), "teacher": teacher, "epoch": 100, "args": None}


def mae(state):
    decoder = {"mask_token": torch.zeros(1, 1, 8), "decoder_pos_embed": torch.zeros(1, 5, 8),
               "decoder_embed.weight": torch.zeros(8, 8), "decoder_blocks.0.norm1.weight": torch.ones(8)}  # fmt: skip
    return {"model": {**state, **decoder}, "epoch": 800}


def moco_v3(state):
    tensors = prefixed(state, "module.base_encoder.")
    tensors |= prefixed({k: t + 1 for k, t in state.items()}, "module.momentum_encoder.")
    heads = {f"module.{name}.0.weight": torch.zeros(8, 8)
             for name in ("base_encoder.head", "momentum_encoder.head", "predictor")}  # fmt: skip
    return {"epoch": 300, "arch": "vit_base", "state_dict": tensors | heads, "optimizer": {"state": {}}}


def supervised(state):
    head = {"weight": torch.zeros(10, 192), "bias": torch.zeros(10)}
    return {"state_dict": prefixed(state, "module.") | prefixed(head, "module.head.")}


FILES = {"dino": dino, "mae": mae, "moco_v3": moco_v3, "timm": supervised}


def test_every_layout_has_an_example_here():
    assert set(named.layouts()) == set(FILES) - {"timm"}


@torch.no_grad()
@pytest.mark.parametrize("layout", FILES)
def test_the_network_that_transfers_is_read(file, layout):
    state = weights(TINY)
    backbone = load(file(FILES[layout](state)), choice=Choice(arch=TINY))
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=2, img_size=32).eval()
    model.load_state_dict(state)
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(backbone.build().eval()(x), model(x))
    assert (backbone.format, backbone.feature_dim, backbone.is_resnet) == (layout, 192, False)
    assert set(backbone.state) == set(state)
    said = " ".join(backbone.notes)
    assert "dropped" in said and "timm's pooling 'token'" in said and "ImageNet's mean and std assumed" in said
    assert ("number of attention heads: 3 assumed" in said) == (layout != "dino"), "DINO's source states them"
    assert backbone.input.mean == pytest.approx((0.485, 0.456, 0.406)), "not those of timm's own weights"
    assert backbone.record()["arch"]["name"] == "vit_tiny_patch16_224?depth=2&img_size=32"


@torch.no_grad()
def test_features_are_dinos_class_token(file):
    """The forward pass of facebookresearch/dino's vision_transformer.py, written out."""
    state = weights(TINY)
    backbone = load(file(dino(state)), choice=Choice(arch=TINY))
    x = torch.randn(2, 3, 32, 32)

    def norm(tokens, name):
        return F.layer_norm(tokens, (192,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    def linear(tokens, name):
        return F.linear(tokens, state[f"{name}.weight"], state[f"{name}.bias"])

    patches = F.conv2d(x, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=16)
    tokens = (
        torch.cat([state["cls_token"].expand(2, -1, -1), patches.flatten(2).transpose(1, 2)], 1) + state["pos_embed"]
    )
    for block in ("blocks.0", "blocks.1"):
        q, k, v = (
            linear(norm(tokens, f"{block}.norm1"), f"{block}.attn.qkv").reshape(2, -1, 3, 3, 64).permute(2, 0, 3, 1, 4)
        )
        mixed = ((q @ k.transpose(-2, -1)) / 8).softmax(-1) @ v
        tokens = tokens + linear(mixed.transpose(1, 2).flatten(2), f"{block}.attn.proj")
        hidden = F.gelu(linear(norm(tokens, f"{block}.norm2"), f"{block}.mlp.fc1"))
        tokens = tokens + linear(hidden, f"{block}.mlp.fc2")
    torch.testing.assert_close(backbone.build().eval()(x), norm(tokens, "norm")[:, 0], rtol=1e-4, atol=1e-4)


def test_moco_v3_has_other_heads_than_timm(file):
    """facebookresearch/moco-v3 vits.py: ViT-S has 12 heads; its tensors are those of timm's with 6."""
    path = file(moco_v3(weights(SMALL)))
    with pytest.raises(
        CheckpointError, match=r"width 384 has 12 attention heads, .* has 6: add num_heads=12 to --arch"
    ):
        load(path, choice=Choice(arch=SMALL))
    twelve = load(path, choice=Choice(arch=f"{SMALL}&num_heads=12"))
    assert twelve.module.blocks[0].attn.num_heads == 12 and "heads" not in " ".join(twelve.notes)
    with pytest.raises(CheckpointError, match="width 384 has 6 attention heads"):
        load(file(dino(weights(SMALL))), choice=Choice(arch=f"{SMALL}&num_heads=12"))


def test_any_architecture_of_timm(file):
    state = weights("timm:convnext_atto", seed=3)
    backbone = load(file({"model": state | {"head.fc.weight": torch.zeros(10, 320), "head.fc.bias": torch.zeros(10)}}),
                    choice=Choice(arch="timm:convnext_atto"))  # fmt: skip
    assert backbone.format == "timm" and backbone.input.size == 224
    net = weights("timm:resnet10t", seed=3)
    del net["bn1.num_batches_tracked"]
    assert load(file(net), choice=Choice(arch="timm:resnet10t")).feature_dim == 512, "a counter decides nothing"


def test_a_mask_token_alone_is_not_maes(file):
    """BEiT and others have one, too: it is not dropped where nothing says whose it is."""
    with pytest.raises(CheckpointError, match="1 unexpected: mask_token"):
        load(file({"model": weights(TINY) | {"mask_token": torch.zeros(1, 1, 192)}}), choice=Choice(arch=TINY))


def test_missing_and_unexpected_tensors_are_named(file):
    state = weights(TINY)
    del state["blocks.1.norm1.weight"]
    state["blocks.1.gamma"] = torch.ones(192)
    words = (
        r"does not fit vit_tiny_patch16_224\?depth=2&img_size=32, at the top: 1 of its \d+ tensors missing: "
        r"blocks\.1\.norm1\.weight; 1 unexpected: blocks\.1\.gamma"
    )
    with pytest.raises(CheckpointError, match=words):
        load(file(state), choice=Choice(arch=TINY))


@pytest.mark.parametrize(
    ("arch", "words"),
    [
        ("timm:vit_tiny_patch16_224?depth=3&img_size=32", "12 of its 42 tensors missing: blocks.2"),
        ("timm:vit_tiny_patch16_224?depth=1&img_size=32", "12 unexpected: blocks.1"),
        ("timm:vit_tiny_patch16_224?depth=2&img_size=64", "'pos_embed' has shape (1, 5, 192), vit_tiny_patch16_224"),
        ("timm:vit_small_patch16_224?depth=2&img_size=32", "'cls_token' has shape (1, 1, 192)"),
        (f"{TINY}&global_pool=avg", "missing: fc_norm.weight, fc_norm.bias; 2 unexpected: norm"),
        ("timm:convnext_atto", "does not fit convnext_atto:"),
    ],
)  # fmt: skip
def test_a_file_of_another_architecture_is_refused(file, arch, words):
    with pytest.raises(CheckpointError, match=re.escape(words)):
        load(file(weights(TINY)), choice=Choice(arch=arch))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t * float("nan"), "has NaN or infinite values"),
        (lambda t: t.to(torch.int64), "not floating-point numbers"),
        (lambda t: t[:5], "has shape (5,), vit_tiny_patch16_224?depth=2&img_size=32 needs (192,)"),
    ],
)
def test_unsound_tensors_are_refused(file, change, words):
    state = weights(TINY)
    state["norm.weight"] = change(state["norm.weight"])
    with pytest.raises(CheckpointError, match=f"'norm.weight'.*{re.escape(words)}"):
        load(file(state), choice=Choice(arch=TINY))


def test_half_precision_is_read_as_float32(file):
    state = {name: tensor.half() for name, tensor in weights(TINY).items()}
    assert {t.dtype for t in load(file(state), choice=Choice(arch=TINY)).state.values()} == {torch.float32}


def test_a_second_network_is_refused_and_can_be_chosen(file):
    state, ema = weights(TINY), weights(TINY, seed=2)
    path = file({"state_dict": state, "ema": prefixed(ema, "module.")})
    words = "contains 2 networks of this architecture, under 'state_dict' and under 'ema' after 'module.': add --key state_dict"
    with pytest.raises(CheckpointError, match=re.escape(words)):
        load(path, choice=Choice(arch=TINY))
    chosen = load(path, choice=Choice(key="ema", prefix="module.", arch=TINY))
    torch.testing.assert_close(chosen.state["norm.weight"], ema["norm.weight"])
    assert any("skipped, as requested: the network under 'state_dict'" in note for note in chosen.notes)
    torch.testing.assert_close(load(path, choice=Choice(key="ema", arch=TINY)).state["cls_token"], ema["cls_token"])
    same = load(file({"state_dict": state, "copy": dict(state)}), choice=Choice(arch=TINY))
    torch.testing.assert_close(same.state["cls_token"], state["cls_token"])


def test_the_student_can_be_chosen(file):
    state = weights(TINY)
    found = load(file(dino(state)), choice=Choice(key="student", arch=TINY))
    torch.testing.assert_close(found.state["cls_token"], state["cls_token"] + 1)


@pytest.mark.parametrize(
    "choice", [{"key": "nowhere"}, {"key": "student", "prefix": "backbone."}, {"prefix": "trunk."}]
)
def test_a_wrong_choice_is_a_sentence(file, choice):
    with pytest.raises(CheckpointError, match=r"has no 'nowhere'|does not fit vit_tiny"):
        load(file(dino(weights(TINY))), choice=Choice(**choice, arch=TINY))


def test_stated_input_is_taken(file):
    path = file(weights(TINY))
    side = path.with_name("model.pth.yaml")
    side.write_text(yaml.safe_dump({"input": {"mean": [0.5] * 3, "std": [0.5] * 3}}))
    backbone = load(path, choice=Choice(arch=TINY))
    assert (backbone.input.mean, backbone.input.size) == ((0.5, 0.5, 0.5), 32)
    assert not any("mean and std assumed" in note for note in backbone.notes)
    side.write_text(yaml.safe_dump({"arch": {"name": "resnet50"}}))
    with pytest.raises(CheckpointError, match="write the fields behind --arch"):
        load(path, choice=Choice(arch=TINY))


@pytest.mark.parametrize(
    ("arch", "words"),
    [
        ("vit_tiny_patch16_224", "write timm:NAME"),
        ("timm:vit_tiny_patch16_224.augreg_in21k", "without a tag of its weights"),
        ("timm:vit_tinny_patch16_224", "did you mean 'vit_tiny_patch16_224'"),
        ("timm:vit_tiny_patch16_224?num_head=3", "unknown field 'num_head'; did you mean 'num_heads'"),
        ("timm:vit_tiny_patch16_224?depth=two", "depth must be a number, not 'two'"),
        ("timm:vit_tiny_patch16_224?checkpoint_path=/x", "unknown field 'checkpoint_path'"),
        ("timm:vit_tiny_patch16_224?num_heads=7", "timm cannot build it"),
        ("timm:convnext_atto?num_heads=3", "timm cannot build it"),
    ],
)
def test_refused_architectures(file, arch, words):
    with pytest.raises(CheckpointError, match=re.escape(words)):
        load(file({}), choice=Choice(arch=arch))


def test_arch_is_for_files_alone(tmp_path):
    with pytest.raises(CheckpointError, match="--arch apply to checkpoint files only"):
        load("random:resnet18", choice=Choice(arch=TINY))
    with pytest.raises(ConfigError, match="--arch apply only to checkpoint files"):
        run_all.find_subjects(["random:resnet18"], "", 1, Choice(arch=TINY))
    options = RunOptions.parse(["--ckpt", "a.pth", "--arch", TINY])
    assert RunOptions.parse(options.to_argv()) == options and options.choice.arch == TINY


def test_verify_and_the_python_interface_take_it(file, capsys):
    path = file(dino(weights(TINY)))
    assert main(["verify", str(path), "--arch", TINY]) == 0
    assert "vit_tiny_patch16_224?depth=2&img_size=32" in capsys.readouterr().out
    assert api_load(path, arch=TINY).feature_dim == 192
    with pytest.raises(CheckpointError, match="only ResNets can be converted"):
        main(["convert", str(path), "--arch", TINY, "-o", str(path.with_name("out.pth"))])


CELLS = ("imagenet_knn", "imagenet_linear", "imagenet_semi10", "imagenet_uniformity")
FIELDS = ["imagenet_knn.k=[3]", "imagenet_knn.headline_k=3", "imagenet_linear.epochs=2", "imagenet_linear.batch=8",
          "imagenet_semi10.epochs=1", "imagenet_semi10.batch=8", "imagenet_semi10.list=drawn", "*.data.expect=any"]  # fmt: skip


@pytest.mark.slow
def test_it_goes_through_the_protocols(file, image_folder, tmp_path, warm_cells):
    path = file(dino(weights(TINY)))
    words = ["--ckpt", f"mine={path}", "--arch", TINY, "--data", f"imagenet={image_folder}", "--seeds", "1"]
    assert run_all.main([*words, "--tasks", ",".join(CELLS), "--out", str(tmp_path / "out"), *FIELDS]) == 0
    records = {record.cell: record for record in read_all(tmp_path / "out")}
    assert {cell for cell, record in records.items() if record.status == "ok"} == set(CELLS)
    assert {record.backbone.format for record in records.values()} == {"dino"}
    assert records["imagenet_semi10"].task.notes == ["encoder fine-tuned at rate 0.00025"]
    backbone = load(path, choice=Choice(arch=TINY))
    assert {r.backbone.weights_sha256 for r in records.values()} == {backbone.weights_sha256}
    svm = tasks.get("voc07_svm")
    assert svm.unfit(backbone, svm.Config()) is None
