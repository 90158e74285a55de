"""Fine-tuning: the source's loop step by step, its grid and choice, and what a killed run keeps."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from backbones import tiny
from torch import nn

from backbench.config import build
from backbench.data.catalogue import DataPlaces, load
from model_zoo.architecture import Architecture
from transfer import tasks
from transfer.heads import Heads
from transfer.protocol import RunContext
from transfer.supervised import Diverged, Order, fit
from transfer.tasks import finetune

CPU = torch.device("cpu")


def config_of(**fields):
    values = {**tasks.preset_fields(tasks.get("finetune"), "ssl_transfer"), "preset": "ssl_transfer"}
    return build(finetune.Config, {**values, **fields})


def test_the_steps_end_within_an_epoch_and_resume_there():
    whole = list(Order(10, 4, 3, seed=1).rows())
    part = Order(10, 4, 3, seed=1, most=5)
    for start in (0, 2, 4, 5, 7):
        found, expected = list(part.rows(start)), whole[start:5]
        assert [epoch for epoch, _ in found] == [epoch for epoch, _ in expected]
        assert all(torch.equal(a, b) for (_, a), (_, b) in zip(found, expected, strict=True))


def test_steps_equal_the_sources_loop():
    """finetune.py's tune: SGD with Nesterov momentum, the decay on every parameter, a cosine over the steps."""
    generator = torch.Generator().manual_seed(0)
    trunk = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.BatchNorm1d(6), nn.ReLU())
    rate, decay, steps = 0.05, 1e-3, 5
    config = config_of(steps=steps, batch=8, rates=[rate], decays=[decay])
    heads = Heads(6, 3, [rate], 0, init="linear")
    images, labels = (
        torch.randn(steps, 8, 3, 2, 2, generator=generator),
        torch.randint(3, (steps, 8), generator=generator),
    )

    theirs = copy.deepcopy(nn.Sequential(trunk, heads.linear[0]))
    optimizer = torch.optim.SGD(theirs.parameters(), lr=rate, momentum=0.9, nesterov=True, weight_decay=decay / rate)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    for x, y in zip(images, labels, strict=True):
        optimizer.zero_grad()
        nn.functional.cross_entropy(theirs(x), y).backward()
        optimizer.step()
        scheduler.step()

    model = finetune._Decayed(trunk, heads, rate_encoder=rate)
    how = config.model_copy(update={"epochs": 1, "weight_decay": decay / rate})
    fit(
        model,
        lambda start: iter(zip(images, labels, strict=True)),
        how,
        Order(8 * steps, 8, 1, 0, most=steps),
        device=CPU,
    )
    ours = nn.Sequential(model.encoder, model.heads.linear[0])
    for (name, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=name)


def test_the_grid_is_the_sources():
    config = config_of()
    assert config.steps == 5000 and config.batch == 64 and config.nesterov and config.momentum == 0.9
    rates = torch.logspace(-4, -1, 4).flip(dims=(0,)).tolist()
    decays = torch.cat([torch.zeros(1), torch.logspace(-6, -3, 4)]).tolist()
    assert list(config.rates) == pytest.approx(rates) and list(config.decays) == pytest.approx(decays)


# ---------------------------------------------------------------- the task


@pytest.fixture
def measure(image_folder, tmp_path):
    """Fine-tune a tiny network on 24 images."""
    arch = Architecture(name="resnet18", width=0.25)
    backbone = tiny(arch)
    places = DataPlaces(None, {"imagenet": image_folder})
    splits = {role: load("imagenet", role, places) for role in ("train", "test")}

    def run(**fields):
        config = config_of(**{"steps": 3, "batch": 8, "rates": [0.01, 0.001], "decays": [0.0], **fields})
        ctx = RunContext(splits=splits, seed=0, device=CPU, cache=tmp_path / "cache")
        return {name: metric.value for name, metric in finetune.run(backbone, config, ctx).items()}, ctx

    return run


def test_the_best_on_the_images_held_out_is_trained_on_all(measure, monkeypatch):
    trained = []
    real = finetune.fit
    monkeypatch.setattr(finetune, "fit", lambda model, batches, how, order, **kw: (
        trained.append((how.rates[0], how.weight_decay, order.images)), real(model, batches, how, order, **kw))[1])  # fmt: skip
    scores = {0.01: 40.0, 0.001: 60.0}
    monkeypatch.setattr(finetune, "mean_per_class", lambda right, labels, classes: 1.0)
    real_score = finetune._score
    monkeypatch.setattr(
        finetune, "_score", lambda b, point, *rest: (real_score(b, point, *rest), scores[point.rates[0]])[1]
    )
    found, ctx = measure(decays=[0.0])
    assert trained == [(0.01, 0.0, 20), (0.001, 0.0, 20), (0.001, 0.0, 24)]
    assert ctx.tuned["rate"] == 0.001 and ctx.tuned["on"] == "4 images held out of train"
    assert set(found) == {"top1", "top5", "mean_per_class"} and ctx.items["best"].shape == (12, 3)
    assert [point["epoch"] for point in ctx.curve] == [0.3333, 0.6667, 1.0], (
        "24 images in batches of 8: the last training"
    )


def test_a_killed_run_keeps_its_finished_grid_points(measure, monkeypatch):
    found, first = measure()
    counted = []
    real = finetune.fit
    monkeypatch.setattr(finetune, "fit", lambda *args, **kw: (counted.append(1), real(*args, **kw))[1])
    again, second = measure()
    assert again == found and second.tuned == first.tuned
    assert len(counted) == 1, "only the last training is repeated"


def test_grid_points_that_diverge_score_nothing(measure, monkeypatch):
    real = finetune.fit

    def diverges(model, batches, how, order, **kw):
        if how.rates[0] == 0.01:
            raise Diverged("every head diverged")
        return real(model, batches, how, order, **kw)

    monkeypatch.setattr(finetune, "fit", diverges)
    _, ctx = measure()
    assert ctx.tuned["rate"] == 0.001
    assert "1 of 2 grid points diverged" in ctx.notes
    with pytest.raises(Diverged, match="every grid point diverged"):
        measure(rates=[0.01], decays=[0.0, 1e-3])


def test_a_damaged_score_is_measured_again(tmp_path):
    file = tmp_path / "a.json"
    assert finetune._kept(file) is None
    for text in ("{", "[]", '{"score": "x"}', "{}"):
        file.write_text(text)
        assert finetune._kept(file) is None
    file.write_text(json.dumps({"score": math.nan}))
    assert math.isnan(finetune._kept(file))
    file.write_text(json.dumps({"score": float(np.float64(12.5))}))
    assert finetune._kept(file) == 12.5
