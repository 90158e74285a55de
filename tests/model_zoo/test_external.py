"""Backbones other than ResNets: timm models and importable functions, in the protocols that support them."""

import importlib.metadata
import json
import sys
import textwrap
from pathlib import Path

import pytest
import timm
import torch
import torchvision
import warm

from backbench.config import build as build_config
from backbench.errors import CheckpointError, ConfigError
from benchmarks import run_all, subjects
from benchmarks.records.store import read_all
from model_zoo import export
from model_zoo.__main__ import main
from model_zoo.architecture import InputSpec
from model_zoo.load import load
from transfer import tasks

ROOT = Path(__file__).resolve().parents[2]
VIT = "timm:test_vit?pretrained=false"
NET = """
    import torch
    from torch import nn

    class Tiny(nn.Module):
        input_spec = {"size": 32, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}

        def __init__(self, out=lambda maps: maps.mean((2, 3))):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.GELU())
            self.out = out

        def forward(self, x):
            return self.out(self.body(x))

    def build():
        torch.manual_seed(0)
        return Tiny()

    def silent():
        net = Tiny()
        net.input_spec = None
        return net

    def maps(): return Tiny(lambda maps: maps)
    def words(): return Tiny(lambda maps: {"features": maps})
    def nans(): return Tiny(lambda maps: maps.mean((2, 3)) / 0 * 0)
    def noisy(): return Tiny(lambda maps: maps.mean((2, 3)) + torch.rand(1))
    def mixing(): return Tiny(lambda maps: maps.mean((2, 3)) - maps.mean((0, 2, 3)))
    def narrow(): return nn.Conv2d(4, 4, 1)
    def text(): return "a network"
    def broken(): raise RuntimeError("no weights here")
    def wrong():
        net = Tiny()
        net.input_spec = {"sise": 32}
        return net
    def drawn(): return Tiny()
    ON_IMPORT = Tiny()
    def imported(): return ON_IMPORT
    def changing():
        import random
        net = Tiny()
        net.body[0].weight.data[:] = random.random()
        return net
    NUMBER = 3
"""


@pytest.fixture
def functions(tmp_path, monkeypatch):
    """Write a module with a unique name in the working folder."""
    name = f"nets_{abs(hash(tmp_path)):x}"
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(NET))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))  # undo what loading appends
    return name


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "convnext_atto"])
@torch.no_grad()
def test_a_timm_models_features_are_its_own(name):
    backbone = load(f"timm:{name}?pretrained=false")
    torch.manual_seed(0)
    theirs = timm.create_model(name, num_classes=0).eval()
    x = torch.randn(2, 3, backbone.input.size, backbone.input.size)
    torch.testing.assert_close(backbone.build().eval()(x), theirs(x), rtol=1e-5, atol=1e-6)
    assert backbone.feature_dim == theirs.num_features
    assert not backbone.is_resnet
    assert backbone.name == f"{name} untrained"
    config = theirs.pretrained_cfg
    assert (backbone.input.size, backbone.input.mean) == (config["input_size"][-1], tuple(config["mean"]))
    record = backbone.record()
    assert record["arch"] == {"name": name, "library": f"timm {timm.__version__}", "source_sha256": None}
    json.dumps(record)


def test_another_seed_is_another_network_and_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    first, same, other = (load(f"timm:convnext_atto?pretrained=false{seed}") for seed in ("", "&seed=0", "&seed=1"))
    assert torch.equal(torch.get_rng_state(), before)
    assert first.weights_sha256 == same.weights_sha256 != other.weights_sha256
    assert first.name == other.name, "one row"


def test_pretrained_weights_are_timms(tmp_path, monkeypatch):
    """Let timm load its weights from a file instead of the hub."""
    model = timm.create_model("vit_tiny_patch16_224", num_classes=1000)
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    create, own = timm.create_model, {"file": str(tmp_path / "vit.pth")}

    def from_file(name, pretrained, num_classes):
        assert pretrained
        return create(name, pretrained, num_classes=num_classes, pretrained_cfg_overlay=own)

    monkeypatch.setattr(timm, "create_model", from_file)
    backbone = load("timm:vit_tiny_patch16_224.augreg_in21k")
    assert backbone.name == "vit_tiny_patch16_224.augreg_in21k"
    assert torch.equal(backbone.state["blocks.0.attn.qkv.weight"], model.state_dict()["blocks.0.attn.qkv.weight"])
    assert any("crop_pct" in note for note in backbone.notes), "a note says that its evaluation differs from ours"


@pytest.mark.slow
def test_a_timm_resnet_of_ours_is_a_resnet_and_its_relatives_are_not():
    assert load("timm:resnet18?pretrained=false").is_resnet
    assert load("timm:resnet18?pretrained=false").format == "torchvision"
    deep = load("timm:resnet18d?pretrained=false")
    assert deep.is_resnet and (deep.arch.stem, deep.arch.avg_down) == ("deep", True)
    assert not load("timm:resnet10t?pretrained=false").is_resnet, "one block per stage"
    blur = load("timm:resnetblur18?pretrained=false")
    assert not blur.is_resnet, "equal names and shapes, but another function"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("timm:none_such?pretrained=false", "timm cannot build this model"),
        ("timm:convnext_atto?pretraned=false", "unknown option 'pretraned'; did you mean 'pretrained'"),
        ("timm:convnext_atto?pretrained=no", "write .pretrained=false"),
        ("timm:convnext_atto?seed=1", "add pretrained=false"),
    ],
)
def test_refused_words_about_timm(source, words):
    with pytest.raises(CheckpointError, match=words):
        load(source)


