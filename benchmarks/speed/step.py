"""Time the whole pretraining step and its networks alone: K x forward and backward online, K x forward target.

Both run on the same views in the same memory format, in turn; the step adds normalisation, losses, LARS and the moving
average. `views.py` measures reading and augmenting images.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

from benchmarks.speed import Comparison, Row, Setup, in_turn, seconds


def small(setup: Setup) -> Comparison:
    """ResNet-18 on views of 32 px, as `photos_r18_cpu` trains it."""
    return beside_the_network(setup, "photos_r18_cpu", ["optim.batch=8"] if setup.quick else [])


def beside_the_network(setup: Setup, recipe: str, overrides: Sequence[str], note: str = "") -> Comparison:
    """Seconds of a recipe's step and of its networks alone; the recipe's data are not read."""
    whole, bare, setting = sides(setup, recipe, overrides)
    pairs = in_turn(setup, lambda: seconds(whole, setup.device), lambda: seconds(bare, setup.device))
    return Comparison("seconds per step", setting + note, "whole step", "network alone", pairs, "times as long")


def sides(
    setup: Setup, recipe: str, overrides: Sequence[str]
) -> tuple[Callable[[], object], Callable[[], object], str]:
    """(the whole step, which returns the online network; the networks alone; sizes in words)."""
    import torch

    from pretrain import precision, train
    from pretrain.config import load
    from pretrain.data import to_device

    config = load(recipe, list(overrides))
    device = torch.device(setup.device)
    online, target, optimizer, scaler = train.build_all(config, device)
    views, size = config.method.views, config.data.size
    pixels = torch.randint(0, 256, (config.optim.batch, views, size, size, 3), dtype=torch.uint8)
    ready = to_device(pixels, config.data, device, torch.float32)

    def bare() -> None:
        online.zero_grad(set_to_none=True)
        with torch.autocast(device.type, **precision.autocast_fields(config)):
            if target is not None:
                target(ready)
            online(ready).p.sum().backward()

    def whole() -> torch.nn.Module:
        batch = to_device(pixels, config.data, device, torch.float32)
        train.train_step(online, target, optimizer, scaler, batch, config, step=1, lr=1e-3)
        if target is not None:
            target.follow(online, 0.99)
        return online

    return whole, bare, f"{config.model.backbone}, {config.optim.batch} x {views} views of {size} px, {device.type}"


def small_maps(setup: Setup) -> Comparison:
    """Forward and backward pass of ResNet-18 on views of 32 px, with our convolutions for a CPU and with torch's."""
    import torch

    from model_zoo.architecture import Architecture
    from model_zoo.resnet import build
    from pretrain.small_maps import use_small_maps

    views = 16 if setup.quick else 128
    theirs = build(Architecture(name="resnet18")).to(setup.device).to(memory_format=torch.channels_last)
    ours = copy.deepcopy(theirs)
    use_small_maps(ours)
    x = torch.randn(views, 3, 32, 32, device=setup.device).contiguous(memory_format=torch.channels_last)

    def step(network: torch.nn.Module) -> Callable[[], object]:
        def run() -> None:
            network.zero_grad(set_to_none=True)
            network(x).sum().backward()

        return run

    mine, other = step(ours), step(theirs)
    pairs = in_turn(setup, lambda: seconds(mine, setup.device), lambda: seconds(other, setup.device))
    setting = f"resnet18, {views} views of 32 px, {setup.device}"
    return Comparison("seconds per forward and backward pass", setting, "small maps", "torch", pairs, "times as long")


ROWS = (
    Row("step", "pretraining step, ResNet-18 at 32 px, against its networks alone", small, at_most=1.05),
    Row("small_maps", "our convolutions over small maps on a CPU, against torch's", small_maps, at_most=1.0),
)
