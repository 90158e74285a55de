"""`python -m model_zoo`: verify, convert, list, show."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import warm
from backbones import initial

from backbench.errors import BackbenchError, CheckpointError
from backbench.files.hashes import file_sha256
from model_zoo import entries
from model_zoo.__main__ import main
from model_zoo.architecture import Architecture, InputSpec
from model_zoo.backbone import save
from model_zoo.load import load
from model_zoo.resnet import build

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def moco(tmp_path):
    """Write a MoCo checkpoint and a sidecar with a small input."""
    state = initial(Architecture(name="resnet18", width=0.25))
    path = tmp_path / "moco_v2.pth.tar"
    torch.save({"state_dict": {f"module.encoder_q.{key}": tensor for key, tensor in state.items()}}, path)
    path.with_name("moco_v2.pth.tar.yaml").write_text("input: {size: 32, order: bgr}\n")
    return path


def test_verify_says_what_the_file_is(moco, capsys):
    assert main(["verify", str(moco), "--json"]) == 0
    card = json.loads(capsys.readouterr().out)
    assert card["layout"] == "moco"
    assert card["architecture"] == "resnet18 (width=0.25)"
    assert card["input"].startswith("BGR, 32 px")
    assert card["weights_sha256"] == load(moco).weights_sha256
    assert card["file_sha256"] == file_sha256(moco)
    module = build(Architecture(name="resnet18", width=0.25))
    assert card["parameters"] == f"{sum(p.numel() for p in module.parameters()):,}"
    assert "UNTRAINED" in card["batchnorm"]
    assert card["features"].startswith("128 dimensions")
    assert main(["verify", str(moco)]) == 0
    text = capsys.readouterr().out
    assert all(str(card[key]) in text for key in ("layout", "architecture", "weights_sha256", "file_sha256"))


def test_verify_sees_trained_statistics(tmp_path, capsys):
    arch = Architecture(name="resnet18", width=0.25)
    state = build(arch, seed=0).state_dict()
    state["bn1.running_mean"] += 0.5
    state["layer4.1.conv1.weight"] *= 3
    save(tmp_path / "model.pth", state, arch, InputSpec(size=32))
    main(["verify", str(tmp_path / "model.pth"), "--json"])
    card = json.loads(capsys.readouterr().out)
    assert "UNTRAINED" not in card["batchnorm"]
    assert "3.00 times" in card["batchnorm"]
    assert card["notes"] == ["none"]


def test_verify_refuses_a_bad_file(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        main(["verify", str(tmp_path / "nothing.pth")])


def test_convert_keeps_the_weights(moco, tmp_path, capsys):
    out = tmp_path / "new" / "model.pth"
    assert main(["convert", str(moco), "-o", str(out)]) == 0
    before, after = load(moco), load(out)
    assert after.format == "backbench"
    assert after.weights_sha256 == before.weights_sha256
    assert (after.arch, after.input) == (before.arch, before.input)
    assert before.weights_sha256[:8] in capsys.readouterr().out
    assert set(torch.load(out)) == {"format", "arch", "input", "state_dict"}


def test_convert_refuses_to_overwrite(moco, tmp_path):
    out = tmp_path / "model.pth"
    out.write_bytes(b"precious")
    with pytest.raises(CheckpointError, match="exists already"):
        main(["convert", str(moco), "-o", str(out)])
    assert out.read_bytes() == b"precious"
    assert main(["convert", str(moco), "-o", str(out), "--force"]) == 0
    assert load(out).weights_sha256 == load(moco).weights_sha256


@pytest.mark.parametrize("engine", ["detectron2", "mmdet"])
def test_convert_leaves_no_sidecar_of_the_file_before(moco, tmp_path, capsys, engine):
    out, other = tmp_path / "out.pkl", tmp_path / "other.pth"
    state = initial(Architecture(name="resnet18"))
    torch.save({"state_dict": {f"module.encoder_q.{key}": tensor for key, tensor in state.items()}}, moco)
    assert main(["convert", str(moco), "--to", engine, "-o", str(out)]) == 0
    arch = Architecture(name="resnet18", width=0.25)
    save(other, initial(arch, 1), arch, InputSpec(size=64))
    assert load(out).input.size == 32
    assert main(["convert", str(other), "-o", str(out), "--force"]) == 0
    assert load(out).input == load(other).input
    assert f"{out}.yaml: removed" in capsys.readouterr().out
    assert not list(tmp_path.glob("out.pkl.*"))


def test_convert_asks_before_it_removes_a_sidecar(moco, tmp_path):
    side = tmp_path / "out.pth.yaml"
    side.write_text("input: {size: 96}\n")
    with pytest.raises(CheckpointError, match=r"out\.pth\.yaml: exists already"):
        main(["convert", str(moco), "-o", str(tmp_path / "out.pth")])
    assert side.exists() and not (tmp_path / "out.pth").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("input: {size: 96}", r"model\.pth\.yaml says input\.size is 96, the checkpoint itself 32: remove the \.yaml"),
        ("input: {mean: [0, 0, 0]}", r"input\.mean is \(0\.0, 0\.0, 0\.0\)"),
        ("arch: {conv_padding: same}", r"arch\.conv_padding is 'same'"),
        ("{input: {size: 32, mean: [0.485, 0.456, 0.406]}, arch: {name: resnet18}}", None),
    ],
)
def test_a_sidecar_that_contradicts_our_own_layout(tmp_path, text, words):
    arch, path = Architecture(name="resnet18", width=0.25), tmp_path / "model.pth"
    save(path, initial(arch), arch, InputSpec(size=32))
    (tmp_path / "model.pth.yaml").write_text(text + "\n")
    if words is None:
        assert load(path).input.size == 32
    else:
        with pytest.raises(CheckpointError, match=words):
            load(path)


def test_convert_of_a_bad_file_writes_nothing(tmp_path):
    (tmp_path / "bad.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError):
        main(["convert", str(tmp_path / "bad.pth"), "-o", str(tmp_path / "model.pth")])
    assert not (tmp_path / "model.pth").exists()


def test_list(capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [entry.name for entry in entries.all_entries()]
    trained = {line.split()[0] for line in lines if line.endswith("  train: yes")}
    assert trained == {entry.name for entry in entries.all_entries() if entry.train}
    assert main(["list", "--method", "moco", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {entry["name"] for entry in found} >= {"moco_v2_r50_imagenet", "moco_r50_imagenet"}
    assert all("moco" in entry["method"].lower() for entry in found)
    assert main(["list", "--task", "imagenet_knn", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"npid_r50_imagenet", "msbreg_r50_imagenet"} <= {entry["name"] for entry in found}
    assert "byol_r50_imagenet" not in {entry["name"] for entry in found}


def test_show(capsys):
    assert main(["show", "msbreg_r50_imagenet"]) == 0
    text = capsys.readouterr().out
    row = next(line for line in text.splitlines() if "top1_k20 " in line)
    assert row.split()[:3] == ["imagenet_knn", "top1_k20", "66.2"]
    assert "MSBReg Table 4" in row
    assert "train  backbench pretrain --config imagenet_r50_300ep\n" in text
    with pytest.raises(BackbenchError, match="did you mean 'msbreg_r50_imagenet'"):
        main(["show", "msbreg_r50_imagnet"])


@pytest.mark.slow
def test_as_a_process(moco):
    done = warm.run(["-m", "model_zoo", "verify", str(moco), "--json"], cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["weights_sha256"] == load(moco).weights_sha256
    done = warm.run(["-m", "model_zoo", "verify", "nothing.pth"], cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr == "checkpoint error: nothing.pth: no such file or folder\n"


@pytest.mark.slow
def test_a_file_is_recognised_without_what_takes_seconds_to_import(moco, tmp_path):
    """torchvision.models and timm import torch's compiler: 2 of 4 CPU seconds."""
    code = (
        "import sys\nfrom model_zoo.__main__ import main\nfrom benchmarks import run_all\n"
        f"main(['convert', {str(moco)!r}, '-o', {str(tmp_path / 'model.pth')!r}])\n"
        f"main(['verify', {str(moco)!r}])\n"
        f"run_all.main(['--ckpt', {str(moco)!r}, '--suite', 'demo', '--profile', 'smoke', '--dry-run'])\n"
        "print(*({'torchvision', 'timm', 'torch._dynamo'} & set(sys.modules)), 'end')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1].split() == ["end"]
