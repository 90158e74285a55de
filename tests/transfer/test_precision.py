"""Number types of an evaluation: the default, float32 without TF32, keeps every identity; half types stay close."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from backbones import make_backbone
from torch import nn

import backbench
from backbench.config import build
from backbench.errors import ConfigError
from backbench.precision import autocast, exact_float32, in_precision, tf32
from benchmarks import plan
from benchmarks.records.schema import Provenance
from model_zoo.architecture import InputSpec
from transfer import features, supervised, tasks
from transfer.feature_spec import FeatureSpec
from transfer.heads import Classifier, Heads
from transfer.protocol import ForwardConfig
from transfer.supervised import Order, SgdConfig, batches_of, fit

pytest_plugins = ["feature_runs"]

CPU = torch.device("cpu")
HALF = ("bf16", "fp16")


@pytest.mark.parametrize("name", tasks.names())
def test_the_default_changes_no_identity_and_another_type_does(name):
    config = tasks.get(name).Config()
    if hasattr(config, "spec"):  # a detection or segmentation library runs it
        with pytest.raises(ConfigError, match="precision"):
            build(type(config), {"precision": "bf16"})
        return
    assert isinstance(config, ForwardConfig) and config.precision == "fp32"
    assert "precision" not in config.identity() and config.every_field()["precision"] == "fp32"
    other = config.model_copy(update={"precision": "bf16"})
    assert other.identity() == config.identity() | {"precision": "bf16"}
    assert build(type(config), {"precision": "fp32"}).identity() == config.identity()


def test_fields_of_a_base_class_and_of_a_task_are_left_out_alike():
    assert set(tasks.get("knn").Config.later_fields()) >= {"ties", "interpolation", "precision"}
    assert set(tasks.get("voc07_lowshot").Config.later_fields()) >= {"spread", "precision"}


def test_an_unknown_type_is_refused():
    with pytest.raises(ConfigError, match="precision"):
        plan.load_cell("imagenet_knn", ["precision=tf32"])


@pytest.mark.parametrize("precision", HALF)
def test_half_features_agree_with_float32_to_the_neighbour(split, ctx, precision):
    """Half-precision features find a neighbour at most 0.005 of cosine farther than the nearest one."""
    backbone = make_backbone("resnet18", 0.5, InputSpec(size=32))
    exact, half = (features.extract(backbone, split, ctx, FeatureSpec(precision=p)) for p in ("fp32", precision))
    assert half.dtype == torch.float32 and not torch.equal(exact, half), "another type was used"
    assert float(((half - exact).norm(dim=1) / exact.norm(dim=1)).max()) < 0.01
    near, found = (F.normalize(x - exact.mean(dim=0), dim=1) for x in (exact, half))
    similarity, half_similarity = near @ near.T, found @ found.T
    similarity.fill_diagonal_(-1), half_similarity.fill_diagonal_(-1)
    lost = similarity.amax(dim=1) - similarity.gather(1, half_similarity.argmax(dim=1)[:, None])[:, 0]
    assert similarity.std() > 0.05, "the images differ, so the neighbour means something"
    assert 0 <= float(lost.max()) < 5e-3


def test_each_type_has_its_own_features(split, ctx, computed):
    backbone = make_backbone("resnet18", 0.25, InputSpec(size=32))
    for _ in range(2):
        for precision in ("fp32", *HALF):
            features.extract(backbone, split, ctx, FeatureSpec(precision=precision))
    assert len(computed) == 3
    assert "precision" not in FeatureSpec().key() and FeatureSpec(precision="bf16").key()["precision"] == "bf16"


def test_numbers_too_large_for_fp16_are_named(split, ctx):
    class _Large(nn.Module):
        def forward(self, x):
            return F.avg_pool2d(x, 32).flatten(1) @ torch.full((3, 2), 1e5)

    with pytest.raises(features.NotFinite, match="fp16 ends at 65504: set precision=bf16 or fp32"):
        features.compute(_Large(), InputSpec(size=32), split, ctx, FeatureSpec(precision="fp16"))
    features.compute(_Large(), InputSpec(size=32), split, ctx, FeatureSpec(precision="bf16"))


def encoder():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


def trained(precision, rate, *, resume=None, batches=None, rows=22):
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(rows, 3, 6, 6, generator=generator), torch.arange(rows) % 3
    order, config = Order(rows, 8, 4, seed=5), SgdConfig(batch=8, epochs=4, precision=precision)
    model = Classifier(in_precision(encoder(), precision), Heads(8, 3, (1.0,), seed=0), rate_encoder=rate)
    given = batches_of(x, y, order)
    fit(model, batches(given) if batches else given, config, order, device=CPU, resume=resume)
    return model


@pytest.mark.parametrize("precision", HALF)
@pytest.mark.parametrize("rate", [0.0, 0.05])
def test_training_in_a_half_type_ends_near_float32(precision, rate):
    """After twelve steps head and encoder are within 3% of float32's update; both stay float32."""
    exact, half = trained("fp32", rate), trained(precision, rate)
    start = Heads(8, 3, (1.0,), seed=0)
    for mine, other, first in zip(half.heads.parameters(), exact.heads.parameters(), start.parameters(), strict=True):
        assert mine.dtype == torch.float32
        assert (mine - other).norm() <= 0.03 * (other - first).norm()
    weights = [next(model.encoder.parameters()).detach() for model in (half, exact)]
    first = next(encoder().parameters())
    assert weights[0].dtype == torch.float32
    if rate:
        assert not torch.equal(*weights)
        assert (weights[0] - weights[1]).norm() <= 0.03 * (weights[1] - first).norm()
    else:
        assert torch.equal(*weights)


