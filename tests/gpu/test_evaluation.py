"""Evaluation on a GPU: features, neighbours, heads, uniformity and diagnostics equal the CPU's; float32 and half types."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from backbones import make_backbone

from backbench.data.catalogue import DataPlaces, load
from backbench.diagnostics import measure
from backbench.embeddings import neighbours, uniformity
from backbench.spectra import lidar
from model_zoo.architecture import InputSpec
from transfer import features, svm
from transfer.feature_spec import FeatureSpec
from transfer.heads import Classifier, Heads, best_classes
from transfer.protocol import RunContext
from transfer.resident import resident, to_host
from transfer.supervised import Order, SgdConfig, batches_of, fit
from transfer.tasks import attentive, linear_probe, semi_supervised

CPU = torch.device("cpu")


@pytest.fixture
def made(image_folder, tmp_path, real, monkeypatch):
    """`made(device, precision)`: features of 24 images."""
    split = load("imagenet", "train", DataPlaces(None, {"imagenet": image_folder}))
    backbone = make_backbone(
        "resnet50" if real else "resnet18", 1.0 if real else 0.5, InputSpec(size=64 if real else 32)
    )

    monkeypatch.setattr(features, "_BATCH", 7)  # several batches: their copies to the CPU overlap

    def extract(device, precision="fp32"):
        ctx = RunContext(splits={}, seed=0, device=device, cache=tmp_path / f"{device.type}-cache")
        return features.extract(backbone, split, ctx, FeatureSpec(precision=precision)).clone()

    return extract


def test_float32_features_are_the_cpus(device, made):
    torch.testing.assert_close(made(device), made(CPU), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("precision", "bound"), [("bf16", 5e-3), ("fp16", 1e-3)])
def test_half_features_agree_to_the_neighbour(device, made, precision, bound):
    """The neighbour that half features find is at most `bound` of cosine further than the nearest one."""
    exact, half = made(device), made(device, precision)
    assert not torch.equal(exact, half)
    near, found = (F.normalize(x - exact.mean(dim=0), dim=1) for x in (exact, half))
    similarity, half_similarity = near @ near.T, found @ found.T
    similarity.fill_diagonal_(-1), half_similarity.fill_diagonal_(-1)
    lost = similarity.amax(dim=1) - similarity.gather(1, half_similarity.argmax(dim=1)[:, None])[:, 0]
    print(f"{precision}: neighbour at most {float(lost.max()):.2g} further")
    assert 0 <= float(lost.max()) < bound


def clusters(rows, width, classes=10):
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(classes, width, generator=generator)
    labels = torch.randint(classes, (rows,), generator=generator)
    return centres[labels] + 0.8 * torch.randn(rows, width, generator=generator), labels


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_neighbours_of_a_bank_on_the_cpu(device, real, metric):
    """The bank stays where it is and goes over in chunks. The distances are the CPU's, and nearly all neighbours."""
    x, _ = clusters(20_000 if real else 600, 512 if real else 32)
    query, bank = x[: len(x) // 10], x[len(x) // 10 :]
    found = neighbours(query.to(device), bank, 20, metric=metric, chunk=1000)
    expected = neighbours(query, bank, 20, metric=metric)
    assert found[0].device.type == device.type
    torch.testing.assert_close(found[0].cpu(), expected[0], rtol=1e-3, atol=1e-3)
    assert float((found[1].cpu() == expected[1]).float().mean()) > 0.99


@pytest.mark.parametrize("optimizer", ["sgd", "lars", "adam"])
def test_heads_learn_what_the_cpus_do(device, real, optimizer):
    x, y = clusters(2000 if real else 200, 256 if real else 16)
    config, order = SgdConfig(batch=64, epochs=3, optimizer=optimizer), Order(len(x), 64, 3, seed=0)
    answers = []
    for place in (device, CPU):
        heads = Heads(x.shape[1], 10, (0.01, 0.1), seed=0)
        fit(Classifier(None, heads), batches_of(x, y, order), config, order, device=place)
        answers.append((heads.linear[1].weight.detach().cpu(), best_classes(heads, x, device=place)[1][:, 0]))
    torch.testing.assert_close(answers[0][0], answers[1][0], rtol=1e-2, atol=1e-4)
    assert float((answers[0][1] == answers[1][1]).float().mean()) > 0.99


def test_features_stay_where_they_fit(device, monkeypatch):
    x = torch.randn(100, 4)
    found = resident(x, device)
    assert found.device.type == device.type and torch.equal(found.cpu(), x)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (799, 10**9))
    near = resident(x, torch.device("cuda", 0))
    assert near is x, "1600 bytes are more than half of what is free"