@torch.no_grad()
def test_a_function_of_ones_own(functions):
    backbone = load(f"{functions}:build")
    assert (backbone.name, backbone.format, backbone.feature_dim) == (f"{functions}:build", "function", 12)
    assert backbone.input == InputSpec(size=32, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    assert load(f"{functions}:build", name="mine").name == "mine"
    a, b = backbone.build(), backbone.build()
    a.body[0].weight.zero_()
    assert bool((b.body[0].weight != 0).any()) and bool((backbone.state["body.0.weight"] != 0).any()), "fresh each time"
    assert load(f"{functions}:build").weights_sha256 == backbone.weights_sha256
    assert any("no input_spec" in note for note in load(f"{functions}:silent").notes)


@pytest.mark.slow
@pytest.mark.parametrize("function", ["drawn", "imported"])
def test_drawn_weights_are_the_same_in_every_process(functions, tmp_path, function):
    """torch starts every process with its default seed; earlier code has changed the generator's state."""
    code = (
        "import sys, torch; torch.rand(int(sys.argv[2])); from model_zoo.load import load; "
        "print(load(sys.argv[1]).weights_sha256)"
    )
    done = [warm.run(["-c", code, f"{functions}:{function}", count], cwd=tmp_path) for count in ("1", "1000")]
    assert done[0].stdout == done[1].stdout != "", done[0].stderr


def test_a_function_leaves_the_generator_alone(functions):
    before = torch.get_rng_state()
    assert load(f"{functions}:drawn").weights_sha256 == load(f"{functions}:drawn").weights_sha256
    assert torch.equal(torch.get_rng_state(), before)


def test_the_code_is_part_of_a_records_identity(functions, tmp_path):
    before = load(f"{functions}:build").record()["arch"]
    file = tmp_path / f"{functions}.py"
    file.write_text(file.read_text().replace("nn.GELU()", "nn.ReLU()"))
    after = load(f"{functions}:build").record()["arch"]
    assert before["name"] == after["name"]
    assert before["source_sha256"] != after["source_sha256"]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Write a network that inherits its forward from one file and pools with another."""
    name = f"package_{abs(hash(tmp_path)):x}"
    files = {
        "base": "from torch import nn\nfrom . import helper\n\nclass Base(nn.Module):\n"
        "    def forward(self, x): return helper.pool(self.conv(x))\n",
        "helper": "def pool(maps): return maps.mean((2, 3))\n",
        "unused": "NOTHING = 1\n",
        "net": "import torchvision\nfrom torch import nn\nfrom .base import Base\n\nclass Net(Base):\n"
        "    def __init__(self):\n        super().__init__()\n        self.conv = nn.Conv2d(3, 4, 3)\n",
        "__init__": "from .net import Net\ndef build(): return Net()\n",
    }
    (tmp_path / name).mkdir()
    for file, text in files.items():
        (tmp_path / name / f"{file}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    return tmp_path / name


@pytest.mark.parametrize(("file", "counts"), [("base", True), ("helper", True), ("net", True), ("unused", False)])
def test_inherited_code_and_helpers_are_part_of_the_identity(package, file, counts):
    before = load(f"{package.name}:build").record()["arch"]
    with (package / f"{file}.py").open("a") as text:
        text.write("# changed\n")
    after = load(f"{package.name}:build").record()["arch"]
    assert (before["source_sha256"] != after["source_sha256"]) == counts
    assert before["library"] == after["library"]


def test_installed_libraries_are_named_with_their_versions(package, monkeypatch):
    libraries = load(f"{package.name}:build").arch.library.split(", ")
    torch_version, vision_version = (library.__version__.partition("+")[0] for library in (torch, torchvision))
    assert libraries == [f"torch {torch_version}", f"torchvision {vision_version}"]
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "9.9" if name == "torchvision" else version(name))
    assert "torchvision 9.9" in load(f"{package.name}:build").arch.library, "another version is another network"


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("maps", r"returns \(2, 12, 16, 16\) for 2 images, features \(N, C\) are needed: pool the maps"),
        ("words", "returns a dict"),
        ("nans", "NaN or infinite"),
        ("noisy", "the same images give different features each time"),
        ("mixing", "depend on the other images"),
        ("narrow", r"fails on images \(2, 3, 224, 224\)"),
        ("text", "returns a str, not an nn.Module"),
        ("broken", "calling it failed .RuntimeError: no weights here"),
        ("wrong", "unknown key 'sise'; did you mean 'size'"),
        ("bild", "has no function 'bild'; did you mean 'build'"),
        ("changing", "two calls return different weights"),
        ("NUMBER", "has no function 'NUMBER'"),
    ],
)
def test_refused_functions(functions, function, words):
    with pytest.raises(CheckpointError, match=words):
        load(f"{functions}:{function}")


def test_no_such_module(functions):
    with pytest.raises(CheckpointError, match="no such file, and no module 'none_such' to import"):
        load("none_such:build")


def test_names_on_the_command_line():
    assert subjects.split_name(VIT) == (None, VIT)
    assert subjects.split_name(f"mine={VIT}") == ("mine", VIT)
    assert subjects.split_name("mine=package.models:build") == ("mine", "package.models:build")


def test_what_needs_a_resnet_says_so(functions, tmp_path):
    source = f"{functions}:build"
    backbone = load(source)
    for engine in ("detectron2", "mmdet"):
        with pytest.raises(export.ExportError, match=f"takes ResNets only, and {source} is not one"):
            export.get(engine).export(backbone)
        with pytest.raises(CheckpointError, match="only ResNets can be converted"):
            main(["convert", source, "--to", engine, "-o", str(tmp_path / "out.pkl")])
    with pytest.raises(CheckpointError, match="only ResNets can be converted"):
        main(["convert", source, "-o", str(tmp_path / "model.pth")])
    with pytest.raises(CheckpointError, match="which is not a ResNet"):
        load("random:resnet18", like=backbone)
    with pytest.raises(ConfigError, match="so its initialisation is unknown"):
        run_all.find_subjects([source], "random", 1)
    for name, preset in (("voc07_svm", "vissl"), ("voc07_lowshot", "fair")):
        task = tasks.get(name)
        config = build_config(task.Config, tasks.preset_fields(task, preset))
        assert "pools C5 of a ResNet" in task.unfit(backbone, config)
        assert task.unfit(backbone, task.Config()) is None
        assert task.unfit(load("random:resnet18"), config) is None


@pytest.mark.slow
def test_verify(functions, capsys):
    assert main(["verify", f"{functions}:build", "--json"]) == 0
    card = json.loads(capsys.readouterr().out)
    assert card["parameters"] == f"{3 * 12 * 9 + 12 + 24:,}"
    assert card["features"].startswith("12 dimensions, effective rank")
    assert "ResNets only" in card["not checked"]
    assert main(["verify", "timm:resnet18?pretrained=false", "--json"]) == 0
    card = json.loads(capsys.readouterr().out)
    assert (card["architecture"], card["file_sha256"]) == ("resnet18", "no file")


CELLS = "imagenet_knn,imagenet_linear,imagenet_semi10,imagenet_uniformity,voc0712_detection"
FIELDS = ["imagenet_knn.k=[3]", "imagenet_knn.headline_k=3", "imagenet_linear.epochs=2", "imagenet_linear.batch=8",
          "imagenet_semi10.epochs=1", "imagenet_semi10.batch=8", "imagenet_semi10.list=drawn"]  # fmt: skip


def measure(ckpt, image_folder, out, fields=()):
    """Return records by cell for every protocol that supports any network, and one that does not."""
    any_data = [f"{cell}.data.expect=any" for cell in CELLS.split(",")]
    arguments = ["--ckpt", ckpt, "--data", f"imagenet={image_folder}", "--data", f"voc={image_folder}", "--seeds", "1"]
    code = run_all.main([*arguments, "--tasks", CELLS, "--out", str(out), *any_data, *FIELDS, *fields])
    assert code == 0
    return {record.cell: record for record in read_all(out)}


@pytest.mark.slow
def test_a_function_goes_through_the_protocols_and_detection_is_skipped(
    functions, image_folder, tmp_path, capfd, warm_cells
):
    records = measure(f"mine={functions}:build", image_folder, tmp_path / "out", ["imagenet_linear.features=augmented"])
    ok = {cell for cell, record in records.items() if record.status == "ok"}
    assert ok == {"imagenet_knn", "imagenet_linear", "imagenet_semi10", "imagenet_uniformity"}
    assert {record.backbone.weights_sha256 for record in records.values()} == {
        load(f"{functions}:build").weights_sha256
    }
    assert records["imagenet_semi10"].task.notes == ["encoder fine-tuned at rate 0.00025"]
    assert records["imagenet_knn"].metrics["top1_k3"].value > 60, "classes differ in brightness: chance is 33"
    said = capfd.readouterr().out
    skipped = records["voc0712_detection"]
    assert skipped.status == "skipped"
    assert (
        f"takes ResNets only, and {functions}:build is not one" in skipped.reason or "not installed" in skipped.reason
    )
    assert skipped.reason in said, "the report shows the reason"


@pytest.mark.slow
def test_a_timm_vit_goes_through_the_protocols(image_folder, tmp_path, warm_cells):
    records = measure(VIT, image_folder, tmp_path / "out")
    ok = {cell for cell, record in records.items() if record.status == "ok"}
    assert ok == {"imagenet_knn", "imagenet_linear", "imagenet_semi10", "imagenet_uniformity"}
    assert records["imagenet_knn"].backbone.arch["name"] == "test_vit"
    assert records["imagenet_knn"].backbone.name == "test_vit untrained"
