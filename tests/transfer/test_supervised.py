"""The shared SGD loop: schedules of all presets, heads and LARS written by hand, frozen parts, resuming after a kill."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from backbones import tiny
from torch import nn

from backbench.config import build
from backbench.data.splits import ImageSplit, Subset
from backbench.errors import ConfigError
from model_zoo.architecture import Architecture, InputSpec
from transfer import supervised, tasks
from transfer.heads import Classifier, Heads, items_of
from transfer.protocol import RunContext
from transfer.stacked import Stacked
from transfer.supervised import Order, SgdConfig, batches_of, fit
from transfer.tasks import linear_probe, semi_supervised

CPU = torch.device("cpu")
THIRDS = (1 / 3, 2 / 3)


def configured(task, preset, **values):
    """Return a preset's configuration with a cell's fields."""
    return build(task.Config, {**tasks.preset_fields(task, preset, values), **values, "preset": preset})


def loaded(share, preset, *overrides):
    """Resolve a cell as `benchmarks.plan` does: overrides also decide about conditional fields."""
    said = {"share": share, **dict(o.split("=") for o in overrides)}
    return build(
        semi_supervised.Config,
        {**tasks.preset_fields(semi_supervised, preset, said), "share": share, "preset": preset},
        overrides,
    )


# ---------------------------------------------------------------- presets


@pytest.mark.parametrize(
    ("preset", "values", "expected"),
    [
        ("sweep", {}, dict(batch=1024, epochs=100, optimizer="sgd", momentum=0.9, nesterov=True, weight_decay=0.0,
                           schedule="cosine", per_epoch=False, features="cached", head_norm="none", holdout=0.1,
                           holdout_max=10_000)),
        ("msbreg", {}, dict(rates=(0.2,), batch=256, epochs=28, optimizer="sgd", momentum=0.9, nesterov=False,
                            weight_decay=1e-4, schedule="steps", gamma=0.1, milestones=THIRDS, per_epoch=False,
                            features="augmented", head_norm="none", holdout=0.0)),
        ("msbreg", {"epochs": 84}, dict(rates=(0.2,), epochs=84, milestones=THIRDS)),
        ("vissl", {}, dict(rates=(0.01,), batch=256, epochs=14, momentum=0.9, nesterov=True, weight_decay=5e-4,
                           schedule="steps", gamma=0.1, features="augmented", head_norm="affine", holdout=0.0)),
        ("moco", {}, dict(rates=(30.0,), batch=256, epochs=100, momentum=0.9, nesterov=False, weight_decay=0.0,
                          schedule="steps", gamma=0.1, milestones=(0.6, 0.8), features="augmented", holdout=0.0)),
        ("barlow", {}, dict(rates=(0.3,), batch=256, epochs=100, momentum=0.9, nesterov=False, weight_decay=1e-6,
                            schedule="cosine", per_epoch=True, features="augmented", holdout=0.0)),
        ("simsiam", {}, dict(rates=(1.6,), batch=4096, epochs=90, optimizer="lars", momentum=0.9, nesterov=False,
                             weight_decay=0.0, schedule="cosine", features="augmented", holdout=0.0)),
        ("wmse", {}, dict(rates=(0.01,), batch=1000, epochs=500, optimizer="adam", weight_decay=5e-6,
                          schedule="exponential", features="cached", holdout=0.0)),
    ],
)  # fmt: skip
def test_presets_of_the_linear_probe(preset, values, expected):
    config = configured(linear_probe, preset, **values)
    assert {name: getattr(config, name) for name in expected} == expected


def test_every_preset_of_the_linear_probe_was_looked_at():
    assert set(linear_probe.Config.PRESETS) == {"sweep", "msbreg", "vissl", "moco", "barlow", "simsiam", "wmse"}
    assert set(semi_supervised.Config.PRESETS) == {"msbreg", "barlow", "swav"}


@pytest.mark.parametrize(
    ("preset", "share", "expected"),
    [
        ("msbreg", "1%", dict(rate_head=2.0, rate_encoder=0.0, batch=1024, epochs=60, nesterov=True, momentum=0.9,
                              weight_decay=0.0, schedule="cosine", per_epoch=False)),
        ("msbreg", "10%", dict(rate_head=0.25, rate_encoder=2.5e-4, batch=1024, epochs=30, nesterov=True, momentum=0.9,
                               weight_decay=0.0, schedule="cosine", per_epoch=False)),
        *(("barlow", share, dict(rate_head=0.5, rate_encoder=0.005, batch=256, epochs=20, nesterov=False, momentum=0.9,
                                 weight_decay=0.0, schedule="cosine", per_epoch=True)) for share in ("1%", "10%")),
        ("swav", "1%", dict(rate_head=5.0, rate_encoder=0.02, batch=256, epochs=20, nesterov=False, weight_decay=0.0,
                            schedule="steps", milestones=(0.6, 0.8), gamma=0.2)),
        ("swav", "10%", dict(rate_head=0.2, rate_encoder=0.01, batch=256, epochs=20, nesterov=False, weight_decay=0.0,
                             schedule="steps", milestones=(0.6, 0.8), gamma=0.2)),
    ],
)  # fmt: skip
def test_presets_of_semi_supervised(preset, share, expected):
    config = loaded(share, preset)
    assert {name: getattr(config, name) for name in expected} == expected
    other = {"1%": "10%", "10%": "1%"}[share]
    assert loaded(other, preset, f"share={share}") == config, "an override chooses the preset's fields of its share"


def test_without_a_share_the_conditional_keys_follow_the_default():
    assert configured(semi_supervised, "msbreg") == loaded("1%", "msbreg")
    assert semi_supervised.Config().rate_encoder == 0


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"momentum": 0.0}, "nesterov needs a momentum above 0"),
        ({"schedule": "steps"}, "needs milestones"),
        ({"schedule": "cosine", "milestones": [0.5]}, "needs milestones"),
        ({"schedule": "steps", "milestones": [0.5, 1.0]}, "milestones"),
        ({"rates": [0.1, 1.0], "holdout": 0.0}, "several rates need a slice of train"),
        ({"optimizer": "sdg"}, "optimizer"),
        ({"gamma": 0.0}, "gamma"),
        ({"batch": 0}, "batch"),
    ],
)
def test_a_course_that_makes_no_sense_is_refused(values, expected):
    with pytest.raises(ConfigError, match=expected):
        build(linear_probe.Config, values)


def test_what_is_refused_has_a_right_form():
    assert build(linear_probe.Config, {"momentum": 0.0, "nesterov": False}).momentum == 0
    assert build(linear_probe.Config, {"schedule": "steps", "milestones": [0.5]}).milestones == (0.5,)
    assert build(linear_probe.Config, {"rates": [0.1], "holdout": 0.0}).rates == (0.1,)


# ---------------------------------------------------------------- learning rates


def half_cosine(share):
    """(1 + cos(pi x)) / 2, written another way."""
    return math.cos(math.pi * share / 2) ** 2


def cosine(total, steps_per_epoch=1):
    """Steps of a cosine schedule and their factors, constant within `steps_per_epoch` steps."""
    last = total - 1
    return {
        s: half_cosine((s - s % steps_per_epoch) / total) for s in (0, 1, total // 2 - 1, total // 2, last - 1, last)
    }


STEPS = 7  # an epoch
COURSES = [
    (linear_probe, "sweep", {}, STEPS, cosine(700)),
    (linear_probe, "barlow", {}, STEPS, cosine(700, STEPS)),
    (linear_probe, "simsiam", {}, STEPS, cosine(630, STEPS)),
    # 2,448,873 and 437,513 images: 9,566 and 1,710 steps of 256 an epoch; thirds of 267,848 and of 143,640 steps
    (linear_probe, "msbreg", {}, 9566,
     {0: 1, 89_282: 1, 89_283: 0.1, 178_565: 0.1, 178_566: 0.01, 267_847: 0.01}),
    (linear_probe, "msbreg", {"epochs": 84}, 1710,
     {0: 1, 47_879: 1, 47_880: 0.1, 95_759: 0.1, 95_760: 0.01, 143_639: 0.01}),
    (linear_probe, "vissl", {}, STEPS,
     {0: 1, 27: 1, 28: 0.1, 55: 0.1, 56: 0.01, 83: 0.01, 84: 0.001, 97: 0.001}),  # after 4, 8 and 12 of 14 epochs
    (linear_probe, "moco", {}, STEPS, {0: 1, 419: 1, 420: 0.1, 559: 0.1, 560: 0.01, 699: 0.01}),  # after 60 and 80
    (linear_probe, "wmse", {}, STEPS,
     {STEPS * epoch + step: (1e-6 / 1e-2) ** (epoch / 500) for epoch in (0, 1, 250, 499) for step in (0, 6)}),
    (semi_supervised, "msbreg", {"share": "1%"}, STEPS, cosine(420)),
    (semi_supervised, "msbreg", {"share": "10%"}, STEPS, cosine(210)),
    (semi_supervised, "barlow", {"share": "1%"}, STEPS, cosine(140, STEPS)),
    (semi_supervised, "swav", {"share": "10%"}, STEPS,
     {0: 1, 83: 1, 84: 0.2, 111: 0.2, 112: 0.04, 139: 0.04}),  # after 12 and 16 of 20 epochs
]  # fmt: skip


@pytest.mark.parametrize(
    ("task", "preset", "values", "steps_per_epoch", "factors"), COURSES, ids=lambda v: v if isinstance(v, str) else ""
)
def test_the_factor_of_every_step(task, preset, values, steps_per_epoch, factors):
    config = configured(task, preset, **values)
    assert max(factors) == config.epochs * steps_per_epoch - 1, "the last step is among those looked at"
    for step, expected in factors.items():
        assert config.factor(step, steps_per_epoch) == pytest.approx(expected, rel=1e-9, abs=1e-15), step


def test_every_preset_has_its_course_looked_at():
    looked_at = {(task, preset) for task, preset, *_ in COURSES}
    assert looked_at == {(task, p) for task in (linear_probe, semi_supervised) for p in task.Config.PRESETS}


@pytest.fixture
def observed(monkeypatch):
    """Return the optimiser's actual learning rates at each step: {parameter: rate}."""
    seen = []
    real = supervised._optimizer

    def make(groups, config, **options):
        optimizer = real(groups, config, **options)
        step = optimizer.step

        def watched():
            seen.append({p: group["lr"] for group in optimizer.param_groups for p in group["params"]})
            return step()

        optimizer.step = watched
        return optimizer

    monkeypatch.setattr(supervised, "_optimizer", make)
    return seen


