"""The online linear probe: its own formula in torch's words, labels in part, and a network that does not notice it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pretrain import probe as module
from pretrain.data import open_split
from pretrain.probe import Probe
from pretrain.train import build_all, train

CPU = torch.device("cpu")


@pytest.fixture
def made(shared_photos, recipe):
    """A probe of float64 on 8 features, of 30 images of two classes that are labelled but for the last 5; its network."""
    config = recipe(shared_photos, "run.float64=true")
    split = open_split(config.data)
    split = dataclasses.replace(split, labels=np.where(np.arange(30) < 25, split.labels, -1))
    online, *_ = build_all(config, CPU)
    return Probe(online, 512, split, config, CPU), online, split


def test_steps_are_those_of_torchs_cross_entropy_and_sgd(made):
    probe, online, split = made
    head = nn.Linear(512, 2, dtype=torch.float64)
    nn.init.zeros_(head.weight), nn.init.zeros_(head.bias)
    optimizer = torch.optim.SGD(head.parameters(), lr=module.RATE, momentum=module.MOMENTUM)
    right = seen = 0
    for rows in ([0, 20, 29, 3], [27, 16, 1, 2], [14, 15, 24, 28]):
        views = torch.rand(2, 4, 3, 32, 32, dtype=torch.float64)
        with torch.no_grad():
            online(views)
            x = F.normalize(torch.stack([online.backbone(view) for view in views]), dim=2)
        probe.learn(torch.tensor(rows))
        y = torch.from_numpy(split.labels)[rows].repeat(2)
        logits = head(x.flatten(0, 1))
        right += int((logits.argmax(dim=1) == y).sum())
        seen += int((y >= 0).sum())
        optimizer.zero_grad()
        F.cross_entropy(logits, y, ignore_index=-1).backward()
        optimizer.step()
        torch.testing.assert_close(probe.weight, torch.cat([head.weight, head.bias[:, None]], dim=1).detach())
    assert float(probe.weight.abs().max()) > 0.1
    assert probe.report() == {"online_linear": pytest.approx(100 * right / seen)}
    assert probe.report() == {}  # nothing since


def test_it_learns_what_a_line_can_tell_apart(made):
    probe, online, split = made
    generator = torch.Generator().manual_seed(0)
    labels = torch.from_numpy(split.labels)
    early = 0.0
    for step in range(60):
        if step in (10, 50):
            early = early or probe.report()["online_linear"]
        rows = torch.randint(0, 25, (16,), generator=generator)
        features = torch.randn(16, 512, generator=generator, dtype=torch.float64) + 0.2 * labels[rows, None]
        with torch.no_grad():
            online.projector(features)
        probe.learn(rows)
    assert probe.report()["online_linear"] > 90 > early + 10


def test_a_batch_without_labels_changes_nothing(made):
    probe, online, _ = made
    with torch.no_grad():
        online.projector(torch.rand(4, 512, dtype=torch.float64))
    probe.learn(torch.tensor([25, 26, 27, 28]))
    assert not probe.weight.any() and probe.report() == {}


def test_a_state_of_another_shape_is_refused(made):
    probe, *_ = made
    state = {name: value.clone() for name, value in probe.state().items()}
    probe.load({})  # of an older checkpoint
    probe.load(state)
    for wrong in (state | {"momentum": torch.zeros(3)}, {"weight": state["weight"]}, state | {"tally": 1}):
        with pytest.raises(RuntimeError, match=r"the online probe's (momentum|tally) has another shape"):
            probe.load(wrong)


@pytest.mark.slow
def test_the_network_is_the_same_with_and_without_it(shared_photos, recipe, tmp_path):
    threads = torch.get_num_threads()
    for name in ("true", "false"):
        train(recipe(shared_photos, f"run.linear_probe={name}", "optim.epochs=0.8"), tmp_path / name)
    torch.set_num_threads(threads)
    assert (tmp_path / "true" / "model.pth").read_bytes() == (tmp_path / "false" / "model.pth").read_bytes()
    assert ["online_linear" in (tmp_path / name / "metrics.jsonl").read_text() for name in ("true", "false")] == [
        True,
        False,
    ]
    saved = torch.load(tmp_path / "true" / "last.ckpt", weights_only=True)["probe"]
    assert saved["weight"].any() and torch.load(tmp_path / "false" / "last.ckpt", weights_only=True)["probe"] == {}
