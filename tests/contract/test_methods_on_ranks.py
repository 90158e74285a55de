"""Every pretraining method on two ranks with half the batch each equals one with the whole batch, and resumes exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pretraining import MADE_SMALL, assert_identical, run_on_two_ranks, tiny_recipe, write_photos
from rank_steps import checksums, on_two_ranks, steps_of

from pretrain import methods
from pretrain import train as loop
from pretrain.train import train

pytestmark = pytest.mark.slow  # starts processes, trains every method

ALL = methods.names()
CLOSE = {"rtol": 1e-7, "atol": 1e-9}  # in double precision: sums in another order


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with what two processes found for every method."""
    place = tmp_path_factory.mktemp("ranks")
    on_two_ranks(ALL, place)
    return place


@pytest.mark.parametrize("name", ALL)
def test_two_ranks_have_the_loss_the_gradients_and_the_memory_of_one(name, ranks):
    one, (a, b) = steps_of(name), (torch.load(ranks / f"{rank}-{name}.pt", weights_only=True) for rank in range(2))
    means = [(x + y) / 2 for x, y in zip(a["losses"], b["losses"], strict=True)]
    assert means == pytest.approx(one["losses"], rel=1e-9)
    assert one["gradients"].keys() == a["gradients"].keys()
    for part in ("gradients", "buffers"):
        for key, expected in one[part].items():
            torch.testing.assert_close(a[part][key], expected, **CLOSE, msg=lambda m, k=key: f"{k}: {m}")
    assert checksums(a["gradients"]) == b["gradients"]
    assert checksums(a["buffers"]) == checksums(b["buffers"])


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"))


@pytest.mark.sample(0)
@pytest.mark.parametrize("name", ALL)
def test_a_run_of_two_processes_ends_with_the_weights_of_one(name, photos, tmp_path):
    fields = f"method.name={name}", "run.float64=true", "optim.trust_coefficient=0.1", *MADE_SMALL.get(name, ())
    config = tiny_recipe(photos, *fields)
    train(config, tmp_path / "one")
    run_on_two_ranks(config, tmp_path / "two")
    one, two = (torch.load(tmp_path / out / "last.ckpt", weights_only=True)["online"] for out in ("one", "two"))
    for key, expected in one.items():
        torch.testing.assert_close(two[key], expected, rtol=1e-6, atol=1e-6, msg=lambda m, k=key: f"{k}: {m}")


class Stopped(Exception):
    """The run ends here."""


@pytest.mark.sample(1)
@pytest.mark.parametrize("name", ALL)
def test_a_resumed_run_has_the_same_bits(name, photos, tmp_path, monkeypatch, capsys):
    config = tiny_recipe(photos, f"method.name={name}", "optim.trust_coefficient=0.01", *MADE_SMALL.get(name, ()))
    train(config, tmp_path / "whole")
    assert "collapse" not in capsys.readouterr().err
    step_as_it_is = loop.train_step

    def until_the_fourth(*args: Any, step: int, **fields: Any) -> Any:
        if step == 3:
            raise Stopped
        return step_as_it_is(*args, step=step, **fields)

    monkeypatch.setattr(loop, "train_step", until_the_fourth)
    with pytest.raises(Stopped):
        train(config, tmp_path / "resumed")  # its last checkpoint has two steps
    monkeypatch.undo()
    train(config, tmp_path / "resumed", resume=True)
    whole, resumed = (torch.load(tmp_path / out / "last.ckpt", weights_only=True) for out in ("whole", "resumed"))
    assert whole["step"] == 5
    assert_identical(whole, resumed)
