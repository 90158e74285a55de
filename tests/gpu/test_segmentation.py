"""Segmentation on a GPU: MMSegmentation loses as on the CPU, gradients and norm statistics included."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch
from backbones import make_backbone
from segmented import scenes, tiny
from torch import Tensor

from transfer.detection.job import Job
from transfer.segmentation.engines import mmseg as engine


def step(folder: Path, head: str, device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
    """Return losses, a gradient and statistics after a step on one batch, and the labels of an image before it."""
    split, spec = scenes(folder / "data", 4), tiny(head, auxiliary=True)
    mine = Job(folder / "run", 0, device)
    taught = engine.new_course(spec, make_backbone("resnet18", 0.25), split, mine)
    (labels,) = engine.segment(taught.model, spec, split, [0], mine)
    (batch,) = islice(taught.loader(0), 1)
    found = taught.losses(taught.model.train(), batch)
    torch.stack(list(found.values())).sum().backward()
    found |= {name: p.grad for name, p in taught.model.named_parameters() if name.endswith("backbone.conv1.weight")}
    found |= {n: b for n, b in taught.model.named_buffers() if n.endswith("layer1.0.bn1.running_mean")}
    return {name: value.detach().cpu() for name, value in found.items()}, torch.from_numpy(labels)


@pytest.mark.parametrize("head", ["fcn", "upernet"])
def test_losses_are_the_cpus(device, tmp_path, head):
    """The same crops: losses to 1e-3, gradients and statistics to 2%, labels in all but one pixel of a hundred."""
    if reason := engine.missing():
        pytest.skip(reason)
    engine.prepare()
    (found, labels), (expected, truth) = (
        step(tmp_path / "a", head, device),
        step(tmp_path / "b", head, torch.device("cpu")),
    )
    assert set(found) == set(expected) and len(found) == 4
    for name, value in expected.items():
        if "loss" in name:
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5, msg=name)
        else:
            assert float((found[name] - value).norm() / value.norm()) < 0.02, name
    assert (labels == truth).float().mean() > 0.99
