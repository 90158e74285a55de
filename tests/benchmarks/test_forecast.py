"""`run --dry-run` predicts what a run would do and downloads nothing."""

from __future__ import annotations

import dataclasses
import shutil
from collections import namedtuple

import pytest

from backbench.data import catalogue, subsets
from backbench.data.layouts import imagefolder
from benchmarks import run_all, run_one, starting
from model_zoo import fetch

FIELDS = ["data.expect=any", "k=[1,3]", "headline_k=3", "size=32"]


@pytest.fixture
def foresee(image_folder, tmp_path, capsys, monkeypatch):
    """Return the lines of a dry run of random:resnet18 on a few images."""
    monkeypatch.setattr(starting, "launch", None)
    monkeypatch.setattr(fetch, "_download", lambda *_: pytest.fail("something was downloaded"))
    monkeypatch.setattr(subsets, "_download", lambda *_: pytest.fail("a list was fetched"))
    monkeypatch.setenv("BACKBENCH_CACHE", str(tmp_path / "cache"))

    def run(*words, ckpt="random:resnet18", tasks="imagenet_knn", data=None):
        argv = ["--ckpt", ckpt, "--tasks", tasks, "--out", str(tmp_path / "out"), "--seeds", "1", "--dry-run"]
        assert run_all.main([*argv, "--data", f"imagenet={data or image_folder}", *words]) == 0
        verbs = ("run ", "kept ", "fails ", "skip ", "fetch ", "features: ")
        return [line for line in capsys.readouterr().err.splitlines() if line.startswith(verbs)]

    return run


def overrides(cell="imagenet_knn"):
    return [f"{cell}.{field}" for field in FIELDS]


def test_a_cell_runs_with_its_features_on_the_disk(foresee):
    line, disk = foresee(*overrides())
    assert line.split() == ["run", "random:resnet18", "imagenet_knn"]
    assert disk.startswith("features: 73.7 kB estimated in ") and disk.endswith(" free")  # 36 images x 512 x 4 bytes


def test_the_files_of_a_data_set_are_listed_once_for_all_cells(foresee, capsys, monkeypatch):
    read, seen = imagefolder.read, []
    monkeypatch.setattr(imagefolder, "read", lambda root, split, **kw: seen.append(split) or read(root, split, **kw))
    said: list[str] = []
    monkeypatch.setattr(catalogue, "say", said.append)
    cells = ["imagenet_knn", "imagenet_linear", "imagenet_uniformity"]
    lines = foresee(*(f"{cell}.data.expect=any" for cell in cells), tasks=",".join(cells))
    assert [line.split()[0] for line in lines] == ["run", "run", "run", "features:"]
    assert seen == ["train", "val"]
    assert [line.partition(":")[0] for line in said] == [f"listing the images of imagenet, {s}" for s in seen]
    foresee(*overrides())
    assert seen == ["train", "val"] * 2, "another run lists them again: files may have changed"


def test_a_full_disk_is_foretold(foresee, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 10, 0))
    assert "too little; give --out a folder on a larger disk" in foresee(*overrides())[-1]


def test_an_identical_result_is_kept(foresee, image_folder, tmp_path):
    argv = ["--ckpt", "random:resnet18", "--cell", "imagenet_knn", "--out", str(tmp_path / "out"), "--workers", "0"]
    assert run_one.main([*argv, "--data", f"imagenet={image_folder}", *FIELDS]) == 0
    assert foresee(*overrides())[-1].split()[0] == "kept"


def test_data_that_are_not_the_published_ones_fail(foresee):
    (line,) = foresee()
    assert line.startswith("fails random:resnet18")
    assert "published: " in line and "set <cell>.data.expect=any" in line


def test_a_list_that_is_absent_is_named_with_its_command(foresee, monkeypatch):
    official = dataclasses.replace(subsets.OFFICIAL["1%"], count=1, fractions=(0.0, 0.1))
    monkeypatch.setitem(subsets.OFFICIAL, "1%", official)
    (line,) = foresee("imagenet_semi1.data.expect=any", tasks="imagenet_semi1")
    assert line.endswith("fetches the 1% list (`backbench data lists` fetches it now)")


def test_what_a_list_that_is_absent_would_fail_on_is_said_too(foresee):
    (line,) = foresee(tasks="imagenet_semi1")
    assert line.startswith("fails random:resnet18") and "published: " in line
    (line,) = foresee("imagenet_semi1.data.expect=any", tasks="imagenet_semi1")
    assert line.startswith("fails random:resnet18") and line.endswith("or give one with <cell>.list=FILE")


def test_absent_data_are_skipped(foresee, tmp_path):
    (line,) = foresee(data=tmp_path / "nowhere")
    assert line.startswith("skip  random:resnet18") and "no folder" in line


def test_a_checkpoint_to_download_is_named_with_its_size(foresee):
    lines = foresee("--baselines", "random,moco_v2_800ep", *overrides(), ckpt="zoo:swav_800ep")
    assert [line.split()[:2] for line in lines] == [
        ["fetch", "zoo:swav_800ep:"],
        ["fetch", "moco_v2_800ep:"],
        ["run", "zoo:swav_800ep"],
        ["run", "moco_v2_800ep"],
    ]
    assert all("a download of " in line for line in lines[:2])
    assert all(line.endswith("imagenet_knn: after the download") for line in lines[2:])


def test_what_an_absent_checkpoint_would_fail_on_is_said_too(foresee):
    *_, line = foresee(ckpt="zoo:swav_800ep")
    assert line.startswith("fails zoo:swav_800ep") and "published: " in line
