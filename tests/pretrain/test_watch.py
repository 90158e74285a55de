"""Flags that are read one step later, as on a GPU: the run and its errors stay the same."""

from __future__ import annotations

import math
import os
import signal

import pytest
import torch

from pretrain import train as loop
from pretrain.train import NonFiniteLoss, train
from pretrain.watch import Step, Watch


@pytest.fixture(params=[0, 1], ids=["at once", "a step later"])
def lag(request, monkeypatch) -> int:
    """Steps between a step and the reading of its flags; `run.log_every` of the tests is long enough for it to be seen."""
    for module in ("watch", "train"):
        monkeypatch.setattr(f"pretrain.{module}.lag", lambda _device: request.param)
    threads = torch.get_num_threads()
    yield request.param
    torch.set_num_threads(threads)


def test_a_step_is_given_back_once_in_order_and_with_what_was_noted(lag):
    watch, seen = Watch(torch.device("cpu")), []
    for number, loss in enumerate((1.0, math.inf, math.nan, 2.0)):
        watch.note(number, 0.1 * number, torch.tensor(loss), stop=number == 3, unreadable=["a.jpg"] * (number == 2))
        seen += watch.settled(everything=False)
        assert len(seen) == number + 1 - lag
    seen += watch.settled(everything=True)
    assert list(watch.settled(everything=True)) == []
    assert seen == [
        Step(0, 0.0, False, False, False, []),
        Step(1, 0.1, True, False, False, []),
        Step(2, 0.2, True, False, True, ["a.jpg"]),
        Step(3, pytest.approx(0.3), False, True, False, []),
    ]


@pytest.mark.slow
@pytest.mark.sample(1)
def test_a_signal_ends_the_run_with_a_checkpoint_that_continues_to_the_same_bits(
    lag, shared_photos, recipe, tmp_path, monkeypatch
):
    config = recipe(shared_photos, "run.log_every=100", "run.checkpoint_every=100")
    train(config, tmp_path / "whole")
    step_as_it_is = loop.train_step

    def signalled(*args, step, **kwargs):
        if step == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return step_as_it_is(*args, step=step, **kwargs)

    monkeypatch.setattr(loop, "train_step", signalled)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run")
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["step"] == 2 + lag
    train(config, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "model.pth").read_bytes() == (tmp_path / "whole" / "model.pth").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("signalled", [False, True], ids=["at a checkpoint", "after a signal"])
def test_weights_of_a_loss_that_is_not_finite_are_not_saved(
    lag, shared_photos, recipe, tmp_path, monkeypatch, signalled
):
    """With a lag the signal of step 3 is acted on in step 4."""
    config = recipe(shared_photos, "run.log_every=100", "run.checkpoint_every=3", "optim.epochs=2.0")
    last = 3 + lag if signalled else 5
    step_as_it_is = loop.train_step

    def failing(*args, step, **kwargs):
        p, parts = step_as_it_is(*args, step=step, **kwargs)
        if step == 3 and signalled:
            os.kill(os.getpid(), signal.SIGINT)
        return p, {"loss": parts["loss"] * math.nan} if step == last else parts

    monkeypatch.setattr(loop, "train_step", failing)
    with pytest.raises(NonFiniteLoss, match=rf"not finite at step {last}, learning rate .*the last good checkpoint"):
        train(config, tmp_path / "run")
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["step"] == 3
