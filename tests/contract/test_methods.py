"""Every pretraining method: its loss has gradients and falls in real steps, and its target follows the stated rule.

SimSiam towards a centroid and alignment + uniformity lie outside the package, in `tests/builders/plugin`: together with BYOL
they cover the three rules.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pretraining import MADE_SMALL, tiny_recipe, write_photos

from backbench import plugins
from backbench.errors import ConfigError
from pretrain import methods, run
from pretrain.config import PretrainConfig, load
from pretrain.losses import brownian_loss, singular_value_loss
from pretrain.method import Ema, Method, NoTarget, StopGradient
from pretrain.networks import Heads, HeadSizes, Outputs
from pretrain.train import build_all, follow, global_noise, losses, train, train_step

pytestmark = pytest.mark.slow  # trains every method

PLUGIN = Path(__file__).resolve().parents[1] / "builders" / "plugin"
OUTSIDE = ["centroid_siam", "align_uniform"]
ALL = [*methods.names(), *OUTSIDE]
K, B, D = 4, 12, 8


@pytest.fixture(autouse=True)
def _included(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(plugins.VARIABLE, str(PLUGIN))


def randn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Given:
    """A method's configuration for K views, with predictions and targets as in the loop; the targets have a gradient too,
    which the loss must not use."""

    def __init__(self, name: str) -> None:
        self.method = methods.get(name)
        self.config = small(name, f"method.views={K}").method
        sizes = HeadSizes(features=D, hidden=16, outputs=D, norm="batch")
        heads = Heads(*(head.double() if head is not None else None for head in self.method.heads(sizes, self.config)))
        self.memory = {}
        if self.method.memory is not None:
            self.memory["memory"] = self.method.memory(sizes, self.config, heads).double()
        width = D if heads.predictor is None else heads.predictor(randn(B, D, seed=2)).shape[-1]
        self.p = randn(len(self.config.queries()), B, width, seed=0).requires_grad_()
        z = randn(len(self.config.keys()), B, D, seed=1)
        self.z = (z[:0] if isinstance(self.method.target, NoTarget) else z).requires_grad_()

    def losses(self, skip: int = 0, group: int = K) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the loss of a group of query views after the first `skip` ones, and its parts."""
        views, first = self.p[skip : skip + group], self.config.queries().start + skip
        return self.method.losses(views, self.z, self.config, first=first, **self.memory)


@pytest.fixture
def given(name: str) -> Given:
    return Given(name)


def small(name: str, *overrides: str) -> PretrainConfig:
    """Return a recipe of the method; its data are never read."""
    fields = f"method.name={name}", "optim.base_lr=4.0", *MADE_SMALL.get(name, ()), *overrides
    return tiny_recipe(Path("nowhere"), *fields)


# ---------------------------------------------------------------- the loss


@pytest.mark.parametrize("name", ALL)
def test_loss_is_a_scalar_with_named_parts_that_teaches_the_predictions_and_never_the_targets(name, given):
    total, parts = given.losses()
    assert total.shape == () and bool(torch.isfinite(total))
    assert parts and "loss" not in parts, "the total has that name in metrics.jsonl"
    assert all(part.shape == () and bool(torch.isfinite(part)) for part in parts.values())
    total.backward()
    assert given.p.grad is not None and float(given.p.grad.abs().sum()) > 0
    assert given.z.grad is None


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("group", [1, 2])
def test_the_mean_over_groups_of_views_is_the_whole_unless_the_method_couples_them(name, group, given):
    """`run.views_per_pass` relies on it."""
    couples, queries = given.method.couples_views, len(given.p)
    if (couples and group == 1) or queries < 2:
        return  # the loss needs pairs of views, or there are no groups
    (expected,) = torch.autograd.grad(given.losses()[0], given.p)
    pieces = [given.losses(skip, group)[0] * group / queries for skip in range(0, queries, group)]
    (found,) = torch.autograd.grad(torch.stack(pieces).sum(), given.p)
    assert torch.allclose(found, expected, rtol=1e-7, atol=1e-9) is not couples


