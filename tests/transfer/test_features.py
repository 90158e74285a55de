"""Frozen features: the right values in the right order, and a cache that never returns features of other data."""

import dataclasses
import errno
import os
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
import torchvision
from backbones import initial
from PIL import Image
from torch import nn
from torchvision import transforms

from backbench.config import digest
from backbench.data.catalogue import DataPlaces, load
from backbench.data.decode import CorruptImage
from backbench.data.splits import ImageSplit, Subset
from backbench.errors import BackbenchError, ConfigError
from model_zoo.architecture import Architecture, InputSpec
from model_zoo.backbone import Backbone
from model_zoo.resnet import build
from transfer import feature_file, features
from transfer.feature_spec import FeatureSpec
from transfer.pooling import pooled

pytestmark = pytest.mark.slow  # twenty seconds of small extractions

pytest_plugins = ["feature_runs"]


def make_backbone(seed=0, width=0.25, **spec):
    arch = Architecture(name="resnet18", width=width)
    state = initial(arch, seed)
    generator = torch.Generator().manual_seed(seed)
    for key, tensor in state.items():  # statistics that tell eval mode from train mode
        if key.endswith("running_mean"):
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
        if key.endswith("running_var"):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return Backbone("tiny", arch, state, InputSpec(size=32, **spec), "test", "backbench")


def plain_loop(network, split, *, resize, size, mean, std, bgr=False):
    """Compute features one image at a time with torchvision's transforms."""
    steps = [transforms.Resize(resize), transforms.CenterCrop(size), transforms.ToTensor()]
    rows = []
    for path in split.source.paths:
        with Image.open(split.source.root / path) as image:
            x = transforms.Compose(steps)(image.convert("RGB"))
        if bgr:
            x = x[[2, 1, 0]]
        x = transforms.Normalize(mean, std)(x)
        with torch.no_grad():
            rows.append(network.eval()(x[None])[0])
    return torch.stack(rows)


@pytest.mark.parametrize(("size", "resize"), [(None, None), (24, None), (32, 40)])
def test_equals_a_plain_loop(split, ctx, size, resize):
    backbone = make_backbone(width=1.0)
    network = torchvision.models.resnet18()
    network.fc = nn.Identity()
    network.load_state_dict(backbone.state)
    side = size or 32
    found = features.extract(backbone, split, ctx, FeatureSpec(size, resize))
    expected = plain_loop(
        network,
        split,
        resize=resize or round(side * 256 / 224),
        size=side,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )
    assert found.dtype == torch.float32
    assert expected.std(dim=0).mean() > 1e-2, "rows differ, so the order is seen"
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_bgr_order_and_its_own_mean(split, ctx):
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    backbone = make_backbone(order="bgr", mean=mean, std=std)
    found = features.extract(backbone, split, ctx)
    expected = plain_loop(backbone.build(), split, resize=37, size=32, mean=mean, std=std, bgr=True)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    rgb = features.extract(make_backbone(mean=mean, std=std), split, ctx)
    assert not torch.allclose(found, rgb, atol=1e-3)


def test_normalise_by_hand():
    pixel = torch.tensor([[[[255, 51, 0]]]], dtype=torch.uint8)
    spec = InputSpec(mean=(0.5, 0.25, 0.0), std=(0.5, 0.1, 2.0))
    x = features.normalise(pixel, spec, torch.device("cpu"))
    assert x.shape == (1, 3, 1, 1)
    assert x.flatten().tolist() == pytest.approx([1.0, -0.5, 0.0], abs=1e-6)
    x = features.normalise(pixel, spec.model_copy(update={"order": "bgr"}), torch.device("cpu"))
    assert x.flatten().tolist() == pytest.approx([-1.0, -0.5, 0.5], abs=1e-6)


@pytest.mark.parametrize("batch", [1, 7, 24])
def test_every_image_once_whatever_the_batch(split, ctx, monkeypatch, batch):
    whole = features.extract(make_backbone(), split, ctx)
    monkeypatch.setattr(features, "_BATCH", batch)
    parts = features.compute(make_backbone().build(), InputSpec(size=32), split, ctx)
    assert len(parts) == len(split) == 24
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)


