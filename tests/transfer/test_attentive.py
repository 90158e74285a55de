"""The attentive probe: torch's attention written another way, the source's loop step by step, tokens, choice and resuming."""

import copy

import numpy as np
import pytest
import torch
from backbones import tiny
from torch import nn

from backbench.config import build
from backbench.data.catalogue import DataPlaces, load
from benchmarks import plan
from model_zoo import load as zoo
from model_zoo.architecture import Architecture, InputSpec
from model_zoo.external import ExternalArchitecture, of_network
from model_zoo.resnet import build as build_trunk
from transfer import supervised, tasks
from transfer.attention import Answers, AttentionPool, AttentiveClassifier, AttentiveHeads, points
from transfer.protocol import RunContext
from transfer.supervised import Order, SgdConfig, fit
from transfer.tasks import attentive
from transfer.tokens import Tokens

CPU = torch.device("cpu")


def config_of(**fields):
    values = {**tasks.preset_fields(tasks.get("attentive"), "capi"), "preset": "capi"}
    return build(attentive.Config, {**values, **fields})


# ---------------------------------------------------------------- the probe


def torchs(pool):
    """torch's attention with the pool's weights: no projection of query and output, a bias of the keys that is not 0."""
    width = len(pool.query)
    theirs = nn.MultiheadAttention(width, pool.heads, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([torch.eye(width), pool.key, pool.value]))
        theirs.in_proj_bias.copy_(torch.cat([torch.zeros(width), torch.randn(width), pool.bias]))
        theirs.out_proj.weight.copy_(torch.eye(width))
        theirs.out_proj.bias.zero_()
    return theirs


@pytest.mark.parametrize(("width", "head_width", "tokens"), [(8, 8, 5), (12, 4, 1), (24, 2, 49)])
def test_the_pool_is_torchs_attention(width, head_width, tokens):
    """Values and gradients, up to rounding, though neither keys nor values of the tokens are computed."""
    pool = AttentionPool(width, head_width)
    for parameter in pool.parameters():
        nn.init.normal_(parameter)
    theirs, x = torchs(pool), torch.randn(6, tokens, width)
    ours = pool(x)
    expected = theirs(pool.query.expand(6, 1, -1), x, x, need_weights=False)[0].squeeze(1)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    weigh = torch.randn_like(ours)
    mine = torch.autograd.grad((ours * weigh).sum(), [pool.query, pool.key, pool.value, pool.bias])
    query = pool.query.detach().clone().requires_grad_()
    out = theirs(query.expand(6, 1, -1), x, x, need_weights=False)[0].squeeze(1)
    on_query, on_weight, on_bias = torch.autograd.grad(
        (out * weigh).sum(), [query, theirs.in_proj_weight, theirs.in_proj_bias]
    )
    _, on_key, on_value = on_weight.chunk(3)
    expected_all = [on_query, on_key, on_value, on_bias.chunk(3)[2]]
    for found, wanted in zip(mine, expected_all, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


class Source(nn.Module):
    """capi's AttnPoolClassifier: keys and values of every token, torch's scaled product."""

    def __init__(self, width, classes, head_width):
        super().__init__()
        self.heads = width // head_width
        self.query, self.kv = nn.Parameter(torch.empty(width)), nn.Linear(width, 2 * width)
        self.linear = nn.Linear(width, classes)

    def forward(self, x):
        b, n, d = x.shape
        q = self.query.expand(b, 1, -1).reshape(b, 1, self.heads, -1).transpose(1, 2)
        k, v = self.kv(x).reshape(b, n, 2, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        return self.linear(nn.functional.scaled_dot_product_attention(q, k, v).reshape(b, d))


def test_training_is_the_sources_loop():
    """AdamW with betas 0.9 and 0.95, a decay of all but biases, rates by batch / 256, warm-up and cosine over the steps."""
    steps, batch, warmup, width = 12, 8, 3, 16
    config = config_of(steps=steps, batch=batch, warmup=warmup, rates=[0.01, 0.1], decays=[0.0, 0.5], head_width=4)
    rates, decays = points([rate * batch / 256 for rate in config.rates], config.decays)
    assert rates == (0.0003125, 0.0003125, 0.003125, 0.003125) and decays == (0.0, 0.5, 0.0, 0.5)
    heads = AttentiveHeads(width, 3, rates, decays, 0, 4)
    batches = [(torch.randn(batch, 5, width), torch.randint(3, (batch,))) for _ in range(steps)]
    warm, cold = np.linspace(0.0, 1.0, warmup), (np.cos(np.linspace(0, np.pi, steps - warmup)) + 1) / 2
    schedule = np.concatenate([warm, cold])
    sources = []
    for pool, linear, rate, decay in zip(heads.pools, heads.linear, rates, decays, strict=True):
        source = Source(width, 3, 4)
        with torch.no_grad():
            source.query.copy_(pool.query)
            source.kv.weight.copy_(torch.cat([pool.key, pool.value]))
            source.kv.bias.copy_(torch.cat([torch.zeros(width), pool.bias]))
            source.linear.load_state_dict(linear.state_dict())
        groups = [
            {"params": [p for n, p in source.named_parameters() if ("bias" in n) == bias], "weight_decay": own}
            for bias, own in ((False, decay), (True, 0.0))
        ]
        optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95))
        for factor, (x, y) in zip(schedule, batches, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = factor * rate
            optimizer.zero_grad()
            nn.functional.cross_entropy(source(x), y).backward()
            optimizer.step()
        sources.append(source)
    how = config.model_copy(update={"epochs": 1})
    model = AttentiveClassifier(None, heads)
    before = copy.deepcopy(heads.state_dict())
    fit(model, lambda start: iter(batches[start:]), how, Order(batch * steps, batch, 1, 0, most=steps), device=CPU)
    for index, source in enumerate(sources):
        pool = heads.pools[index]
        for ours, theirs in (
            (pool.query, source.query), (pool.key, source.kv.weight[:width]), (pool.value, source.kv.weight[width:]),
            (pool.bias, source.kv.bias[width:]), (heads.linear[index].weight, source.linear.weight),
            (heads.linear[index].bias, source.linear.bias),
        ):  # fmt: skip
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-5)
    assert not torch.allclose(heads.linear[3].weight, before["linear.3.weight"], atol=1e-3), "it learned"


