"""Test the whole frozen pipeline on real photographs and real weights, where they are present."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from backbench.data import demo
from backbench.data.decode import decode_rgb, read_bytes
from backbench.data.layouts import imagefolder
from backbench.errors import CheckpointError
from benchmarks import run_all, run_one
from benchmarks.records.store import read_all
from model_zoo import export
from model_zoo.__main__ import main as model_zoo
from model_zoo.load import load
from pretrain.config import ViewsConfig
from pretrain.views import make_views


def _knn(ckpt: str, real_data: Path, out: Path, *fields: str) -> dict[str, float]:
    """Metrics of the 5-NN cell on 400 photographs as the bank and 400 queries."""
    arguments = ["--ckpt", ckpt, "--cell", "imagenet_knn", "--out", str(out), "--data", f"imagenet={real_data / 'cls'}"]
    code = run_one.main([*arguments, "preset=wmse", "data.expect=any", "data.limit=400", *fields])
    assert code == 0
    (record,) = read_all(out)
    return {name: metric.value for name, metric in record.metrics.items()}


ANCHOR = "supervised_r50_half_open_nsfw"
ANCHOR_ARCH = "arch: {name: resnet50, width: 0.5, stride_in_1x1: true, pool_padding: end}\n"


@pytest.fixture
def anchor(real_data: Path, tmp_path: Path) -> Path:
    """An ImageNet-pretrained half-width ResNet-50, and the sidecar with the facts that weights do not contain."""
    weights = tmp_path / "thin.pth"
    shutil.copy(real_data / "weights" / "resnet50_thin_opennsfw.pth", weights)
    weights.with_name("thin.pth.yaml").write_text(ANCHOR_ARCH)
    return weights


def test_the_anchor_loads_by_its_fields_and_by_its_name(
    anchor: Path, real_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BACKBENCH_ZOO", str(real_data / "weights"))  # found by its checksum, whatever it is called
    by_fields, by_name = load(anchor), load(f"zoo:{ANCHOR}")
    assert by_fields.arch == by_name.arch
    assert by_fields.input == by_name.input
    assert by_fields.weights_sha256 == by_name.weights_sha256
    assert by_fields.build()(by_fields.state["conv1.weight"].new_zeros(1, 3, 64, 64)).shape == (1, 1024)
    anchor.with_name("thin.pth.yaml").unlink()
    bare = load(anchor)
    assert bare.arch.width == 0.5, "the width can be told"
    assert any("weights do not show" in note for note in bare.notes), "stride and padding cannot"


def test_the_anchor_is_refused_by_the_engines_for_its_pool(
    anchor: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half width and the stride in the 1x1 are fields there, the pool's padding is not; without it both take the rest."""
    for engine, file in (("detectron2", "thin.pkl"), ("mmdet", "thin-mmdet.pth")):
        target = export.get(engine)
        with pytest.raises(export.ExportError, match=r"pads its max-pool on all sides.*pool_padding: end"):
            model_zoo(["convert", str(anchor), "--to", engine, "-o", str(tmp_path / file)])
        assert not (tmp_path / file).exists()
        backbone = load(anchor)
        usual = dataclasses.replace(backbone, arch=backbone.arch.model_copy(update={"pool_padding": "symmetric"}))
        target.refuse(usual)
        settings = target.settings(usual)
        if engine == "detectron2":
            resnets = settings["MODEL"]["RESNETS"]
            assert (resnets["STRIDE_IN_1X1"], resnets["WIDTH_PER_GROUP"], resnets["RES2_OUT_CHANNELS"]) == (
                True,
                32,
                128,
            )
        else:
            fields = settings["backbone"]
            assert (fields["style"], fields["base_channels"], fields["stem_channels"]) == ("caffe", 32, 64)


def test_a_detection_cell_is_skipped_with_the_engines_reason(anchor: Path, tmp_path: Path) -> None:
    pytest.importorskip("detectron2", reason="Detectron2 is not installed: another reason would come first")
    arguments = ["--ckpt", f"anchor={anchor}", "--out", str(tmp_path / "out"), "--data-root", str(demo.root())]
    code = run_all.main([*arguments, "--tasks", "voc0712_detection", "voc0712_detection.train=trainval"])
    assert code == 1, "nothing was measured"
    (record,) = read_all(tmp_path / "out")
    assert record.status == "skipped"
    assert "pool_padding: end" in (record.reason or "")


@pytest.mark.slow
def test_a_trained_backbone_is_far_above_a_random_one(anchor: Path, real_data: Path, tmp_path: Path) -> None:
    """The anchor of the frozen protocols, against a random network of its architecture."""
    small = ("size=128", "resize=144")
    trained = _knn(str(anchor), real_data, tmp_path / "trained", *small)["top1_k5"]
    random = _knn("random:resnet50", real_data, tmp_path / "random", "--like", str(anchor), *small)["top1_k5"]
    assert trained >= 75  # of 128 pixels and 40 photographs a class
    assert random < 25


@pytest.mark.parametrize("depth", [20, 32, 44, 56])
def test_cifar_resnets_are_refused_with_the_reason(real_data: Path, depth: int) -> None:
    (file,) = (real_data / "weights").glob(f"resnet{depth}-*.th")
    blocks = (depth - 2) // 6
    with pytest.raises(CheckpointError) as caught:
        load(file)
    words = str(caught.value)
    assert f"three stages of basic blocks [{blocks}, {blocks}, {blocks}], 16 planes after conv1" in words
    assert "shortcuts without weights (option A), made for 32-pixel images" in words
    assert "\n" not in words and ". " not in words, "one sentence"


def test_every_photograph_decodes_alike_by_both_ways_and_gives_views(real_data: Path) -> None:
    split = imagefolder.read(real_data / "cls", "val")
    greys = 0
    for index in range(0, len(split), 25):
        slow = np.asarray(split.source.pil(index)).astype(int)
        fast = split.source.rgb(index).astype(int)
        assert slow.shape == fast.shape
        assert np.abs(slow - fast).mean() < 1.0  # the two JPEG decoders round differently
        greys += bool((slow[..., 0] == slow[..., 1]).all() and (slow[..., 0] == slow[..., 2]).all())
        views = make_views(split.source.rgb(index), ViewsConfig(), views=2, size=64, seed=0, epoch=0, index=index)
        assert views.shape == (2, 64, 64, 3)
    assert greys < 10


def test_coco_photographs_decode(real_data: Path) -> None:
    for path in sorted((real_data / "coco" / "val2017").glob("*.jpg"))[:20]:
        assert decode_rgb(read_bytes(path), path.name).ndim == 3
