"""Files and folders of trainers and hubs give the numbers of the original network, or one sentence."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from backbench.errors import CheckpointError
from model_zoo.choice import Choice
from model_zoo.load import load
from tests.builders.backbones import make_backbone

MINE, OTHER = (dict(make_backbone("resnet18", seed=seed).state) for seed in (0, 1))
DEEPER = dict(make_backbone("resnet34").state)


def under(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def arrays(state):
    return {name: tensor.numpy() for name, tensor in state.items()}


def is_mine(backbone, state=MINE):
    return all(torch.equal(backbone.state[name], state[name]) for name in backbone.state if "num_batches" not in name)


def refusal(path, choice=None):
    with pytest.raises(CheckpointError) as caught:
        load(path, choice=choice or Choice())
    text = str(caught.value)
    assert text.startswith(str(path)) and "\n" not in text
    return text


def trained(model):
    """Set statistics and weights that no initialisation has."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        elif tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
    return model.eval()


# ---------------------------------------------------------------- a name contradicts the tensors


@pytest.mark.parametrize("name", ["resnetaa50", "resnetblur50", "resnetaa50d"])
def test_a_relative_without_tensors_of_its_own_is_refused_by_its_name(tmp_path, name):
    torch.save({"arch": name, "state_dict": timm.create_model(name).state_dict()}, tmp_path / "last.pth.tar")
    assert f"says that it is a {name}" in refusal(tmp_path / "last.pth.tar")


@pytest.mark.parametrize("name", ["resnet50c", "resnet50s", "resnet26t", "resnext50_32x4d", "resnet18d"])
def test_a_relative_of_ours_gives_the_numbers_of_the_network_that_made_it(tmp_path, name):
    model = trained(timm.create_model(name, num_classes=0))
    torch.save({"arch": name, "state_dict": model.state_dict()}, tmp_path / "last.pth.tar")
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        wanted, found = model(x), load(tmp_path / "last.pth.tar").build().eval()(x)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize(
    "word", ["resnet50", "my_resnet", "resnet50x2", "resnext" * 40, "res\x1b[31m", "resnet999", ""]
)
def test_a_name_that_says_nothing_else_changes_nothing(tmp_path, word):
    torch.save({"arch": word, "state_dict": MINE}, tmp_path / "m.pth")
    assert is_mine(load(tmp_path / "m.pth"))


HUB = {
    "the function of another activation": ({"model_type": "resnet", "hidden_act": "silu"}, "hidden_act is silu"),
    "another network": ({"model_type": "resnet", "downsample_in_first_stage": True}, "downsample_in_first_stage"),
    "timm's dilation": ({"architecture": "resnet18", "model_args": {"output_stride": 8}}, "model_args output_stride"),
    "no JSON": (None, "not readable as JSON"),
}