def test_probes_start_alike_as_the_source_draws():
    heads = AttentiveHeads(64, 40, (0.1, 0.2), (0.0, 0.0), 3, 16)
    state = heads.state_dict()
    for name, tensor in state.items():
        if ".0." in name:
            assert torch.equal(tensor, state[name.replace(".0.", ".1.")]), name
    for weight in (state["pools.0.key"], state["pools.0.value"], state["linear.0.weight"], state["pools.0.query"]):
        assert float(weight.std()) == pytest.approx(0.02, rel=0.3) and abs(float(weight.mean())) < 0.01
    assert not state["pools.0.bias"].any() and not state["linear.0.bias"].any()
    assert not torch.equal(state["pools.0.key"], state["pools.0.value"])
    other = AttentiveHeads(64, 40, (0.1,), (0.0,), 4, 16)
    assert not torch.equal(other.pools[0].key, heads.pools[0].key)


@pytest.mark.parametrize(("steps", "warmup"), [(100, 10), (12_500, 1_250), (5, 0), (2, 2), (1, 0), (3, 9)])
def test_the_schedule_is_the_sources(steps, warmup):
    config = config_of(steps=steps, warmup=warmup)
    cold = (np.cos(np.linspace(0, np.pi, max(0, steps - warmup))) + 1) / 2
    expected = np.concatenate([np.linspace(0.0, 1.0, warmup), cold])[:steps]
    assert [config.factor(step, 7) for step in range(steps)] == pytest.approx(expected.tolist(), abs=1e-12)


def test_the_preset_is_the_sources():
    config = plan.load_cell("imagenet_attentive").config
    assert (config.steps, config.warmup, config.batch, config.optimizer, config.betas) == (
        12_500,
        1_250,
        1024,
        "adamw",
        (0.9, 0.95),
    )
    assert len(config.rates) * len(config.decays) == 30 and config.holdout == 0.1 and config.head_width == 64


def test_betas_change_no_other_protocol():
    assert "betas" not in plan.load_cell("imagenet_linear").config.identity()
    assert "betas" not in SgdConfig(optimizer="adam").identity()
    assert plan.load_cell("imagenet_attentive").config.identity()["betas"] == [0.9, 0.95]


def test_a_diverged_probe_influences_no_other():
    x, y = torch.randn(32, 4, 8), torch.arange(32) % 2
    x[y == 1] += 2
    config = config_of(steps=20, warmup=0, batch=32, rates=[0.1], decays=[0.0])
    runs = {}
    for rates in ((0.01,), (0.01, 1e36)):
        heads = AttentiveHeads(8, 2, rates, [0.0] * len(rates), 0, 4)
        how = config.model_copy(update={"epochs": 20})
        fit(
            AttentiveClassifier(None, heads),
            lambda s: iter([(x, y)] * (20 - s)),
            how,
            Order(32, 32, 20, 0, most=20),
            device=CPU,
        )
        runs[len(rates)] = heads
    assert runs[2].sound == [True, False]
    assert torch.equal(runs[1].linear[0].weight, runs[2].linear[0].weight)
    best = Answers(AttentiveClassifier(None, runs[2]))(x)
    assert best.shape == (32, 4) and (best[:, 0] == y).float().mean() > 0.8