def test_small_gradients_survive_fp16():
    """Without loss scaling the gradients are below fp16's smallest number, 6e-8, and the encoder would not move."""
    torch.manual_seed(0)
    x, y = torch.randn(8, 3, 6, 6), torch.arange(8) % 3
    order, config = Order(8, 8, 1, seed=0), SgdConfig(batch=8, epochs=1, precision="fp16")
    heads = Heads(8, 3, (1e-6,), seed=0)
    for head in heads.linear:
        nn.init.normal_(head.weight, std=1e-8)
    network = encoder()
    before = network[0].weight.detach().clone()
    model = Classifier(in_precision(network, "fp16"), heads, rate_encoder=1e8)
    fit(model, batches_of(x, y, order), config, order, device=CPU)
    assert (network[0].weight - before).abs().max() > 1e-6


class _Killed(Exception):
    pass


def test_a_killed_fp16_training_resumes_with_its_scale(tmp_path, monkeypatch):
    monkeypatch.setattr(supervised, "_SAVE_EVERY_S", -1.0)
    file = tmp_path / "state.ckpt"

    def killed(given):
        def from_step(start):
            for done, batch in enumerate(given(start)):
                if done == 7:
                    raise _Killed
                yield batch

        return from_step

    whole = trained("fp16", 0.05)
    with pytest.raises(_Killed):
        trained("fp16", 0.05, resume=file, batches=killed)
    assert torch.load(file)["scaler"]["scale"] >= 1
    again = trained("fp16", 0.05, resume=file)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


def test_tf32_is_off_while_a_number_is_made_and_as_before_afterwards(image_folder, tmp_path):
    seen = []

    class _Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(3))

        def forward(self, x):
            if len(x) > 8:  # loading tries smaller batches
                seen.append(tf32())
            return x.mean(dim=(2, 3)) + self.bias

    torch.set_float32_matmul_precision("high")
    try:
        record = backbench.measure(_Network(), "imagenet_knn", data=image_folder, out=tmp_path / "out", workers=0,
                                   expect="any", k=[3], headline_k=3, extra_columns=False)  # fmt: skip
        assert tf32(), "the user's own setting is back"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert seen and not any(seen)
    assert record.provenance.tf32 is False
    assert math.isfinite(record.metrics["top1_k3"].value)


def test_records_without_the_field_are_read():
    assert Provenance.model_fields["tf32"].default is None


def test_exact_float32_covers_convolutions_and_products():
    with exact_float32():
        assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
        assert torch.get_float32_matmul_precision() == "highest"


def test_fp32_is_no_autocast_and_no_wrapper():
    module = nn.Linear(2, 2)
    assert in_precision(module, "fp32") is module
    with autocast(CPU, "fp32"):
        assert module(torch.ones(1, 2)).dtype == torch.float32
    with autocast(CPU, "bf16"):
        assert module(torch.ones(1, 2)).dtype == torch.bfloat16
    assert in_precision(module, "bf16")(torch.ones(1, 2)).dtype == torch.float32