def tiny_encoder(seed=0):
    """An encoder from images (B, 3, 6, 6) to features (B, 4) with a BatchNorm."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


def pictures(count, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 6, 6, generator=generator), torch.arange(count) % classes


def run_fit(model, x, y, config, *, seed=0, resume=None, batches=None):
    order = Order(len(x), config.batch, config.epochs, seed)
    fit(model, batches or batches_of(x, y, order), config, order, device=CPU, resume=resume)
    return model


def test_encoder_and_every_head_have_a_rate_of_their_own(observed):
    x, y = pictures(10)
    model = Classifier(tiny_encoder(), Heads(4, 3, (2.0, 0.5), seed=0, norm="affine"), rate_encoder=0.01)
    config = SgdConfig(batch=4, epochs=2, schedule="steps", milestones=(0.5,), gamma=0.1)
    run_fit(model, x, y, config)
    assert len(observed) == 6
    for step, rates in enumerate(observed):
        factor = 1.0 if step < 3 else 0.1
        assert set(rates) == set(model.parameters())
        for head, norm, rate in zip(model.heads.linear, model.heads.norms, (2.0, 0.5), strict=True):
            found = [rates[p] for part in (head, norm) for p in part.parameters()]
            assert found == pytest.approx([rate * factor] * 4)
        assert [rates[p] for p in model.encoder.parameters()] == pytest.approx([0.01 * factor] * 3)


@pytest.mark.parametrize("optimizer", ["sgd", "lars", "adam"])
def test_what_is_not_decayed(optimizer):
    model = Classifier(tiny_encoder(), Heads(4, 3, (1.0,), seed=0, norm="affine"), rate_encoder=0.1)
    groups = supervised._optimizer(model.groups(0.25), SgdConfig(optimizer=optimizer)).param_groups
    decay = {p: group["weight_decay"] for group in groups for p in group["params"]}
    assert len(decay) == sum(len(group["params"]) for group in groups) == len(list(model.parameters())), "each once"
    conv, norm = model.encoder[0], model.encoder[1]
    linear, head_norm = model.heads.linear[0], model.heads.norms[0]
    assert [decay[p] for p in (conv.weight, linear.weight, linear.bias)] == [0.25] * 3
    assert [decay[p] for part in (norm, head_norm) for p in part.parameters()] == [0.0] * 4
    if optimizer == "lars":
        adapted = {p for group in groups for p in group["params"] if group["always_adapt"]}
        assert adapted == {conv.weight, linear.weight, linear.bias}


# ---------------------------------------------------------------- heads, LARS and Adam by hand


def by_hand(x, norm):
    """Normalise (B, C) by the statistics of the batch."""
    mean = sum(x) / len(x)
    variance = sum((row - mean) ** 2 for row in x) / len(x)
    y = (x - mean) / torch.sqrt(variance + 1e-5)
    return y * norm["scale"] + norm["shift"]


@pytest.mark.parametrize("kind", ["plain", "affine"])
def test_heads_with_a_norm_equal_batchnorm_and_a_matrix_written_out(kind):
    x = torch.randn(23, 5, dtype=torch.float64) * torch.tensor([0.1, 1.0, 3.0, 10.0, 1.0]) + 4
    y = torch.arange(23) % 3
    heads = Heads(5, 3, (0.3,), seed=1, norm=kind).double()
    start = heads.linear[0].weight.detach().clone()
    config = SgdConfig(batch=8, epochs=2, weight_decay=0.1, nesterov=False)
    order = Order(23, 8, 2, seed=3)
    values = {"weight": start, "bias": torch.zeros(3), "scale": torch.ones(5), "shift": torch.zeros(5)}
    values = {name: value.double().requires_grad_() for name, value in values.items()}
    trained = ["weight", "bias", "scale", "shift"] if kind == "affine" else ["weight", "bias"]
    velocity = dict.fromkeys(trained, 0.0)
    mean, variance = torch.zeros(5).double(), torch.ones(5).double()
    for step, (rows, labels) in enumerate(batches_of(x, y, order)(0)):
        logits = by_hand(rows, values) @ values["weight"].T + values["bias"]
        loss = -(logits - logits.exp().sum(1, keepdim=True).log())[range(len(rows)), labels].mean()
        gradients = torch.autograd.grad(loss, [values[name] for name in trained])
        with torch.no_grad():
            for name, gradient in zip(trained, gradients, strict=True):
                decay = 0.1 if name in ("weight", "bias") else 0.0
                velocity[name] = 0.9 * velocity[name] + gradient + decay * values[name]
                values[name] -= 0.3 * half_cosine(step / 6) * velocity[name]
            mean = 0.9 * mean + 0.1 * rows.mean(0)
            variance = 0.9 * variance + 0.1 * rows.var(0, unbiased=True)
    fit(Classifier(None, heads), batches_of(x, y, order), config, order, device=CPU)
    found = {"weight": heads.linear[0].weight, "bias": heads.linear[0].bias}
    if kind == "affine":
        found |= {"scale": heads.norms[0].weight, "shift": heads.norms[0].bias}
        assert (values["scale"] - 1).abs().max() > 1e-3
    else:
        assert list(heads.norms[0].parameters()) == []
    for name, value in found.items():
        torch.testing.assert_close(value, values[name], rtol=1e-9, atol=1e-11, msg=name)
    heads.eval()
    z = (x - mean) / (variance + 1e-5).sqrt() * values["scale"] + values["shift"]
    torch.testing.assert_close(heads(x)[0], z @ values["weight"].T + values["bias"], rtol=1e-9, atol=1e-9)


def test_the_simsiam_preset_equals_larc_written_out():
    """Trust 0.001 and no clip (SimSiam main_lincls.py, apex LARC); a tensor of norm zero keeps its gradient."""
    config = configured(linear_probe, "simsiam", epochs=2, batch=8)
    x, y = torch.randn(20, 5, dtype=torch.float64) * 3, torch.arange(20) % 3
    heads = Heads(5, 3, config.rates, seed=0).double()
    order = Order(20, 8, 2, seed=0)
    values = [heads.linear[0].weight.detach().clone(), torch.zeros(3, dtype=torch.float64)]
    velocity, first = [0.0, 0.0], None
    for step, (rows, labels) in enumerate(batches_of(x, y, order)(0)):
        rate = 1.6 * half_cosine(step // 3 / 2)
        error = (F.softmax(rows @ values[0].T + values[1], dim=1) - F.one_hot(labels, 3)) / len(rows)
        for i, gradient in enumerate((error.T @ rows, error.sum(0))):
            norm = values[i].pow(2).sum().sqrt()
            local = 0.001 * norm / gradient.pow(2).sum().sqrt() if norm > 0 else 1.0
            velocity[i] = 0.9 * velocity[i] + local * gradient
            values[i] = values[i] - rate * velocity[i]
        first = first if first is not None else [value.clone() for value in values]
    fit(Classifier(None, heads), batches_of(x, y, order), config, order, device=CPU)
    torch.testing.assert_close(heads.linear[0].weight, values[0], rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(heads.linear[0].bias, values[1], rtol=1e-6, atol=1e-9)
    assert first[1].abs().max() > 1e-2, "the bias was not held back by its norm of zero"


def test_the_wmse_preset_equals_adam_written_out():
    config = configured(linear_probe, "wmse", epochs=3, batch=8)
    x, y = torch.randn(20, 5, dtype=torch.float64), torch.arange(20) % 3
    heads = Heads(5, 3, config.rates, seed=0).double()
    order = Order(20, 8, 3, seed=0)
    w = heads.linear[0].weight.detach().clone()
    b = torch.zeros(3, dtype=torch.float64)
    moments = [[0.0, 0.0], [0.0, 0.0]]
    for step, (rows, labels) in enumerate(batches_of(x, y, order)(0)):
        rate = 0.01 * 1e-4 ** (step // 3 / 3)
        error = (F.softmax(rows @ w.T + b, dim=1) - F.one_hot(labels, 3)) / len(rows)
        moves = []
        for moment, gradient in zip(moments, (error.T @ rows + 5e-6 * w, error.sum(0) + 5e-6 * b), strict=True):
            moment[0] = 0.9 * moment[0] + 0.1 * gradient
            moment[1] = 0.999 * moment[1] + 0.001 * gradient**2
            mean, square = moment[0] / (1 - 0.9 ** (step + 1)), moment[1] / (1 - 0.999 ** (step + 1))
            moves.append(rate * mean / (square.sqrt() + 1e-8))
        w, b = w - moves[0], b - moves[1]
    fit(Classifier(None, heads), batches_of(x, y, order), config, order, device=CPU)
    torch.testing.assert_close(heads.linear[0].weight, w, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(heads.linear[0].bias, b, rtol=1e-8, atol=1e-10)


def mixed(rows, features):
    """Features of different scales in float64, so that equality up to rounding is a narrow bound."""
    generator = torch.Generator().manual_seed(3)
    return torch.randn(rows, features, generator=generator, dtype=torch.float64) * 4 + 2, torch.arange(rows) % 3


@pytest.mark.parametrize("optimizer", ["sgd", "lars", "adam"])
@pytest.mark.parametrize(("norm", "cells"), [("none", 1), ("plain", 1), ("affine", 1), ("affine", 2)])
def test_heads_trained_together_equal_heads_trained_alone(norm, cells, optimizer):
    x, y = mixed(30, 6)
    config = SgdConfig(batch=8, epochs=2, optimizer=optimizer, weight_decay=1e-3)

    def trained(*rates):
        heads = Heads(6, 3, rates, seed=0, norm=norm, cells=cells).double()
        return run_fit(Classifier(None, heads), x, y, config).heads

    together = trained(0.001, 0.1, 2.0)
    for i, rate in enumerate((0.001, 0.1, 2.0)):
        alone = trained(rate)
        for mine, other in zip((together.linear[i], together.norms[i]), (alone.linear[0], alone.norms[0]), strict=True):
            for name, value in other.state_dict().items():
                torch.testing.assert_close(mine.state_dict()[name], value, rtol=1e-9, atol=1e-11, msg=f"{rate}: {name}")
    assert (together.linear[0].weight - together.linear[2].weight).abs().max() > 1e-4


@pytest.mark.parametrize(("norm", "cells"), [("none", 1), ("plain", 2), ("affine", 2)])
def test_the_gradients_without_autograd_are_autograds(norm, cells):
    x, y = mixed(20, 6)
    heads = Heads(6, 3, (0.1, 1.0), seed=0, norm=norm, cells=cells).double()
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter.add_(torch.randn_like(parameter))
    by_hand = copy.deepcopy(heads)
    losses = torch.stack([F.cross_entropy(each, y, reduction="sum") for each in heads(x)]) / 25
    losses.sum().backward()
    found = Stacked(by_hand, CPU).step(x, y, 25)
    torch.testing.assert_close(found, losses.detach(), rtol=1e-12, atol=0)
    for (name, mine), other in zip(by_hand.named_parameters(), heads.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-10, atol=1e-12, msg=name)
    for name, value in heads.state_dict().items():  # the statistics too
        torch.testing.assert_close(by_hand.state_dict()[name], value, rtol=1e-12, atol=0, msg=name)


@pytest.mark.parametrize("norm", ["none", "affine"])
def test_a_diverged_head_leaves_the_others_as_they_are(norm):
    x, y = mixed(30, 6)
    config = SgdConfig(batch=8, epochs=3)
    both = run_fit(Classifier(None, Heads(6, 3, (1e308, 0.1), seed=0, norm=norm).double()), x, y, config).heads
    alone = run_fit(Classifier(None, Heads(6, 3, (0.1,), seed=0, norm=norm).double()), x, y, config).heads
    assert both.sound == [False, True]
    torch.testing.assert_close(both.linear[1].weight, alone.linear[0].weight, rtol=1e-9, atol=1e-11)


# ---------------------------------------------------------------- frozen or not


def copied(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def moved(module, before):
    """Return the names of tensors that changed."""
    return {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


def test_a_frozen_encoder_does_not_move_and_a_fine_tuned_one_does():
    x, y = pictures(20)
    config = SgdConfig(batch=8, epochs=2, weight_decay=0.1)
    for rate in (0.0, 0.05):
        encoder = tiny_encoder()
        model = Classifier(encoder, Heads(4, 3, (1.0,), seed=0), rate_encoder=rate)
        before, head = copied(encoder), copied(model.heads)
        run_fit(model, x, y, config)
        assert moved(encoder, before) == (set(before) if rate else set())
        assert moved(model.heads, head) == set(head)


def test_a_frozen_encoder_is_in_eval_mode_and_computes_no_gradient():
    model = Classifier(tiny_encoder(), Heads(4, 3, (1.0,), seed=0, norm="plain")).train()
    assert not any(part.training for part in model.encoder.modules())
    assert all(part.training for part in model.heads.modules())
    features = []
    model.encoder.register_forward_hook(lambda module, args, out: features.append(out))
    (logits,) = model(torch.randn(5, 3, 6, 6))
    assert not features[0].requires_grad and logits.requires_grad
    assert {p for group in model.groups(0.1) for p in group["params"]} == set(model.heads.linear.parameters())
    tuned = Classifier(tiny_encoder(), Heads(4, 3, (1.0,), seed=0), rate_encoder=0.1).train()
    assert all(part.training for part in tuned.modules())


def test_frozen_heads_on_images_equal_heads_on_features():
    x, y = pictures(20)
    encoder, config = tiny_encoder(), SgdConfig(batch=8, epochs=2)
    on_images = run_fit(Classifier(encoder, Heads(4, 3, (1.0,), seed=0)), x, y, config).heads
    with torch.no_grad():
        features = encoder.eval()(x)
    on_features = run_fit(Classifier(None, Heads(4, 3, (1.0,), seed=0)), features, y, config).heads
    torch.testing.assert_close(on_images.linear[0].weight, on_features.linear[0].weight, rtol=1e-5, atol=1e-7)


# ---------------------------------------------------------------- a last batch of one image


def test_a_last_image_alone_is_passed_over_by_a_batchnorm_only():
    x, y = torch.randn(9, 5), torch.arange(9) % 3
    config = SgdConfig(batch=4, epochs=1, schedule="steps", milestones=(0.999,))
    (last,) = [rows for _, rows in Order(9, 4, 1, 0).rows() if len(rows) == 1]
    changed = x.clone()
    changed[last] += 5
    for norm, ignored in (("none", False), ("plain", True)):
        heads = [
            run_fit(Classifier(None, Heads(5, 3, (0.1,), 0, norm)), data, y, config).heads for data in (x, changed)
        ]
        assert torch.equal(heads[0].linear[0].weight, heads[1].linear[0].weight) == ignored


def test_a_last_image_alone_does_not_hide_a_divergence_or_keep_the_state_from_being_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(supervised, "_SAVE_EVERY_S", -1.0)
    saved = []
    real = supervised.save_state
    monkeypatch.setattr(supervised, "save_state", lambda *args: (saved.append(args[4]), real(*args)))
    x, y = torch.randn(9, 5), torch.arange(9) % 3
    config = SgdConfig(batch=4, epochs=2)
    run_fit(Classifier(None, Heads(5, 3, (0.1,), 0, "plain")), x, y, config, resume=tmp_path / "state.ckpt")
    assert saved == [3, 6]
    with pytest.raises(FloatingPointError, match="every head diverged by epoch 1"):
        run_fit(Classifier(None, Heads(5, 3, (3e38,), 0, "affine")), x, y, config)


@pytest.mark.parametrize(("images", "batch"), [(9, 1), (1, 4)])
def test_batches_of_one_image_are_refused_where_there_is_a_batchnorm(images, batch):
    x, y = torch.randn(images, 5), torch.zeros(images, dtype=torch.int64)
    with pytest.raises(ConfigError, match="a batch of one image"):
        run_fit(Classifier(None, Heads(5, 3, (0.1,), 0, "plain")), x, y, SgdConfig(batch=batch, epochs=1))
    run_fit(Classifier(None, Heads(5, 3, (0.1,), 0)), x, y, SgdConfig(batch=batch, epochs=1))


# ---------------------------------------------------------------- going on after a kill


class _Killed(Exception):
    pass


def killed_after(steps, batches, started):
    """Batches that raise an exception after some steps of this call. Records where each call starts."""

    def from_step(start):
        started.append(start)
        for done, batch in enumerate(batches(start)):
            if done == steps:
                raise _Killed
            yield batch

    return from_step


@pytest.mark.parametrize("optimizer", ["sgd", "lars", "adam"])
@pytest.mark.parametrize("rate", [0.0, 0.05])
def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(tmp_path, monkeypatch, optimizer, rate):
    monkeypatch.setattr(supervised, "_SAVE_EVERY_S", -1.0)
    x, y = pictures(22)
    config = SgdConfig(batch=8, epochs=4, optimizer=optimizer)
    order = Order(22, 8, 4, seed=5)
    file = tmp_path / "state.ckpt"

    def fresh():
        return Classifier(tiny_encoder(), Heads(4, 3, (1.0, 0.1), seed=0, norm="affine"), rate_encoder=rate)

    whole = fresh()
    curve = fit(whole, batches_of(x, y, order), config, order, device=CPU)
    started = []
    for steps in (4, 5):  # in the second epoch; after a restart at step 3, in the third
        with pytest.raises(_Killed):
            fit(fresh(), killed_after(steps, batches_of(x, y, order), started), config, order, device=CPU, resume=file)
        assert file.exists()
    model = fresh()
    again = fit(model, killed_after(None, batches_of(x, y, order), started), config, order, device=CPU, resume=file)
    assert started == [0, 3, 6]
    assert again.points == curve.points, "the learning curve too"
    assert moved(model, whole.state_dict()) == set()
    assert not file.exists()
    unlike = fresh()
    fit(unlike, batches_of(x, y, Order(22, 8, 4, seed=6)), config, order, device=CPU)
    assert moved(unlike, whole.state_dict()), "another order gives other weights, so equality says something"


def test_a_state_saved_head_by_head_is_resumed(tmp_path, monkeypatch):
    """Files from the time when every head had its own tensors and update have the same names."""
    monkeypatch.setattr(supervised, "_SAVE_EVERY_S", -1.0)
    x, y = mixed(22, 6)
    config, order, file = SgdConfig(batch=8, epochs=3), Order(22, 8, 3, seed=5), tmp_path / "state.ckpt"

    def fresh():
        return Classifier(None, Heads(6, 3, (1.0, 0.1), seed=0, norm="affine").double())

    whole = run_fit(fresh(), x, y, config, seed=5)
    started = []
    with pytest.raises(_Killed):
        fit(fresh(), killed_after(4, batches_of(x, y, order), started), config, order, device=CPU, resume=file)
    state = torch.load(file, weights_only=True)
    state["model"] = {name: value.clone() for name, value in state["model"].items()}
    del state["curve"]
    assert {"heads.linear.1.weight", "heads.norms.1.running_mean"} <= set(state["model"])
    for group in state["optimizer"]["param_groups"]:
        group["fused"] = None
    torch.save(state, file)
    model = fresh()
    fit(model, killed_after(None, batches_of(x, y, order), started), config, order, device=CPU, resume=file)
    assert started == [0, 3]
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-9, atol=1e-11, msg=name)


def test_nothing_is_saved_before_its_time(tmp_path):
    x, y = pictures(8)
    model = Classifier(tiny_encoder(), Heads(4, 3, (1.0,), seed=0))
    order, config = Order(8, 4, 3, 0), SgdConfig(batch=4, epochs=3)
    with pytest.raises(_Killed):
        fit(model, killed_after(5, batches_of(x, y, order), []), config, order, device=CPU, resume=tmp_path / "s.ckpt")
    assert list(tmp_path.iterdir()) == []


def test_a_resume_file_belongs_to_one_training(tmp_path):
    rows = Subset(source := _Named(10), np.arange(10))
    split = ImageSplit("made", "train", rows, np.arange(10) % 2, ("a", "b"))
    arch = Architecture(name="resnet18", width=0.25)
    backbone = tiny(arch)
    other = tiny(arch, seed=1)
    ctx = RunContext(splits={"train": split}, seed=0, device=CPU, cache=tmp_path)
    config = linear_probe.Config()
    file = ctx.resume_file(backbone, config, 1)
    assert ctx.resume_file(dataclasses.replace(backbone, name="renamed"), config, 1) == file
    part = dataclasses.replace(split, source=Subset(source, np.arange(9)), labels=split.labels[:9])
    others = [
        ctx.resume_file(other, config, 1),
        ctx.resume_file(dataclasses.replace(backbone, input=InputSpec(size=40)), config, 1),
        ctx.resume_file(backbone, linear_probe.Config(epochs=7), 1),
        ctx.resume_file(backbone, semi_supervised.Config(), 1),
        ctx.resume_file(backbone, config, 2),
        dataclasses.replace(ctx, seed=1).resume_file(backbone, config, 1),
        dataclasses.replace(ctx, splits={"train": part}).resume_file(backbone, config, 1),
    ]
    assert len({file, *others}) == 1 + len(others)


class _Named:
    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def name(self, index):
        return f"{index}.jpg"

    def size(self, index):
        return 100 + index

    def status(self, index):
        return 100 + index, 0, 0


# ---------------------------------------------------------------- what is kept per test item


def test_items_hold_the_best_classes_and_every_classs_share():
    best = torch.tensor([[0, 1, 2], [1, 0, 2], [2, 1, 0], [0, 2, 1]])
    labels = torch.tensor([0, 0, 2, 2])
    items = items_of(best, labels, classes=4)
    assert items["best"].tolist() == best.tolist() and items["best"].dtype == np.int32
    assert items["labels"].tolist() == [0, 0, 2, 2]
    assert items["per_class_top1"].tolist() == pytest.approx([50.0, math.nan, 50.0, math.nan], nan_ok=True)
