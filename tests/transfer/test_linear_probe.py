"""The linear probe: independent heads, a rate chosen without the test split, every row counts."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from made_splits import Rows
from sklearn.metrics import top_k_accuracy_score

from backbench.data.splits import ImageSplit
from backbench.errors import DataError
from transfer.heads import Classifier, Heads, accuracies
from transfer.protocol import RunContext
from transfer.supervised import Order, SgdConfig, batches_of, fit
from transfer.tasks import linear_probe

CPU = torch.device("cpu")


def make_blobs(rows, classes, *, spread, seed=0, dims=16):
    centres = torch.randn(classes, dims, generator=torch.Generator().manual_seed(99)) * 2
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % classes
    return centres[labels] + spread * torch.randn(rows, dims, generator=generator), labels


@pytest.fixture
def probe(monkeypatch):
    """Run the task on given features."""

    def run(train, test, classes, *, seed=0, **fields):
        splits = {
            role: ImageSplit("made", role, Rows(len(x)), np.asarray(y), tuple(str(i) for i in range(classes)))
            for role, (x, y) in (("train", train), ("test", test))
        }
        given = {"train": train[0], "test": test[0]}
        asked = []

        def extract(backbone, split, ctx, **_):
            asked.append(split.split)
            return given[split.split]

        monkeypatch.setattr(linear_probe, "extract", extract)
        ctx = RunContext(splits=splits, seed=seed, device=CPU, cache=None)
        config = linear_probe.Config(**{"epochs": 10, "batch": 64, "rates": (0.01, 0.1, 1.0), **fields})
        metrics = linear_probe.run(None, config, ctx)
        assert sorted(asked) == ["test", "train"]
        return {name: metric.value for name, metric in metrics.items()}, ctx

    return run


def train(heads, x, y, *, batch, epochs, seed, weight_decay=1e-4):
    config = SgdConfig(batch=batch, epochs=epochs, weight_decay=weight_decay)
    order = Order(len(x), batch, epochs, seed)
    fit(Classifier(None, heads), batches_of(x, y, order), config, order, device=CPU)


def test_heads_trained_together_equal_heads_trained_alone():
    x, y = make_blobs(70, 3, spread=1.0)
    rates = (0.01, 0.3, 5.0)
    together = Heads(16, 3, rates, seed=4)
    train(together, x, y, batch=16, epochs=3, seed=4)
    for head, rate in zip(together.linear, rates, strict=True):
        alone = Heads(16, 3, (rate,), seed=4)
        train(alone, x, y, batch=16, epochs=3, seed=4)
        torch.testing.assert_close(head.weight, alone.linear[0].weight, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(head.bias, alone.linear[0].bias, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(together.linear[0].weight, together.linear[1].weight)


def test_training_equals_a_loop_written_out():
    x, y = make_blobs(20, 3, spread=1.0)
    heads = Heads(16, 3, (0.5,), seed=0)
    weight = torch.randn(3, 16, generator=torch.Generator().manual_seed(0)) * 0.01
    assert torch.equal(heads.linear[0].weight, weight)
    order = list(batches_of(x, y, Order(20, 8, 2, seed=0))(0))
    assert [len(rows) for rows, _ in order] == [8, 8, 4, 8, 8, 4]
    train(heads, x, y, batch=8, epochs=2, seed=0)
    w = torch.cat([weight, torch.zeros(3, 1)], dim=1).double()
    velocity = torch.zeros_like(w)
    for step, (rows, labels) in enumerate(order):
        rate = 0.5 * 0.5 * (1 + np.cos(np.pi * step / 6))
        z = torch.cat([rows, torch.ones(len(rows), 1)], dim=1).double()
        gradient = (F.softmax(z @ w.T, dim=1) - F.one_hot(labels, 3)).T @ z / len(rows) + 1e-4 * w
        velocity = 0.9 * velocity + gradient
        w = w - rate * (gradient + 0.9 * velocity)
    torch.testing.assert_close(heads.linear[0].weight.double(), w[:, :16], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(heads.linear[0].bias.double(), w[:, 16], rtol=1e-4, atol=1e-5)


def test_one_diverging_head_does_not_stop_the_others():
    x, y = make_blobs(60, 3, spread=0.1)
    heads = Heads(16, 3, (0.1, 1e30), seed=0)
    train(heads, x * 10, y, batch=16, epochs=5, seed=0)
    sound, diverged = accuracies(heads, x * 10, y, device=CPU)
    assert not torch.isfinite(heads.linear[1].weight).all()
    assert sound["top1"] == 100
    assert diverged["top1"] <= 50


def test_all_heads_diverging_raises(probe):
    blobs = make_blobs(60, 3, spread=1.0)
    with pytest.raises(FloatingPointError, match="every head diverged by epoch 1"):
        probe(blobs, blobs, 3, rates=(1e38, 3e38), batch=16)


@pytest.mark.parametrize(("rows", "batch"), [(10, 3), (10, 10), (10, 64), (1, 4)])
def test_batches_hold_every_row_once_an_epoch(rows, batch):
    x = torch.arange(rows)[:, None].float()
    order = Order(rows, batch, epochs=2, seed=7)
    parts = [(features.flatten().tolist(), labels.tolist()) for features, labels in batches_of(x, x[:, 0], order)(0)]
    assert all(features == labels for features, labels in parts)
    steps = -(-rows // batch)
    assert (order.steps_per_epoch, len(parts)) == (steps, 2 * steps)
    epochs = [[row for features, _ in parts[e * steps : (e + 1) * steps] for row in features] for e in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(rows))
    if rows == 10:
        assert epochs[0] != epochs[1]
    for start in range(2 * steps + 1):
        later = batches_of(x, x[:, 0], order)(start)
        assert [features.flatten().tolist() for features, _ in later] == [features for features, _ in parts[start:]]


def test_batches_of_some_rows_only():
    x, rows = torch.arange(20)[:, None].float(), torch.tensor([3, 5, 7, 11, 13])
    found = [x.flatten().tolist() for x, _ in batches_of(x, x[:, 0], Order(5, 2, 1, seed=0), rows)(0)]
    assert [len(part) for part in found] == [2, 2, 1]
    assert sorted(row for part in found for row in part) == rows.tolist()


def test_the_last_small_batch_is_counted(monkeypatch):
    heads = Heads(2, 3, (1.0,), seed=0)
    with torch.no_grad():
        heads.linear[0].weight.zero_()
        heads.linear[0].bias.copy_(torch.tensor([1.0, 0.0, 0.0]))
    labels = torch.ones(4097, dtype=torch.int64)
    labels[-1] = 0  # only the row after the first 4096 is right
    assert accuracies(heads, torch.zeros(4097, 2), labels, device=CPU)[0]["top1"] == pytest.approx(100 / 4097)


@pytest.mark.parametrize("classes", [2, 3, 5, 9])
def test_accuracies_equal_scikit_learns(classes):
    x = torch.randn(200, 6)
    y = torch.randint(classes, (200,))
    heads = Heads(6, classes, (1.0, 2.0), seed=0)
    with torch.no_grad():
        heads.linear[1].weight.normal_()
    for head, found in zip(heads.linear, accuracies(heads, x, y, device=CPU), strict=True):
        logits = head(x).detach().numpy()
        assert found["top1"] == pytest.approx(100 * np.mean(logits.argmax(1) == y.numpy()))
        if classes > 5:
            expected = 100 * top_k_accuracy_score(y.numpy(), logits, k=5, labels=range(classes))
            assert found["top5"] == pytest.approx(expected)
        else:
            assert found["top5"] == 100.0


def test_separable_data_are_learned(probe):
    found, ctx = probe(make_blobs(300, 6, spread=0.3), make_blobs(120, 6, spread=0.3, seed=1), 6)
    assert found["top1"] >= 99
    assert found["top5"] >= found["top1"]
    assert ctx.tuned["lr"] in (0.01, 0.1, 1.0)
    assert ctx.tuned["on"] == "30 images held out of train"


def test_shuffled_labels_are_at_chance(probe):
    x, y = make_blobs(600, 3, spread=0.3)
    x_test, y_test = make_blobs(900, 3, spread=0.3, seed=1)
    shuffled = y[torch.randperm(600, generator=torch.Generator().manual_seed(0))]
    random_test = y_test[torch.randperm(900, generator=torch.Generator().manual_seed(1))]
    found, _ = probe((x, shuffled), (x_test, random_test), 3)
    assert 25 < found["top1"] < 42, "chance is 33, with a standard deviation of 1.6"


def test_the_sweep_never_sees_the_test_split(probe):
    train = make_blobs(200, 4, spread=3.0)
    x_test, y_test = make_blobs(100, 4, spread=3.0, seed=1)
    found, ctx = probe(train, (x_test, y_test), 4)
    chosen = []
    for labels in (y_test.flip(0), (y_test + 1) % 4, torch.zeros_like(y_test)):
        other, other_ctx = probe(train, (x_test, labels), 4)
        chosen.append(other_ctx.tuned)
        assert other["top1"] != found["top1"]
    assert all(tuned == ctx.tuned for tuned in chosen)
    _, replaced = probe(train, (torch.zeros(7, 16), torch.zeros(7, dtype=torch.int64)), 4)
    assert replaced.tuned == ctx.tuned


def test_the_chosen_head_is_the_one_reported(probe):
    """Each rate alone gives the same result as in the sweep, and the sweep reports the best held-out one."""
    train, test = make_blobs(200, 4, spread=3.0), make_blobs(100, 4, spread=3.0, seed=1)
    rates = (1e-5, 0.05, 50.0)
    found, ctx = probe(train, test, 4, rates=rates)
    held_out = {}
    reported = {}
    for rate in rates:
        alone, alone_ctx = probe(train, test, 4, rates=(rate,))
        held_out[f"{rate:g}"] = alone_ctx.tuned["top1_there"][f"{rate:g}"]
        reported[rate] = alone["top1"]
    assert ctx.tuned["top1_there"] == held_out
    assert held_out[f"{ctx.tuned['lr']:g}"] == max(held_out.values())
    assert found["top1"] == reported[ctx.tuned["lr"]]
    assert len(set(reported.values())) > 1


@pytest.mark.parametrize(("images", "share", "most", "expected"), [(100, 0.1, 1000, 10), (97, 0.3, 1000, 29),
                                                                 (1000, 0.4, 50, 50), (3, 0.3, 9, 1)])  # fmt: skip
def test_held_out_rows_are_disjoint_and_cover(images, share, most, expected):
    config = linear_probe.Config(holdout=share, holdout_max=most)
    fit, held_out = linear_probe.hold_out(images, config, seed=0)
    assert len(held_out) == expected
    assert sorted([*fit.tolist(), *held_out.tolist()]) == list(range(images))
    again = linear_probe.hold_out(images, config, seed=0)
    assert torch.equal(again[1], held_out)
    if images > 50:
        assert (
            held_out.sort().values.tolist() != linear_probe.hold_out(images, config, seed=1)[1].sort().values.tolist()
        )


@pytest.mark.parametrize("images", [0, 1, 4])
def test_too_few_images_to_hold_out(images):
    with pytest.raises(DataError, match=f"{images} training images are too few"):
        linear_probe.hold_out(images, linear_probe.Config(holdout=0.1), seed=0)


def heads_scoring(rates, right):
    """Heads that classify a given number of the 10 rows of class 0 correctly."""
    heads = Heads(10, 2, rates, seed=0)
    with torch.no_grad():
        for head, count in zip(heads.linear, right, strict=True):
            head.weight.zero_()
            head.weight[0, :count] = 1.0
            head.weight[1, count:] = 1.0
    return heads, torch.eye(10), torch.zeros(10, dtype=torch.int64)


@pytest.mark.parametrize(
    ("right", "lr", "edge"),
    [([3, 7, 5], 0.1, False), ([7, 3, 5], 0.01, True), ([1, 3, 5], 1.0, True), ([2, 6, 6], 0.1, False)],
)
def test_choice_and_its_note(right, lr, edge):
    heads, x, y = heads_scoring((0.01, 0.1, 1.0), right)
    ctx = RunContext(splits={}, seed=0, device=CPU, cache=None)
    assert heads.rates[linear_probe.choose(heads, x, y, ctx)] == lr
    assert ctx.tuned["lr"] == lr
    assert list(ctx.tuned["top1_there"].values()) == [10.0 * count for count in right]
    assert bool(ctx.notes) == edge
    if edge:
        assert f"{lr:g}" in ctx.notes[0] and "edge" in ctx.notes[0]


@pytest.mark.parametrize("order", [(2, 1, 0), (1, 0, 2)])
def test_choice_does_not_depend_on_the_order_of_the_rates(order):
    """The lower rate on a tie, and the edge of the sweep is its lowest or highest rate."""
    rates, right = (0.01, 0.1, 1.0), (2, 6, 6)
    heads, x, y = heads_scoring([rates[i] for i in order], [right[i] for i in order])
    ctx = RunContext(splits={}, seed=0, device=CPU, cache=None)
    assert heads.rates[linear_probe.choose(heads, x, y, ctx)] == 0.1
    assert ctx.notes == []


def test_seeds_differ_and_repeat(probe):
    train, test = make_blobs(100, 4, spread=4.0), make_blobs(400, 4, spread=4.0, seed=1)
    first, again = (probe(train, test, 4, seed=0)[0] for _ in range(2))
    assert first == again
    assert len({probe(train, test, 4, seed=seed)[0]["top1"] for seed in range(4)}) > 1