@pytest.mark.parametrize("name", ALL)
def test_msbregs_dispersive_losses_change_every_methods_loss_by_exactly_their_terms(name, given):
    projections = randn(len(given.p), B, D, seed=4)
    spread = given.p if given.method.disperses == "predictions" else projections

    def total(lambda_s: float, lambda_b: float) -> torch.Tensor:
        weights = f"method.lambda_s={lambda_s}", f"method.lambda_b={lambda_b}"
        config = small(name, f"method.views={K}", f"optim.batch={B}", "run.float64=true", *weights)
        outputs, first = Outputs(given.p, projections), config.method.queries().start
        return losses(outputs, given.z, config, given.memory.get("memory"), step=3, first=first)[0]

    noise = global_noise(small(name, f"optim.batch={B}", "run.float64=true"), 3, spread)
    alone = total(0.0, 0.0)
    torch.testing.assert_close(total(0.0, 0.5) - alone, 0.5 * brownian_loss(spread, noise))
    torch.testing.assert_close(total(0.3, 0.0) - alone, 0.3 * singular_value_loss(spread))


@pytest.mark.parametrize("norm", ["batch", "layer", "group", "group_ws"])
@pytest.mark.parametrize("name", ALL)
def test_heads_take_every_norm_and_learn(name, norm):
    method = methods.get(name)
    heads = method.heads(HeadSizes(features=D, hidden=32, outputs=128, norm=norm), small(name).method)
    z = heads.projector(torch.randn(B, D))
    p = z if heads.predictor is None else heads.predictor(z)
    assert z.shape == (B, 128) and len(p) == B
    p.square().sum().backward()
    assert all(w.grad is not None for w in heads.projector.parameters() if w.requires_grad)


# ---------------------------------------------------------------- the recipe


@pytest.mark.parametrize("name", ALL)
def test_a_recipe_names_the_method_and_has_its_fields_alone(name):
    method = methods.get(name)
    config = load("demo", [f"method.name={name}", "method.views=3"])
    assert isinstance(config, PretrainConfig) and isinstance(config.method, method.Config)
    assert config.method.model_dump() == method.Config(name=name, views=3).model_dump()
    assert method.losses.__doc__
    with pytest.raises(ConfigError, match=r"unknown key 'method\.lamda_x'"):
        load("demo", [f"method.name={name}", "method.lamda_x=1.0"])


@pytest.mark.parametrize("name", ALL)
def test_a_recipe_refuses_what_the_method_cannot_do(name):
    method = methods.get(name)
    chosen = f"method.name={name}"
    if isinstance(method.target, Ema):
        optim = load("demo", [chosen]).optim
        assert (optim.tau_base, optim.tau_final) == (method.target.base, method.target.final)
        assert load("demo", [chosen, "optim.tau_base=0.5"]).optim.tau_base == 0.5
    else:
        assert load("demo", [chosen]).optim.tau_base is None
        for field in ("tau_base", "tau_final"):
            with pytest.raises(ConfigError, match=f"optim.{field}: {name} keeps no moving average"):
                load("demo", [chosen, f"optim.{field}=0.5"])
    if method.accumulates:
        assert load("demo", [chosen, "run.views_per_pass=1"]).run.views_per_pass == 1
    else:
        with pytest.raises(ConfigError, match=f"run.views_per_pass: {name} needs all views in one pass"):
            load("demo", [chosen, "run.views_per_pass=1"])


# ---------------------------------------------------------------- real steps


def views_of(config: PretrainConfig) -> torch.Tensor:
    size = config.data.size
    return randn(config.method.views, config.optim.batch, 3, size, size, seed=3).float()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.sample(6)
def test_a_few_steps_on_a_batch_lower_its_loss(name):
    config = small(name)
    online, target, optimizer, scaler = build_all(config, torch.device("cpu"))
    views, seen = views_of(config), []
    for _ in range(8):
        _, parts = train_step(online, target, optimizer, scaler, views, config, step=0, lr=config.peak_lr())
        seen.append(float(parts["loss"]))
        follow(target, online, config, step=0, total=1000)
    assert seen[-1] < min(seen[:2]), seen