def test_images_of_odd_sizes(tmp_path, ctx):
    rng = np.random.default_rng(0)
    for label, (height, width) in enumerate([(31, 77), (33, 32), (5, 200), (101, 7), (1, 1)]):
        folder = tmp_path / "odd" / "train" / f"c{label}"
        folder.mkdir(parents=True)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(folder / "0.png")
    split = load("imagenet", "train", DataPlaces(None, {"imagenet": tmp_path / "odd"}))
    backbone = make_backbone()
    found = features.extract(backbone, split, ctx)
    expected = plain_loop(
        backbone.build(), split, resize=37, size=32, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
    assert len(found) == 5
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_hit_does_not_compute_again(split, ctx, computed):
    first = features.extract(make_backbone(), split, ctx)
    again = features.extract(make_backbone(), split, ctx)
    assert len(computed) == 1
    assert torch.equal(first, again)


def test_name_and_source_do_not_change_the_key(split, ctx, computed):
    backbone = make_backbone()
    features.extract(backbone, split, ctx)
    features.extract(dataclasses.replace(backbone, name="other", source="elsewhere"), split, ctx)
    assert len(computed) == 1


def test_the_key_is_the_stated_digest(split, ctx):
    """Cached features of earlier versions are found. Only a new `_VERSION` changes the key."""
    backbone = make_backbone()
    stated = {
        "version": 2,
        "weights": backbone.weights_sha256,
        "arch": backbone.arch.model_dump(mode="json"),
        "input": backbone.input.model_dump(mode="json"),
        "manifest": split.manifest_sha256(),
        "state": split.state_sha256(),
        "order": digest(list(split.source.paths)),
        "split": "train",
        "size": 32,
        "resize": 37,
        "pooling": "gap",
        "squash": False,
        "interpolation": "bilinear",
        "packages": [torch.__version__, torchvision.__version__, PIL.__version__],
        "device": "cpu",
    }
    features.extract(backbone, split, ctx, FeatureSpec(size=32))
    features.extract(backbone, split, ctx)
    assert [path.stem for path in ctx.cache.glob("*.npy")] == [digest(stated)]


def first_rows(split):
    rows = np.arange(23)
    return ImageSplit(split.dataset, split.split, Subset(split.source, rows), split.labels[rows], split.classes)


@pytest.mark.parametrize(
    "changed",
    [
        lambda b, s: ((make_backbone(seed=1), s), {}),
        lambda b, s: ((make_backbone(mean=(0.5, 0.5, 0.5)), s), {}),
        lambda b, s: ((make_backbone(std=(0.5, 0.5, 0.5)), s), {}),
        lambda b, s: ((make_backbone(order="bgr"), s), {}),
        lambda b, s: ((dataclasses.replace(b, arch=b.arch.model_copy(update={"pool_padding": "end"})), s), {}),
        lambda b, s: ((b, s), {"size": 40}),
        lambda b, s: ((b, s), {"resize": 33}),
        lambda b, s: ((b, first_rows(s)), {}),
        lambda b, s: ((b, dataclasses.replace(s, split="val")), {}),
    ],
    ids=["weights", "mean", "std", "order", "arch", "size", "resize", "images", "split"],
)
def test_whatever_changes_a_feature_changes_the_key(split, ctx, computed, changed):
    backbone = make_backbone()
    before = features.extract(backbone, split, ctx)
    args, kwargs = changed(backbone, split)
    after = features.extract(*args, ctx, FeatureSpec(**kwargs))
    assert len(computed) == 2
    if args[1] is split:
        assert not torch.equal(before, after)


def test_a_replaced_image_changes_the_key(image_folder, ctx, computed):
    places = DataPlaces(None, {"imagenet": image_folder})
    before = features.extract(make_backbone(), load("imagenet", "train", places), ctx)
    Image.new("RGB", (64, 64)).save(image_folder / "train" / "class1" / "3.jpg")
    after = features.extract(make_backbone(), load("imagenet", "train", places), ctx)
    assert len(computed) == 2
    assert [i for i in range(24) if not torch.equal(before[i], after[i])] == [8 + 3]


@pytest.mark.parametrize("keep", [0, 50, 1000])
def test_a_cut_cache_file_is_computed_again(split, ctx, computed, keep):
    first = features.extract(make_backbone(), split, ctx).clone()  # mapped from the file that is cut
    (file,) = ctx.cache.glob("*.npy")
    file.write_bytes(file.read_bytes()[:keep])
    assert torch.equal(features.extract(make_backbone(), split, ctx), first)
    assert len(computed) == 2
    features.extract(make_backbone(), split, ctx)
    assert len(computed) == 2, "the file is whole again"


@pytest.mark.sample(2)
@pytest.mark.parametrize("broken", [b"", b"no image", None])
@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_corrupt_image_fails_and_is_named(image_folder, ctx, broken, workers):
    bad = image_folder / "train" / "class1" / "5.jpg"
    bad.write_bytes(bad.read_bytes()[:300] if broken is None else broken)
    split = load("imagenet", "train", DataPlaces(None, {"imagenet": image_folder}))
    ctx.workers = workers
    with pytest.raises(CorruptImage, match=r"class1/5\.jpg"):
        features.extract(make_backbone(), split, ctx)
    assert list(ctx.cache.glob("*.npy")) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_a_sentence(monkeypatch, split, ctx):
    """Writing the file gives an error; mapping it would kill the process silently."""
    with (
        pytest.raises(BackbenchError, match="cannot write /dev/full: the disk is full"),
        feature_file.new_rows(Path("/dev/full"), (4096, 64), "rows") as append,
    ):
        append(np.zeros((4096, 64), np.float32))

    def refuse(_handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(BackbenchError, match=r"cannot write .*\.part0: the disk is full"):
        features.extract(make_backbone(), split, ctx)
    assert [path.suffix for path in ctx.cache.iterdir()] == [".lock"], "nothing half written is left"


class _Drifting(nn.Module):
    """A network whose buffer changes in eval mode."""

    def __init__(self):
        super().__init__()
        self.register_buffer("centre", torch.zeros(3))

    def forward(self, x):
        self.centre += 1
        return x.mean(dim=(2, 3)) - self.centre


def test_frozen_means_frozen(split, ctx):
    with pytest.raises(features.FrozenMoved):
        features.compute(_Drifting(), InputSpec(size=32), split, ctx)


def test_norms_are_in_eval_mode_and_nothing_asks_for_gradients(split, ctx):
    module = make_backbone().build().train()
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    found = features.compute(module, InputSpec(size=32), split, ctx)
    assert not any(part.training for part in module.modules())
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert not found.requires_grad
    assert all(torch.equal(tensor, before[key]) for key, tensor in module.state_dict().items())


def test_features_that_are_not_finite_are_refused(split, ctx):
    class _Nan(nn.Module):
        def forward(self, x):
            return x.mean(dim=(2, 3)) * torch.nan

    with pytest.raises(FloatingPointError, match="imagenet train"):
        features.compute(_Nan(), InputSpec(size=32), split, ctx)


@pytest.mark.parametrize(("pooling", "size"), [("gap", 64), ("res5_2x2", 64), ("res5_2x2", 100)])
@pytest.mark.parametrize("squash", [False, True])
def test_pooling_and_squashing_equal_a_plain_loop(split, ctx, pooling, size, squash):
    """At 64 pixels C5 is 2x2 and each cell is a window; at 100 pixels it is 4x4 with windows of 3x3."""
    backbone = make_backbone()
    resize = size + 10
    fit = [transforms.Resize((size, size))] if squash else [transforms.CenterCrop(size)]
    view = transforms.Compose([transforms.Resize(resize), *fit, transforms.ToTensor()])
    normalise = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    network, rows = backbone.build().eval(), []
    for path in split.source.paths:
        with Image.open(split.source.root / path) as image, torch.no_grad():
            c5 = network.stages(normalise(view(image.convert("RGB")))[None])[-1][0]
        side = c5.shape[-1]
        if pooling == "gap":
            rows.append(c5.mean(dim=(1, 2)))
        else:
            corners = [(0, 0), (0, 1), (1, 0), (1, 1)]
            cells = [c5[:, y : y + side - 1, x : x + side - 1].mean(dim=(1, 2)) for y, x in corners]
            rows.append(torch.stack(cells, dim=1).flatten())
    found = features.extract(backbone, split, ctx, FeatureSpec(size, resize, pooling, squash))
    torch.testing.assert_close(found, torch.stack(rows), rtol=1e-4, atol=1e-4)
    assert found.std(dim=0).mean() > 1e-3, "rows differ, so the order is seen"


def test_pooling_and_squashing_have_keys_of_their_own(split, ctx, computed):
    options = [{}, {"pooling": "res5_2x2"}, {"squash": True}, {"pooling": "res5_2x2", "squash": True}]
    for _ in range(2):
        for option in options:
            features.extract(make_backbone(), split, ctx, FeatureSpec(size=40, **option))
    assert len(computed) == len(options)


def test_2x2_of_a_resnet50_are_8192_numbers():
    with torch.device("meta"):
        network = build(Architecture(name="resnet50"))
        found = pooled(network, torch.empty(2, 3, 224, 224), "res5_2x2")
        expected = nn.AvgPool2d(6, 1)(network.stages(torch.empty(2, 3, 224, 224))[-1]).flatten(1)
    assert found.shape == expected.shape == (2, 8192)


def test_2x2_of_a_single_cell_is_refused(split, ctx):
    with pytest.raises(ConfigError, match="C5 of 2x2 cells or more, not 1x1: set a larger size"):
        features.extract(make_backbone(), split, ctx, FeatureSpec(size=32, pooling="res5_2x2"))
