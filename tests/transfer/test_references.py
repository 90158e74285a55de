"""Compare presets with their references written a second way: ties, pooling, initialisation, statistics, names."""

import math

import numpy as np
import pytest
import torch
from made_splits import Rows, voc_split
from PIL import Image
from torch import nn
from torchvision import transforms

from backbench.config import build
from backbench.data.splits import ImageSplit
from backbench.data.transforms import evaluation_view
from backbench.embeddings import knn_scores, uniformity
from benchmarks import plan
from model_zoo.architecture import Architecture, InputSpec
from model_zoo.resnet import build as build_trunk
from transfer import svm, tasks
from transfer.features import normalise
from transfer.heads import Classifier, Heads
from transfer.metrics import area_ap
from transfer.pooling import Pooled
from transfer.protocol import RunContext
from transfer.supervised import Order, batches_of, fit
from transfer.tasks import knn, linear_probe, semi_supervised, voc07_lowshot, voc07_svm

CPU = torch.device("cpu")


def config_of(task, preset, **fields):
    return build(task.Config, {**tasks.preset_fields(task, preset, fields), **fields, "preset": preset})


# ---------------------------------------------------------------- W-MSE's kNN and linear probe


def wmse_votes(bank, query, labels, k):
    """W-MSE's eval/knn.py: sort the labels of the k nearest and take the first of the most frequent."""
    answers = []
    for row in query:
        nearest = labels[np.argsort(((bank - row) ** 2).sum(axis=1), kind="stable")[:k]]
        values, counts = np.unique(nearest, return_counts=True)
        answers.append(values[counts.argmax()])
    return np.array(answers)


@pytest.mark.parametrize("k", [2, 4, 5])
def test_a_tied_vote_is_wmses_first_class(monkeypatch, k):
    rng = np.random.default_rng(k)
    bank, query = rng.normal(size=(200, 6)).astype(np.float32), rng.normal(size=(300, 6)).astype(np.float32)
    labels, truth = rng.integers(0, 7, 200), rng.integers(0, 7, 300)
    parts = {"train": (bank, labels), "test": (query, truth)}
    names = tuple("abcdefg")
    splits = {role: ImageSplit("made", role, Rows(len(x)), y, names) for role, (x, y) in parts.items()}
    monkeypatch.setattr(knn, "extract", lambda b, split, ctx, **_: torch.from_numpy(parts[split.split][0]))

    def run(**fields):
        ctx = RunContext(splits=splits, seed=0, device=CPU, cache=None)
        found = knn.run(None, config_of(knn, "wmse", k=[k], headline_k=k, **fields), ctx)
        return found[f"top1_k{k}"].value, ctx.items["best"][:, 0]

    score, answers = run()
    expected = wmse_votes(bank, query, labels, k)
    assert np.array_equal(answers, expected)
    assert score == pytest.approx(100 * (expected == truth).mean())
    assert not np.array_equal(run(ties="nearest")[1], expected), "ties are there and matter"


def test_a_tie_by_hand():
    similarity, labels = torch.zeros(1, 4), torch.tensor([[3, 1, 1, 3]])
    votes = {ties: knn_scores(similarity, labels, k=4, classes=5, temperature=None, ties=ties) for ties in
             ("nearest", "first")}  # fmt: skip
    assert votes["nearest"].argmax() == 3 and votes["first"].argmax() == 1
    assert votes["first"].tolist() == [[0, 2, 0, 2, 0]]