@pytest.mark.parametrize("whole", [True, False], ids=["the folder", "the file in it"])
@pytest.mark.parametrize("kind", HUB)
def test_what_a_hub_says_counts_for_the_folder_and_for_the_file(tmp_path, kind, whole):
    config, words = HUB[kind]
    save_file(MINE, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{" if config is None else json.dumps(config))
    assert words in refusal(tmp_path if whole else tmp_path / "model.safetensors")


# ---------------------------------------------------------------- a second network


@pytest.mark.parametrize("key", ["ema", "teacher", "model_ema", "shadow"])
def test_a_second_network_of_arrays_is_a_network(tmp_path, key):
    torch.save({"state_dict": MINE, key: arrays(OTHER)}, tmp_path / "m.pth")
    assert "contains two networks" in refusal(tmp_path / "m.pth")
    assert is_mine(load(tmp_path / "m.pth", choice=Choice(key=key)), OTHER)
    assert is_mine(load(tmp_path / "m.pth", choice=Choice(key="state_dict")))


def test_tensors_and_arrays_of_one_network(tmp_path):
    mixed = {name: tensor.numpy() if place % 2 else tensor for place, (name, tensor) in enumerate(MINE.items())}
    torch.save({"model": mixed, "rng": np.random.get_state(), "curve": np.zeros(9)}, tmp_path / "m.pth")
    assert is_mine(load(tmp_path / "m.pth"))


@pytest.mark.parametrize("prefix", ["backbone.", "module.backbone."])
def test_a_distillation_is_not_dino(tmp_path, prefix):
    torch.save({"student": under(prefix, MINE), "teacher": under("backbone.", DEEPER)}, tmp_path / "m.pth")
    assert "--key student or --key teacher" in refusal(tmp_path / "m.pth")
    assert is_mine(load(tmp_path / "m.pth", choice=Choice(key="student")))


# ---------------------------------------------------------------- folders and parts


def _in_parts(folder):
    import torch.distributed.checkpoint as parts

    parts.save({"model": MINE}, checkpoint_id=str(folder / "dcp"), no_dist=True)
    return folder / "dcp"


def _unpacked(folder):
    torch.save(MINE, folder / "m.pth")
    with zipfile.ZipFile(folder / "m.pth") as archive:
        archive.extractall(folder)
    return folder / "m"


def _deepspeed(folder):
    (folder / "global_step9").mkdir()
    for name in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"):
        torch.save({}, folder / "global_step9" / name)
    return folder


def _accelerate(folder):
    for name in ("model.safetensors", "optimizer.bin", "scheduler.bin", "random_states_0.pkl"):
        (folder / name).touch()
    return folder


def _circle(folder):
    (folder / "a.pth").symlink_to("a.pth")
    (folder / "b.pth").touch()
    return folder


FOLDERS = {
    "torch.distributed.checkpoint": (_in_parts, "format_utils dcp_to_torch {path} weights.pth`"),
    "an unpacked file": (_unpacked, "&& zip -0 -r m.pth m`, and give {path}.pth"),
    "the pickle of an unpacked file": (lambda f: _unpacked(f) / "data.pkl", "is in a folder that is an unpacked checkpoint"),
    "around an unpacked file": (lambda f: _unpacked(f).parent, "m.pth"),
    "DeepSpeed": (_deepspeed, "give the checkpoint file in it: {path}/global_step9/mp_rank_00_model_states.pt"),
    "accelerate": (_accelerate, "give the checkpoint file in it: {path}/model.safetensors"),
    "a link in a circle": (_circle, "give the checkpoint file in it: {path}/b.pth"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_says_what_to_give(tmp_path, kind):
    make, words = FOLDERS[kind]
    path = make(tmp_path)
    text = refusal(path)
    assert words.format(path=path) in text
    assert "optim" not in text


def test_what_an_unpacked_file_is_packed_to_is_read(tmp_path):
    folder = _unpacked(tmp_path)
    with zipfile.ZipFile(tmp_path / "again.pth", "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(tmp_path))
    assert is_mine(load(tmp_path / "again.pth"))


def test_the_shards_of_zero3_are_to_be_gathered(tmp_path):
    torch.save({"module": {name: torch.empty(0) for name in MINE}}, tmp_path / "m.pt")
    assert "zero_to_fp32.py" in refusal(tmp_path / "m.pt")


@pytest.mark.parametrize("name", ["x.PTH", "a/b.Pt"])
def test_an_archive_that_macos_made(tmp_path, name):
    torch.save(MINE, tmp_path / "inner")
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        archive.write(tmp_path / "inner", name)
        archive.writestr("__MACOSX/._x.pth", b"junk")
        archive.writestr("a/.hidden.pth", b"junk")
    assert is_mine(load(tmp_path / "m.zip"))


# ---------------------------------------------------------------- other files


OTHERS = {
    "JSON": (b'{"message": "Not Found"}', "JSON"), "JSON list": (b"[1, 2]", "JSON"),
    "ONNX": (b"\x08\x07\x12\x07pytorch", "protocol buffer"), "GGUF": (b"GGUF\x03\0\0\0", "GGUF"),
    "TensorFlow Lite": (b"\x1c\0\0\0TFL3", "TensorFlow Lite"), "flax": (b"\x82\xa6params\x81", "msgpack"),
    "TensorFlow's index": (b'model_checkpoint_path: "m"', "TensorFlow"), "zeros": (bytes(600), "zeros"),
    "git-annex": (b"/annex/objects/MD5E-s1--a.pth", "git annex get"), "HDF5": (b"\x89HDF\r\n\x1a\n", "HDF5"),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
def test_a_file_of_another_kind_is_called_by_its_name(tmp_path, kind):
    content, word = OTHERS[kind]
    (tmp_path / "m.pth").write_bytes(content)
    assert word in refusal(tmp_path / "m.pth")


@pytest.mark.parametrize("name", ["m.pth.yml", "m.yaml", "m.yml"])
def test_a_sidecar_under_another_name_is_not_missed(tmp_path, name):
    torch.save(MINE, tmp_path / "m.pth")
    (tmp_path / name).write_text("input: {order: bgr}")
    assert f"{name} is not read: rename it to m.pth.yaml" in refusal(tmp_path / "m.pth")


@pytest.mark.parametrize("text", ["epochs: 3", "[1", "- 1", "", "{arch: resnet18, lr: 1}"])
def test_a_trainings_own_file_beside_a_checkpoint_is_none_of_ours(tmp_path, text):
    torch.save(MINE, tmp_path / "m.pth")
    (tmp_path / "m.yaml").write_text(text)
    assert is_mine(load(tmp_path / "m.pth"))
