"""On real photographs and real weights, where there are some: is the whole frozen pipeline sound?"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from benchmarks import run_one
from benchmarks.result import read_all
from core.datasets import imagefolder
from core.images import decode_rgb, read_bytes
from pretrain.config import ViewsConfig
from pretrain.views import make_views


def _knn(ckpt: str, real_data: Path, out: Path, *fields: str) -> dict[str, float]:
    """Metrics of the 5-NN cell on 400 photographs as the bank and 400 queries."""
    arguments = ["--ckpt", ckpt, "--cell", "imagenet_knn", "--out", str(out), "--data", f"imagenet={real_data / 'cls'}"]
    code = run_one.main([*arguments, "preset=wmse", "data.expect=any", "data.limit=400", *fields])
    assert code == 0
    (record,) = read_all(out)
    return {name: metric.value for name, metric in record.metrics.items()}


@pytest.mark.slow
def test_a_trained_backbone_is_far_above_a_random_one(real_data: Path, tmp_path: Path) -> None:
    """An ImageNet-pretrained half-width ResNet-50, read by its sidecar alone: the anchor of the frozen protocols."""
    weights = tmp_path / "thin.pth"
    shutil.copy(real_data / "weights" / "resnet50_thin_opennsfw.pth", weights)
    arch = "arch: {name: resnet50, width: 0.5, stride_in_1x1: true, pool_padding: end}\n"
    weights.with_name("thin.pth.yaml").write_text(arch + "input: {size: 224}\n")
    trained = _knn(str(weights), real_data, tmp_path / "trained")["top1_k5"]
    chance_like = _knn("random:resnet18", real_data, tmp_path / "random", "size=64")["top1_k5"]
    assert trained > 85
    assert chance_like < 45


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