def check_target(method: Method, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> None:
    """Assert that the targets during and after a step follow the stated rule."""
    given: list[torch.Tensor] = []

    def losses(p: torch.Tensor, z: torch.Tensor, *rest: Any, **fields: Any) -> Any:
        given.append(z)
        return method.losses(p, z, *rest, **fields)

    spied = dataclasses.replace(method, losses=losses)
    monkeypatch.setattr(methods, "get", lambda _name: spied)
    config = small(method.name, *overrides)
    online, target, optimizer, scaler = build_all(config, torch.device("cpu"))
    views, keys = views_of(config), config.method.keys()
    for step in range(2):
        own = copy.deepcopy(online)(views).z
        averaged = copy.deepcopy(target)(views[keys.start : keys.stop]) if target is not None else None
        before = {key: value.clone() for key, value in target.state_dict().items()} if target is not None else {}
        train_step(online, target, optimizer, scaler, views, config, step=step, lr=config.peak_lr())
        assert not given[-1].requires_grad
        said = follow(target, online, config, step=step, total=1000)
        if isinstance(method.target, Ema):
            assert target is not None and averaged is not None and torch.equal(given[-1], averaged)
            same = torch.allclose(given[-1], own[keys.start : keys.stop], rtol=1e-3)
            assert step == 0 or not same, "the target is the online network"
            check_moved(before, target, online, said["tau"])
        elif isinstance(method.target, StopGradient):
            assert target is None and said == {} and torch.equal(given[-1], own)
        else:
            assert target is None and said == {} and given[-1].shape == (0, *own.shape[1:])


def check_moved(before: dict[str, torch.Tensor], target: torch.nn.Module, online: torch.nn.Module, tau: float) -> None:
    """Assert that each target parameter moved by 1 - tau of its distance to the online network's."""
    theirs = dict(online.named_parameters())
    for name, parameter in target.named_parameters():
        torch.testing.assert_close(parameter, tau * before[name] + (1 - tau) * theirs[name].detach(), msg=name)
    lag = [float((p - theirs[name]).detach().abs().max()) for name, p in target.named_parameters() if p.ndim > 1]
    assert all(value > 0 for value in lag), "a moving average lags behind"


@pytest.mark.parametrize("name", ALL)
def test_the_target_does_what_the_method_states(name, monkeypatch):
    check_target(methods.get(name), monkeypatch)


def test_the_methods_cover_the_three_rules():
    assert {type(methods.get(name).target) for name in ALL} == {Ema, StopGradient, NoTarget}


def test_a_stopped_gradient_as_a_moving_average_of_tau_0_fails(monkeypatch):
    with pytest.raises(ValueError, match=r"for 0 use StopGradient\(\)"):
        Ema(0.0)
    pretended = dataclasses.replace(methods.get("centroid_siam"), target=Ema(0.5))
    with pytest.raises(AssertionError, match="a moving average lags behind"):
        check_target(pretended, monkeypatch, "optim.tau_base=0.0")


def test_a_predictor_of_fixed_rate_keeps_the_peak_rate():
    config = small("centroid_siam")
    online, target, optimizer, scaler = build_all(config, torch.device("cpu"))
    before = copy.deepcopy(online)
    train_step(online, target, optimizer, scaler, views_of(config), config, step=0, lr=0.0)
    for (name, now), (_, then) in zip(online.named_parameters(), before.named_parameters(), strict=True):
        assert torch.equal(now, then) is not name.startswith("predictor."), name


@pytest.mark.slow
@pytest.mark.parametrize("name", OUTSIDE)
def test_a_method_outside_the_package_trains_and_resumes(name, tmp_path):
    photos = write_photos(tmp_path / "photos")
    config = tiny_recipe(photos, f"method.name={name}", "run.checkpoint_every=1")
    model = train(config, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 5 and all("tau" not in line for line in lines)
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["target"] == {}
    assert load(str(tmp_path / "run" / "config.yaml"), []) == config
    before = model.read_bytes()
    assert train(config, tmp_path / "run", resume=True).read_bytes() == before


def test_the_command_line_includes_a_folder_of_methods(monkeypatch, capsys):
    monkeypatch.setenv(plugins.VARIABLE, "")
    with pytest.raises(ConfigError, match=r"unknown method 'align_uniform'; known: .*byol, "):
        run.main(["--dry-run", "method.name=align_uniform"])
    assert run.main(["--include", str(PLUGIN), "--dry-run", "method.name=align_uniform"]) == 0
    assert "uniformity: 1.0" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "METHOD = 3", "from pretrain.methods.byol import METHOD"])
def test_a_module_that_states_no_method_of_its_name_is_refused(text, tmp_path, monkeypatch):
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / f"odd{len(text)}.py").write_text(text)
    monkeypatch.setenv(plugins.VARIABLE, str(tmp_path))
    name = f"odd{len(text)}"
    with pytest.raises(ConfigError, match=rf"{name}\.py must define METHOD = Method\(name='{name}', ...\)"):
        methods.get(name)
