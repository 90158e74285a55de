"""Plug-ins of every kind from an included folder or an installed package; a broken one does not affect the others."""

import argparse
import os
from pathlib import Path

import pytest
import torch
from backbones import initial

from backbench import plugins
from backbench.data import catalogue, layouts
from backbench.data.catalogue import DataPlaces
from backbench.errors import BackbenchError, ConfigError
from benchmarks import listing, plan
from model_zoo import entries, formats
from model_zoo.__main__ import main as zoo
from model_zoo.architecture import Architecture
from model_zoo.load import load
from pretrain import methods
from transfer import tasks

ROOT = Path(__file__).resolve().parents[2]
DATA = "title: Flowers\nlayout: imagefolder\ntrain: train\ntest: val\nsource: here\n"
ENTRY = "name: mine_r18\nmethod: Mine\narch: {name: resnet18}\npretrained_on: photos\nno_weights: none yet\n"
LAYOUT = '''"""Images listed in `<split>.list`."""
from backbench.data.layouts import imagefolder

LABELS = frozenset({"class"})


def recognise(root):
    """A file `here.list`."""
    return ("train", "val") if (root / "here.list").is_file() else None


def read(root, split, *, dataset="lists"):
    """As an image folder."""
    return imagefolder.read(root, split, dataset=dataset)
'''
FORMAT = '''"""A ResNet under `my_net`, each name with `w_` before it."""
from model_zoo.formats import Extracted


def matches(obj):
    return isinstance(obj, dict) and "my_net" in obj


def extract(obj):
    return Extracted({key.removeprefix("w_"): tensor for key, tensor in obj["my_net"].items()})


def example(state, arch):
    return {"my_net": {f"w_{key}": tensor for key, tensor in state.items()}}
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An included folder."""
    monkeypatch.setattr(plugins, "_warned", set())
    place = tmp_path / "mine"
    for name in (*plugins.FILES.values(), *plugins.MODULES.values()):
        (place / name).mkdir(parents=True)
    plugins.include([place])
    return place


def copied(folder, kind, source, name):
    """A built-in module under another name."""
    text = (ROOT / source).read_text().replace(f'name="{Path(source).stem}"', f'name="{name}"')
    (folder / plugins.MODULES[kind] / f"{name}.py").write_text(text)


def test_a_data_set_a_protocol_a_cell_and_a_suite(folder):
    (folder / "data" / "flowers.yaml").write_text(DATA)
    (folder / "protocols" / "nearest.yaml").write_text("task: knn\npreset: npid\nfields: {k: [1], headline_k: 1}\n")
    (folder / "tasks" / "one_knn.yaml").write_text("task: knn\npreset: npid\ndata: {name: flowers, expect: any}\n")
    (folder / "suites" / "mine.yaml").write_text("cells: [flowers_nearest, imagenet_nearest, one_knn]\n")
    suite = plan.load_suite("mine")
    assert [plan.load_cell(name).config.data.name for name in suite.cells] == ["flowers", "imagenet", "flowers"]
    assert plan.load_cell("imagenet_nearest").config.k == (1,)
    assert "flowers_nearest" in listing.everything()


def test_a_zoo_entry(folder, capsys):
    (folder / "entries" / "mine_r18.yaml").write_text(ENTRY)
    assert entries.get("mine_r18").method == "Mine"
    assert zoo(["list", "--method", "Mine"]) == 0
    assert "mine_r18" in capsys.readouterr().out


def test_a_data_layout(folder, image_folder):
    (folder / "layouts" / "lists.py").write_text(LAYOUT)
    (image_folder / "here.list").write_text("")
    assert layouts.names().count("lists") == 1
    named = catalogue.parse_places([f"flowers=lists:{image_folder}"])
    assert len(catalogue.load("flowers", "train", DataPlaces(None, named))) == 24
    assert catalogue.spelled("flowers", image_folder) == f"flowers=lists:{image_folder}"


def test_a_checkpoint_layout(folder, tmp_path):
    (folder / "formats" / "mine.py").write_text(FORMAT)
    state = initial(Architecture(name="resnet18", width=0.25))
    torch.save(formats.modules()["mine"].example(state, None), tmp_path / "a.pth")
    assert load(tmp_path / "a.pth").format == "mine"


def test_a_pretraining_method(folder):
    copied(folder, "methods", "pretrain/methods/msbreg.py", "mine")
    assert "mine" in methods.names() and methods.get("mine").name == "mine"


def test_a_task(folder):
    copied(folder, "tasks", "transfer/tasks/knn.py", "mine")
    (folder / "tasks" / "imagenet_mine.yaml").write_text("task: mine\npreset: npid\ndata: {name: imagenet}\n")
    assert "mine" in tasks.names()
    assert plan.load_cell("imagenet_mine").task is tasks.get("mine")


BROKEN = {
    "data": ("data/broken.yaml", "title: [", lambda: catalogue.info("broken")),
    "data without a layout": ("data/broken.yaml", DATA.replace("imagefolder", "imagfolder"),
                          lambda: catalogue.layout_of("broken")),
    "protocols": ("protocols/broken.yaml", "tsk: knn\n", lambda: plan.load_cell("imagenet_broken")),
    "cells": ("tasks/broken.yaml", "task: knm\ndata: {name: imagenet}\n", lambda: plan.load_cell("broken")),
    "cells are not a mapping": ("tasks/broken.yaml", "- 1\n", lambda: plan.load_cell("broken")),
    "suites": ("suites/broken.yaml", "cells: 3\n", lambda: plan.load_suite("broken")),
    "entries": ("entries/broken.yaml", "name: other\n", lambda: entries.get("broken")),
    "layouts": ("layouts/broken.py", "import nowhere\n", lambda: layouts.get("broken")),
    "methods": ("methods/broken.py", "def (\n", lambda: methods.get("broken")),
    "tasks": ("transfer_tasks/broken.py", "x = 1\n", lambda: tasks.get("broken")),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.sample(3)
def test_a_broken_one_is_named_and_takes_nothing_else_down(folder, kind, capsys):
    path, text, ask = BROKEN[kind]
    (folder / path).write_text(text)
    assert "imagenet_knn" in listing.everything()
    assert zoo(["list"]) == 0
    assert layouts.recognise(folder) is None
    said = capsys.readouterr().err
    if kind != "methods":  # none is imported that is not asked for
        assert "warning: " in said and "broken" in said and said.count("left out") == 1
    with pytest.raises(BackbenchError, match=r"broken|knm|imagfolder"):
        ask()
    assert plan.load_cell("imagenet_knn") and methods.get("msbreg") and entries.get("msbreg_r50_imagenet")


def test_a_broken_checkpoint_layout_is_named(folder, capsys):
    (folder / "formats" / "broken.py").write_text("raise OSError('a missing library')\n")
    assert "torchvision" in formats.modules() and "broken" not in formats.modules()
    said = capsys.readouterr().err
    assert said.count("broken.py: cannot be imported (OSError: a missing library); left out") == 1, (
        "once, not each time"
    )


def test_a_name_that_is_taken_is_not_replaced(folder, capsys):
    (folder / "data" / "imagenet.yaml").write_text(DATA)
    (folder / "layouts" / "voc.py").write_text(LAYOUT)
    assert catalogue.info("imagenet").title == "ImageNet"
    assert layouts.names().count("voc") == 1
    assert layouts.get("voc").__name__ == "backbench.data.layouts.voc"
    said = capsys.readouterr().err
    assert "imagenet.yaml: not used" in said and "voc.py: not used" in said


def test_the_option_takes_effect_and_is_inherited(tmp_path, monkeypatch):
    monkeypatch.delenv(plugins.VARIABLE, raising=False)
    parser = argparse.ArgumentParser()
    plugins.add_option(parser)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    args = parser.parse_args(["--include", str(tmp_path / "a"), "--include", str(tmp_path / "b")])
    assert args.include == [tmp_path / "a", tmp_path / "b"] == plugins.included()
    assert os.environ[plugins.VARIABLE] == f"{tmp_path / 'a'}{os.pathsep}{tmp_path / 'b'}"
    with pytest.raises(ConfigError, match="no such folder"):
        parser.parse_args(["--include", str(tmp_path / "c")])


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """An installed package with every form of entry point."""
    site = tmp_path / "site"
    for name, text in (("__init__.py", ""), ("petals.yaml", DATA)):
        (site / "flora" / "sets").mkdir(parents=True, exist_ok=True)
        (site / "flora" / "sets" / name).write_text(text)
    (site / "flora" / "__init__.py").write_text("")
    (site / "flora" / "listing.py").write_text(LAYOUT)
    info = site / "flora-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: flora\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[backbench.data]\nsets = flora.sets\ngone = flora.nowhere\n"
        "[backbench.layouts]\nflora_lists = flora.listing\nflora_gone = flora.nowhere\n"
    )
    monkeypatch.setattr(plugins, "_warned", set())
    monkeypatch.syspath_prepend(str(site))
    return site


def test_entry_points_of_an_installed_package(installed, capsys):
    assert catalogue.info("petals").title == "Flowers"
    assert "petals_knn" in plan.cell_names()
    assert layouts.get("flora_lists").__name__ == "flora.listing"
    assert layouts.recognise(installed) is None
    with pytest.raises(ConfigError, match=r"flora_gone = flora\.nowhere: cannot be loaded"):
        layouts.get("flora_gone")
    said = capsys.readouterr().err
    assert "gone = flora.nowhere: cannot be loaded (ModuleNotFoundError" in said