def test_stl10_is_resized_bicubically_with_wmse_alone():
    for cell, preset, expected in (
        ("stl10_knn", "wmse", "bicubic"),
        ("stl10_knn", "npid", "bilinear"),
        ("imagenet100_knn", "wmse", "bilinear"),
        ("stl10_linear", "wmse", "bicubic"),
        ("stl10_linear", "sweep", "bilinear"),
        ("imagenet100_linear", "wmse", "bilinear"),
    ):
        assert plan.load_cell(cell, [f"preset={preset}"]).config.interpolation == expected, (cell, preset)
    assert plan.load_cell("imagenet100_knn", ["data.name=stl10"]).config.interpolation == "bicubic"
    pixels = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    image = Image.fromarray(pixels)
    theirs = transforms.Compose(
        [transforms.Resize(70, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(64)]
    )
    assert np.array_equal(evaluation_view(image, 64, resize=70, interpolation="bicubic"), np.asarray(theirs(image)))
    assert not np.array_equal(evaluation_view(image, 64, resize=70), np.asarray(theirs(image)))


# ---------------------------------------------------------------- VISSL's head


def test_vissls_head_is_batchnorm_of_the_channels_of_a_2x2_map():
    """eval_mlp of VISSL on res5: AvgPool2d(6, 1), BatchNorm2d(C), flatten, Linear(4C); trained for three steps."""
    config = config_of(linear_probe, "vissl", epochs=1, batch=6, milestones=[0.5])
    assert (config.feature, config.head_norm, config.head_init) == ("res5_2x2", "affine", "linear")
    maps = torch.randn(18, 5, 7, 7, generator=torch.Generator().manual_seed(0)) + 1
    labels = torch.arange(18) % 3
    pool = nn.AvgPool2d(6, 1)
    ours = linear_probe.new_heads(20, 3, config, seed=1)
    theirs = nn.Sequential(nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(20, 3))
    theirs[2].load_state_dict(ours.linear[0].state_dict())
    theirs[2].load_state_dict({key: value.clone() for key, value in theirs[2].state_dict().items()})
    order = Order(18, 6, 1, seed=0)
    batches = batches_of(pool(maps).flatten(1), labels, order)
    decayed = [{"params": theirs[2].parameters(), "weight_decay": 5e-4}, {"params": theirs[0].parameters()}]
    optimizer = torch.optim.SGD(decayed, lr=0.01, momentum=0.9, nesterov=True)
    for step, (x, y) in enumerate(batches(0)):
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * config.factor(step, 3)
        optimizer.zero_grad()
        nn.functional.cross_entropy(theirs(x.unflatten(1, (5, 2, 2))), y).backward()
        optimizer.step()
    fit(Classifier(None, ours), batches, config, order, device=CPU)
    ours.eval(), theirs.eval()
    x = pool(torch.randn(4, 5, 7, 7, generator=torch.Generator().manual_seed(9)))
    torch.testing.assert_close(ours(x.flatten(1))[0], theirs(x))
    assert len(ours.norms[0].weight) == 5, "one scale a channel, not one a number"


def test_vissls_head_of_a_resnet50_takes_8192_numbers():
    with torch.device("meta"):
        network = Pooled(build_trunk(Architecture(name="resnet50")), "res5_2x2")
        assert network(torch.empty(2, 3, 224, 224)).shape == (2, 8192)


@pytest.mark.parametrize("features", [64, 2048])
def test_the_linear_initialisation_is_pytorchs(features):
    ours = Heads(features, 50, (1.0, 2.0), seed=3, init="linear").requires_grad_(False)
    theirs = nn.Linear(features, 50).requires_grad_(False)
    bound = 1 / math.sqrt(features)
    for mine, other in zip(ours.linear[0].parameters(), theirs.parameters(), strict=True):
        assert mine.shape == other.shape
        assert float(mine.abs().max()) <= bound and float(other.abs().max()) <= bound
        assert float(mine.std()) == pytest.approx(bound / math.sqrt(3), rel=0.25)
    assert float(ours.linear[0].weight.abs().max()) > 0.98 * bound
    assert torch.equal(ours.linear[0].weight, ours.linear[1].weight), "all rates start alike"
    again, other = (
        Heads(features, 50, (1.0,), seed=3, init="linear"),
        Heads(features, 50, (1.0,), seed=4, init="linear"),
    )
    assert torch.equal(again.linear[0].bias, ours.linear[0].bias)
    assert not torch.equal(other.linear[0].weight, ours.linear[0].weight)
    assert not Heads(features, 50, (1.0,), seed=3).linear[0].bias.any(), "MoCo's: bias 0"


# ---------------------------------------------------------------- SwAV's images, the spread of few draws


class _Fed:
    def __init__(self, spec):
        self.input = spec


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_swav_divides_red_by_its_own_deviation(order):
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    spec = InputSpec(
        size=32, order=order, mean=mean[:: -1 if order == "bgr" else 1], std=std[:: -1 if order == "bgr" else 1]
    )
    config = config_of(semi_supervised, "swav", share="1%")
    assert (config.std, config.head_init) == ((0.228, 0.224, 0.225), "linear")
    red = torch.tensor([[[[255, 0, 0]]]], dtype=torch.uint8)
    x = normalise(red, semi_supervised.input_of(_Fed(spec), config), CPU).flatten()
    expected = transforms.Normalize(mean, (0.228, 0.224, 0.225))(torch.tensor([1.0, 0, 0])[:, None, None]).flatten()
    torch.testing.assert_close(x, expected if order == "rgb" else expected.flip(0))
    usual = config_of(semi_supervised, "msbreg")
    assert semi_supervised.input_of(_Fed(spec), usual) == spec and usual.head_init == "normal"


def test_the_spread_of_few_draws_is_fairs(monkeypatch):
    rng = np.random.default_rng(0)
    labels = np.where(rng.random((60, 3)) < 0.3, 1, -1).astype(np.int8)
    x = (rng.normal(size=(60, 8)) + np.pad(labels, [(0, 0), (0, 5)])).astype(np.float32)
    splits = {role: voc_split(role, labels) for role in ("train", "test")}
    monkeypatch.setattr(voc07_svm, "extract", lambda *_, **__: torch.from_numpy(x))

    def run(preset):
        ctx = RunContext(splits=splits, seed=0, device=CPU, cache=None)
        fields = {
            "k": [2],
            "headline_k": 2,
            "samples": 3,
            "negatives": 4,
            "jobs": 1,
            "data": {"name": "voc", "expect": "any"},
        }
        return voc07_lowshot.run(None, config_of(voc07_lowshot, preset, **fields), ctx)["mAP_k2_std"].value

    unit = x / (np.linalg.norm(x, axis=1, keepdims=True) + 1e-5)
    means = []
    for sample in range(3):
        columns = voc07_lowshot.draw(labels, 2, 8, sample).T
        machines = [svm.machine(0.5).fit(unit[column != 0], column[column != 0]) for column in columns]
        aps = [area_ap(m.decision_function(unit), labels[:, c] == 1) for c, m in enumerate(machines)]
        means.append(100 * sum(aps) / 3)
    squares = sum((value - sum(means) / 3) ** 2 for value in means)
    assert run("fair") == pytest.approx(math.sqrt(squares / 3)), "np.std of svm_low_shot_trainer.py"
    assert run("gap") == pytest.approx(math.sqrt(squares / 2))


# ---------------------------------------------------------------- uniformity at its limits


@pytest.mark.parametrize("t", [2.0, 50.0, 1000.0])
@pytest.mark.parametrize("kind", ["spread", "two", "opposite", "alike", "a row of zeros"])
def test_uniformity_is_finite_and_right_at_its_limits(kind, t):
    """Compare with all pairs, one by one, in exact logarithms."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2 if kind == "two" else 9, 4, generator=generator)
    if kind == "opposite":
        x = torch.tensor([[1.0, 0], [-1.0, 0]])
    if kind == "alike":
        x = x[:1].expand(5, -1)
    if kind == "a row of zeros":
        x[3] = 0
    unit = x.double() / x.double().norm(dim=1, keepdim=True).clamp_min(1e-12)
    terms = [-t * float((a - b).pow(2).sum()) for i, a in enumerate(unit) for j, b in enumerate(unit) if i != j]
    top = max(terms)
    expected = top + math.log(sum(math.exp(v - top) for v in terms) / len(terms))
    assert float(uniformity(x, t)) == pytest.approx(expected, rel=1e-3, abs=1e-3)