# ---------------------------------------------------------------- tokens


def test_tokens_of_a_resnet_are_its_last_grid():
    trunk = build_trunk(Architecture(name="resnet18", width=0.25), seed=0).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        tokens, c5 = Tokens(trunk)(x), trunk.stages(x)[-1]
        assert tokens.shape == (2, 4, 128)
        for row, (i, j) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
            assert torch.equal(tokens[:, row], c5[:, :, i, j])
        torch.testing.assert_close(tokens.mean(dim=1), trunk(x), rtol=1e-5, atol=1e-6)


def test_tokens_of_a_transformer_are_its_patches():
    backbone = zoo.load("timm:test_vit?pretrained=false")
    network = backbone.build().eval()
    x = torch.randn(2, 3, backbone.input.size, backbone.input.size)
    with torch.no_grad():
        every, tokens = network.forward_features(x), Tokens(network)(x)
    assert network.num_prefix_tokens == 1 and tokens.shape[1] == every.shape[1] - 1
    assert torch.equal(tokens, every[:, 1:])
    assert attentive.unfit(backbone, config_of()) is None


def test_a_network_without_tokens_is_refused():
    network = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    backbone = of_network("ours", network, ExternalArchitecture(name="ours:build"), InputSpec(size=32))
    assert "patch tokens of one of timm's transformers, which ours:build is not" in attentive.unfit(
        backbone, config_of()
    )
    arch = Architecture(name="resnet18", width=0.25)
    ours = tiny(arch)
    assert attentive.unfit(ours, config_of()) is None
    assert "128 channels do not divide into attention heads of 48" in attentive.unfit(ours, config_of(head_width=48))


# ---------------------------------------------------------------- the task


@pytest.fixture
def measure(image_folder, tmp_path):
    """Measure a tiny network on 24 images; returns the numbers and the context."""
    arch = Architecture(name="resnet18", width=0.25)
    backbone = tiny(arch, size=64)
    places = DataPlaces(None, {"imagenet": image_folder})
    splits = {role: load("imagenet", role, places) for role in ("train", "test")}

    def run(splits=splits, **fields):
        small = {"steps": 12, "warmup": 2, "batch": 8, "rates": [0.01, 0.3], "decays": [0.0], "holdout": 0.25}
        ctx = RunContext(splits=splits, seed=0, device=CPU, cache=tmp_path / "cache")
        metrics = attentive.run(backbone, config_of(**{**small, **fields}), ctx)
        return {name: metric.value for name, metric in metrics.items()}, ctx

    run.splits = splits
    return run


def test_the_choice_never_sees_the_test_split(measure):
    found, ctx = measure()
    assert set(found) == {"top1", "top5", "mean_per_class"} and ctx.items["best"].shape == (12, 3)
    assert ctx.tuned["on"] == "6 images held out of train" and len(ctx.tuned["top1_there"]) == 2
    assert ctx.tuned["rate"] in (0.01, 0.3), "as the cell states it, not scaled by the batch"
    test = measure.splits["test"].part(np.array([0, 1]))
    _, other = measure({**measure.splits, "test": test})
    assert other.tuned == ctx.tuned
    scores = ctx.tuned["top1_there"]
    assert scores[f"{ctx.tuned['rate']:g}, 0"] == max(scores.values())


def test_the_chosen_probe_alone_has_the_same_number(measure):
    found, ctx = measure()
    alone, _ = measure(rates=[ctx.tuned["rate"]])
    assert alone == found


def test_a_killed_run_ends_with_the_numbers_of_an_uninterrupted_one(measure, monkeypatch):
    monkeypatch.setattr(supervised, "_SAVE_EVERY_S", -1.0)
    found, first = measure()
    starts: list[int] = []

    class Killed(Exception):
        pass

    def batches(*args, **kwargs):
        from_step = image_batches(*args, **kwargs)

        def dies(start):
            starts.append(start)
            for done, batch in enumerate(from_step(start)):
                if len(starts) == 1 and done == 7:
                    raise Killed
                yield batch

        return dies

    image_batches = attentive.image_batches
    monkeypatch.setattr(attentive, "image_batches", batches)
    with pytest.raises(Killed):
        measure()
    again, second = measure()
    assert starts == [0, 6], "18 images are 3 steps an epoch: resumed after the second epoch"
    assert again == found and second.tuned == first.tuned
    assert np.array_equal(second.items["best"], first.items["best"])