def test_parts_come_to_the_cpu_in_order(device):
    parts = [torch.full((3,), float(i), device=device) for i in range(5)]
    found = list(to_host(iter(parts)))
    assert all(part.device == CPU for part in found)
    assert torch.equal(torch.stack(found)[:, 0], torch.arange(5.0))


def test_uniformity_is_the_cpus(device, real):
    x, _ = clusters(5000 if real else 300, 256 if real else 16)
    assert float(uniformity(x.to(device))) == pytest.approx(float(uniformity(x)), rel=1e-4)


def test_diagnostics_are_the_cpus(device, real):
    """k-means may end elsewhere after a rounding; the others agree to float32's neighbours and float64's spectra."""
    x, _ = clusters(5000 if real else 300, 256 if real else 128)
    found, expected = measure(x.to(device)), measure(x)
    assert found[1] == expected[1] == {}
    learnability = found[0].pop("cluster_learnability"), expected[0].pop("cluster_learnability")
    assert learnability[0] == pytest.approx(learnability[1], abs=3)
    assert found[0] == pytest.approx(expected[0], rel=1e-4)
    views = x[:100, None] + 0.1 * torch.randn(100, 5, x.shape[1], generator=torch.Generator().manual_seed(1))
    assert lidar(views.to(device)) == pytest.approx(lidar(views), rel=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("task", ["linear_probe", "semi_supervised", "attentive"])
def test_protocols_with_an_encoder_run(device, real, image_folder, tmp_path, task, precision):
    """The encoder frozen under augmented images, and fine-tuned: finite numbers in every type."""
    splits = {role: load("imagenet", role, DataPlaces(None, {"imagenet": image_folder})) for role in ("train", "test")}
    ctx = RunContext(splits=splits, seed=0, device=device, cache=tmp_path / "cache", folder=tmp_path)
    backbone = make_backbone("resnet18", 0.25, InputSpec(size=32))
    fields = {"batch": 8, "epochs": 1, "precision": precision, "data": {"expect": "any"}}
    if task == "linear_probe":
        config = linear_probe.Config(features="augmented", rates=(0.1,), holdout=0.0, **fields)
        metrics = linear_probe.run(backbone, config, ctx)
    elif task == "attentive":
        few = {"optimizer": "adamw", "steps": 3, "warmup": 1, "rates": (0.1, 1.0), "decays": (0.1,)}
        metrics = attentive.run(backbone, attentive.Config(**{**fields, **few}), ctx)
    else:
        config = semi_supervised.Config(rate_head=0.1, rate_encoder=0.01, **fields)
        metrics = semi_supervised.run(backbone, config, ctx)
    assert 0 <= metrics["top1"].value <= 100
    assert len(ctx.items["labels"]) == len(splits["test"])


def test_svms_are_the_cpus(device):
    x, labels = clusters(400, 60, classes=4)
    columns = [np.where(labels.numpy() == k, 1, -1).astype(np.int8) for k in range(4)]
    fits = [
        svm.fit_all(x.numpy(), columns, [0.01, 1.0, 1.0, 100.0], solver="newton", device=each) for each in (CPU, device)
    ]
    np.testing.assert_allclose(fits[1].weights, fits[0].weights, rtol=1e-5, atol=1e-6)
