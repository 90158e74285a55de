"""A checkpoint gives a sound backbone, or one clear sentence that names the file and the problem."""

import functools
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
import torchvision
from backbones import initial
from safetensors.torch import save_file
from torchvision.models.resnet import Bottleneck, ResNet

from backbench.errors import BackbenchError, CheckpointError
from model_zoo.architecture import Architecture, InputSpec
from model_zoo.backbone import FORMAT, save
from model_zoo.load import UNKNOWABLE, default_name, load

ARCH = {"name": "resnet18", "width": 0.25}  # narrow, so that it is written quickly


@functools.cache
def _state(name, seed, width, stem):
    return initial(Architecture(name=name, width=width, stem=stem), seed)


def make_state(name="resnet18", seed=0, width=0.25, stem="7x7"):
    return {key: tensor.clone() for key, tensor in _state(name, seed, width, stem).items()}


@pytest.fixture
def state():
    return make_state()


@pytest.fixture
def write(tmp_path):
    def put(obj, name="photos.pth"):
        torch.save(obj, tmp_path / name)
        return tmp_path / name

    return put


def refusal(path):
    """Return the error, which starts with the file."""
    with pytest.raises(CheckpointError) as caught:
        load(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    return text.removeprefix(f"{path}: ")


# ---------------------------------------------------------------- files that are not checkpoints


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_missing_file(tmp_path, suffix):
    assert re.search("no such file", refusal(tmp_path / f"nothing{suffix}"), re.IGNORECASE)


def test_folder(tmp_path, state):
    assert "is a folder without a checkpoint" in refusal(tmp_path)
    for name in ("b.pth", "a.ckpt", ".hidden.pth", "notes.txt"):
        (tmp_path / name).touch()
    assert refusal(tmp_path) == f"is a folder; give the checkpoint file in it: {tmp_path}/a.ckpt or {tmp_path}/b.pth"
    (tmp_path / "model.pth").touch()
    assert refusal(tmp_path).endswith(f": {tmp_path}/model.pth"), "the folder of a pretraining"


@pytest.mark.parametrize("whole", [True, False])
def test_the_resume_state_of_a_pretraining_names_the_model_beside_it(tmp_path, state, write, whole):
    path = write({"kind": "backbench-pretrain-1", "online": state, "target": make_state(seed=1)}, "last.ckpt")
    if whole:
        (tmp_path / "model.pth").touch()
    text = refusal(path)
    assert text.startswith(f"is the resume state of a pretraining run; give {tmp_path}/model.pth")
    assert whole != ("when the run ends" in text)


def test_empty_file(tmp_path):
    (tmp_path / "empty.pth").touch()
    assert "empty" in refusal(tmp_path / "empty.pth")


def test_web_page(tmp_path):
    (tmp_path / "page.pth").write_text("<!DOCTYPE html><html>404</html>")
    assert "web page" in refusal(tmp_path / "page.pth")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_truncated_file(tmp_path, state, legacy, share):
    path = tmp_path / "cut.pth"
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert "truncated" in refusal(path)


def test_truncated_safetensors(tmp_path, state):
    path = tmp_path / "cut.safetensors"
    save_file(state, path)
    path.write_bytes(path.read_bytes()[:1000])
    assert "not a readable safetensors file" in refusal(path)
    path.write_bytes(b"")
    assert "not a readable safetensors file" in refusal(path)


class _Payload:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (os.mkdir, (str(self.target),))


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_pickle_is_named_and_not_run(tmp_path, state, legacy):
    target, path = tmp_path / "was-run", tmp_path / "code.pth"
    torch.save({"state_dict": state, "extra": _Payload(target)}, path, _use_new_zipfile_serialization=not legacy)
    backbone = load(path)
    notes = "; ".join(backbone.notes)
    assert "that is not a tensor (posix.mkdir): left unread, nothing was run" in notes
    assert "functions that only an attack calls" in notes
    assert torch.equal(backbone.state["conv1.weight"], state["conv1.weight"])
    assert not target.exists()


def test_harmless_objects_beside_the_tensors_are_passed_over(write, state):
    import argparse

    path = write({"state_dict": state, "args": argparse.Namespace(lr=0.1), "where": Path("/x")})
    assert torch.equal(load(path).state["conv1.weight"], state["conv1.weight"])


# ---------------------------------------------------------------- tensors that are not a backbone


def change(name, tensor):
    def apply(state):
        state[name] = tensor(state[name]) if callable(tensor) else tensor

    return apply


def put_at(name, value):
    def apply(state):
        state[name].view(-1)[0] = value

    return apply


def several(*names):
    def apply(state):
        for name in names:
            del state[name]

    return apply


DAMAGE = {
    "missing tensor": (several("layer3.1.bn2.running_mean"), r"1 of \d+ tensors missing: layer3\.1\.bn2\.running_mean"),
    "missing block": (several("layer4.0.downsample.0.weight", "bn1.bias"), r"2 of \d+ tensors missing: bn1\.bias"),
    "wrong shape": (
        change("layer2.0.conv2.weight", torch.zeros(32, 32, 1, 1)),
        r"'layer2\.0\.conv2\.weight' has shape \(32, 32, 1, 1\), resnet18 needs \(32, 32, 3, 3\)",
    ),
    "NaN": (put_at("layer1.0.bn1.weight", torch.nan), r"'layer1\.0\.bn1\.weight' has NaN or infinite"),
    "infinite": (put_at("conv1.weight", -torch.inf), r"'conv1\.weight' has NaN or infinite"),
    "overflow in float32": (
        change("layer1.0.bn1.weight", lambda t: t.double() * 1e300),
        r"'layer1\.0\.bn1\.weight' has NaN or infinite",
    ),
    "one negative variance": (
        put_at("bn1.running_var", -1e-6),
        r"'bn1\.running_var' has 1 negative variances",
    ),
    "negative variance": (
        change("layer4.1.bn2.running_var", lambda t: -t),
        r"'layer4\.1\.bn2\.running_var' has 128 negative variances",
    ),
    "integers": (change("layer1.1.conv1.weight", lambda t: t.to(torch.int64)), r"layer1\.1\.conv1\.weight.*int64"),
    "leftover": (change("attention.weight", torch.zeros(3)), r"1 tensors left over .*attention\.weight"),
    "leftover with a canonical name": (
        change("layer1.1.downsample.0.weight", torch.zeros(16, 16, 1, 1)),
        r"1 tensors left over that resnet18 does not have: layer1\.1\.downsample\.0\.weight",
    ),
    "one channel": (change("conv1.weight", torch.zeros(64, 1, 7, 7)), r"conv1 takes 1 channels"),
    "3x3 stem": (change("conv1.weight", torch.zeros(64, 3, 3, 3)), r"conv1 is 3x3.*max-pool.*stem"),
    "another depth": (
        several(*(key for key in make_state() if key.startswith("layer4.1."))),
        r"basic blocks \[2, 2, 2, 1\] per stage are not those of a known ResNet \(resnet18, resnet34",
    ),
    "a gap in a stage": (
        several(*(key for key in make_state() if key.startswith("layer3.0."))),
        r"tensors missing: layer3\.0\.",
    ),
    "counter of two numbers": (change("bn1.num_batches_tracked", torch.zeros(2, dtype=torch.int64)), r"bn1\.num_b"),
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("wrapping", ["", "module.backbone."])
def test_damage_is_named(kind, wrapping, write, state):
    damage, expected = DAMAGE[kind]
    damage(state)
    obj = {"model": {wrapping + key: tensor for key, tensor in state.items()}} if wrapping else state
    assert re.search(expected, refusal(write(obj)))


@pytest.mark.parametrize(
    "kind", ["missing tensor", "wrong shape", "NaN", "one negative variance", "integers", "leftover"]
)
def test_damage_in_our_own_format_is_named(kind, tmp_path, state):
    damage, expected = DAMAGE[kind]
    damage(state)
    save(tmp_path / "model.pth", {k: v for k, v in state.items()}, Architecture(**ARCH), InputSpec())
    if kind == "integers":  # save() keeps integers as they are
        assert torch.load(tmp_path / "model.pth")["state_dict"]["layer1.1.conv1.weight"].dtype == torch.int64
    assert re.search(expected, refusal(tmp_path / "model.pth"))


def test_basic_and_bottleneck_blocks_are_told_apart(write):
    r34, r50 = make_state("resnet34"), make_state("resnet50")
    assert load(write(r34)).arch.name == "resnet34"
    assert load(write(r50)).arch.name == "resnet50"
    short = {key: tensor for key, tensor in r50.items() if not re.match(r"layer3\.[45]\.", key)}
    assert "bottleneck blocks [3, 4, 4, 3]" in refusal(write(short))
    narrow = ResNet(Bottleneck, [3, 4, 6, 3], width_per_group=8)
    assert "has shape" in refusal(write(narrow.state_dict())), "a narrow (or wide) 3x3 alone is not a width"


def test_width_is_read_from_the_tensors(write):
    assert load(write(make_state(width=0.5))).arch == Architecture(name="resnet18", width=0.5)


# ---------------------------------------------------------------- layouts


def test_unknown_prefix_is_named(write, state):
    text = refusal(write({"state_dict": {f"student.net.{key}": tensor for key, tensor in state.items()}}))
    assert f"unknown prefix 'student.net.' ({len(state)} tensors)" in text
    assert "state_dict" in text
    assert "torchvision" in text, "the known layouts are listed"


def test_other_tensors_are_described(write):
    assert "none named as in a ResNet: blocks.0.attn" in refusal(write({"blocks.0.attn": torch.zeros(2)}))
    assert "contains a list" in refusal(write([1, 2]))
    assert "no tensors under its keys weights" in refusal(write({"weights": 3}))


def test_two_layouts_in_one_file_are_refused(write, state):
    twin = {f"module.{key}": tensor for key, tensor in make_state(seed=9).items()}
    text = refusal(write({"state_dict": twin, "model": state}))
    assert "contains two networks, under 'state_dict' after 'module.' and under 'model'" in text
    assert text.endswith("add --key state_dict or --key model")


def test_two_networks_of_one_layout_are_refused(write, state):
    """Neither of two different networks may be chosen silently."""
    assert refusal(write({"state_dict": state, "model": make_state(seed=9)}))


@pytest.mark.parametrize("prefix", ["module.", "backbone.", "encoder.", "module.backbone.", "module.encoder."])
@pytest.mark.parametrize("key", ["state_dict", "model", None])
def test_known_prefixes(write, state, prefix, key):
    tensors = {prefix + name: tensor for name, tensor in state.items()}
    tensors[f"{prefix}fc.weight"] = torch.zeros(10, 128)
    backbone = load(write({key: tensors} if key else tensors))
    assert all(torch.equal(backbone.state[name], state[name]) for name in state)
    assert any(f"{prefix}fc.weight" in note for note in backbone.notes), "a note names what was dropped"


def test_a_neck_with_a_norm_called_bn1_is_dropped(write, state):
    """mmselfsup's NonLinearNeck of three layers has fc0, bn0, fc1, bn1, fc2."""
    neck = {"neck.fc0.weight": torch.zeros(8, 128), "neck.bn0.weight": torch.ones(8), "neck.bn1.weight": torch.ones(8)}
    backbone = load(write({"state_dict": {**{f"backbone.{k}": t for k, t in state.items()}, **neck}}))
    assert torch.equal(backbone.state["bn1.weight"], state["bn1.weight"])


def test_moco_takes_the_query_encoder(write, state):
    twin = make_state(seed=1)
    tensors = {f"module.encoder_k.{key}": tensor for key, tensor in twin.items()}
    tensors |= {f"module.encoder_q.{key}": tensor for key, tensor in state.items()}
    tensors |= {"module.encoder_q.fc.2.weight": torch.zeros(8, 8), "module.queue_ptr": torch.zeros(1)}
    backbone = load(write({"state_dict": tensors, "arch": "resnet18", "optimizer": {"lr": 0.1}}))
    assert backbone.format == "moco"
    assert torch.equal(backbone.state["conv1.weight"], state["conv1.weight"])
    assert not torch.equal(backbone.state["conv1.weight"], twin["conv1.weight"])
    del tensors["module.encoder_q.conv1.weight"]
    assert "missing: conv1.weight" in refusal(write({"state_dict": tensors}))


def test_newer_format_of_ours(write, state):
    text = refusal(write({"format": "backbench-2", "arch": {}, "input": {}, "state_dict": state}))
    assert "'backbench-2'" in text and f"'{FORMAT}'" in text


@pytest.mark.parametrize("absent", ["arch", "input", "state_dict"])
def test_our_format_must_be_whole(write, state, absent):
    whole = {"format": FORMAT, "arch": ARCH, "input": {}, "state_dict": state}
    assert load(write(whole)).format == "backbench"
    del whole[absent]
    assert f"no '{absent}'" in refusal(write(whole))


@pytest.mark.parametrize(
    ("part", "value", "expected"),
    [
        ("arch", {"name": "resnet19"}, "arch: 'name'"),
        ("arch", {"name": "resnet18", "widht": 1.0}, "unknown key 'widht'; did you mean 'width'"),
        ("arch", {"name": "resnet50"}, "tensors missing"),
        ("input", {"size": 4}, "input: 'size'"),
        ("input", {"order": "gbr"}, "input: 'order'"),
        ("input", {"mean": [0.5]}, "mean"),
    ],
)
def test_our_format_with_bad_fields(write, state, part, value, expected):
    whole = {"format": FORMAT, "arch": ARCH, "input": {}, "state_dict": state, part: value}
    assert expected in refusal(write(whole))


@pytest.mark.parametrize("value", ["text", None, 3])
def test_our_format_with_something_that_is_no_tensor(write, state, value):
    state["bn1.weight"] = value
    whole = {"format": FORMAT, "arch": ARCH, "input": {}, "state_dict": state}
    assert "bn1.weight" in refusal(write(whole))


# ---------------------------------------------------------------- sound files in other forms


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_variance_0_is_sound_and_said(write, state, dtype):
    state["layer1.0.bn1.running_var"][3] = 1e-14  # 0 in half precision
    state["bn1.running_var"][:2] = 0
    backbone = load(write({key: t.to(dtype) if t.is_floating_point() else t for key, t in state.items()}))
    count = 3 if dtype == torch.float16 else 2
    note = next(note for note in backbone.notes if note.startswith(f"{count} running variances are 0"))
    assert "bn1.running_var" in note
    x = torch.ones(1, 3, 32, 32)
    assert bool(torch.isfinite(backbone.build().eval()(x)).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(write, state, dtype):
    backbone = load(write({key: t.to(dtype) if t.is_floating_point() else t for key, t in state.items()}))
    for name, tensor in backbone.state.items():
        if not name.endswith("num_batches_tracked"):
            assert tensor.dtype == torch.float32
            assert torch.equal(tensor, state[name].to(dtype).float())


def test_num_batches_tracked_is_filled(write, state):
    whole = load(write(state))
    bare = load(write({key: tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")}))
    assert set(bare.state) == set(whole.state)
    assert bare.state["bn1.num_batches_tracked"].dtype == torch.int64
    assert bare.weights_sha256 == whole.weights_sha256
    bare.build()  # loads strictly


def test_safetensors(tmp_path, state, write):
    save_file(state, tmp_path / "photos.safetensors")
    backbone = load(tmp_path / "photos.safetensors")
    assert backbone.weights_sha256 == load(write(state)).weights_sha256
    assert backbone.name == "photos"


def test_what_weights_cannot_tell_is_said(write, state):
    path = write(state)
    assert UNKNOWABLE in load(path).notes
    assert load(path).input == InputSpec()
    path.with_name("photos.pth.yaml").write_text("input: {order: bgr}\n")
    assert UNKNOWABLE not in load(path).notes


def test_sidecar_states_input_and_architecture(write):
    path = write(make_state("resnet50"))
    path.with_name("photos.pth.yaml").write_text(
        "arch: {stride_in_1x1: true, pool_padding: end}\n"
        "input: {order: bgr, size: 64, mean: [0.1, 0.2, 0.3], std: [1.0, 1.0, 1.0]}\n"
    )
    backbone = load(path)
    assert backbone.arch == Architecture(name="resnet50", width=0.25, stride_in_1x1=True, pool_padding="end")
    assert backbone.input == InputSpec(order="bgr", size=64, mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0))
    assert backbone.build().layer2[0].conv1.stride == (2, 2)


@pytest.mark.parametrize(
    ("arch", "expected"),
    [("{name: resnet18}", None), ("{name: resnet18, width: 0.5}", "has shape"), ("{name: resnet34}", "missing")],
)
def test_a_stated_name_leaves_the_width_to_the_weights(write, state, arch, expected):
    path = write(state)
    path.with_name("photos.pth.yaml").write_text(f"arch: {arch}\n")
    if expected is None:
        assert load(path).arch == Architecture(**ARCH)
    else:
        assert expected in refusal(path)


@pytest.mark.parametrize("stem", ["3x3", "3x3-nopool"])
def test_small_stem_loads_with_a_sidecar(write, stem):
    path = write(make_state(stem=stem))
    assert "conv1 is 3x3" in refusal(path)
    path.with_name("photos.pth.yaml").write_text(f"arch: {{stem: {stem}}}\n")
    assert load(path).arch == Architecture(**ARCH, stem=stem)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("arch: {name: resnet18, sten: 3x3}", "unknown key 'sten'; did you mean 'stem'"),
        ("inputs: {size: 64}", "unknown key 'inputs'"),
        ("input: {size: big}", "'size'"),
        ("arch: {name: resnet50}", "tensors missing"),
        ("arch: resnet18", "arch"),
        ("arch:", "arch"),
        ("input: 64", "input"),
    ],
)
def test_bad_sidecar(write, state, text, expected):
    path = write(state)
    path.with_name("photos.pth.yaml").write_text(text + "\n")
    with pytest.raises(BackbenchError) as caught:
        load(path)
    assert expected in str(caught.value) and "photos.pth" in str(caught.value)


def test_our_own_file_comes_back_whole(tmp_path, state):
    arch = Architecture(**ARCH, pool_padding="end")
    spec = InputSpec(size=96, order="bgr", mean=(0.0, 0.1, 0.2))
    save(tmp_path / "model.pth", state, arch, spec)
    backbone = load(tmp_path / "model.pth")
    assert (backbone.arch, backbone.input, backbone.format) == (arch, spec, "backbench")
    assert backbone.notes == ()
    assert all(torch.equal(backbone.state[key], state[key]) for key in state)
    assert backbone.build() is not backbone.build()
    assert torch.equal(backbone.build().state_dict()["conv1.weight"], state["conv1.weight"])


# ---------------------------------------------------------------- random backbones and names


def test_random_is_reproducible_per_seed():
    a, b, c = (load("random:resnet18", seed=seed) for seed in (0, 0, 1))
    assert a.weights_sha256 == b.weights_sha256 != c.weights_sha256
    torch.manual_seed(1)
    theirs = torchvision.models.resnet18().state_dict()
    assert all(torch.equal(c.state[key], theirs[key]) for key in c.state)
    assert (a.name, a.format) == ("random:resnet18", "random")
    assert load("random:resnet18", name="nothing").name == "nothing"


def test_random_takes_architecture_and_input_of_another(tmp_path):
    save(tmp_path / "model.pth", make_state(width=0.5), Architecture(name="resnet18", width=0.5), InputSpec(size=32))
    like = load(tmp_path / "model.pth")
    found = load("random:resnet18", like=like)
    assert (found.arch, found.input) == (like.arch, like.input)
    assert load("random:resnet34", like=like).arch == Architecture(name="resnet34")


def test_random_of_an_unknown_architecture():
    with pytest.raises(CheckpointError, match=r"random:resnet51: unknown architecture; did you mean 'resnet50'"):
        load("random:resnet51")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("runs/photos/model.pth", "photos"),
        ("runs/photos/Checkpoint.pt", "photos"),
        ("runs/photos/last.ckpt", "photos"),
        ("runs/photos/moco_v2_800ep.pth.tar", "moco_v2_800ep"),
        ("runs/photos/barlow.safetensors", "barlow"),
        ("hub/models--microsoft--resnet-50/snapshots/0f3c", "resnet-50"),
    ],
)
def test_default_names(path, name):
    assert default_name(Path(path)) == name


def test_default_names_keep_different_files_apart():
    """Backbones with one name become one row with mean and spread, so a decimal point must not merge two settings."""
    assert default_name(Path("runs/lambda_b0.25.pth")) != default_name(Path("runs/lambda_b0.5.pth"))


def test_name_is_not_part_of_the_identity(tmp_path, write, state):
    path = write(state)
    shutil.copy(path, tmp_path / "copy.pth")
    assert load(path).name == "photos" and load(tmp_path / "copy.pth", name="mine").name == "mine"
    assert load(path).weights_sha256 == load(tmp_path / "copy.pth").weights_sha256
