"""Features of JPEGs by a ResNet-50 at 224 px, beside the bare network on ready batches and beside lightly's loop.

Ours is what a cell runs: decode, resize, crop, forward, write, check that the network has not moved. lightly's is the loop
of its benchmarks' kNN evaluation: a DataLoader of torchvision transforms on Pillow images, `model(images)`, to the CPU.
On a CPU the processor's time counts, the worker's included: other programs hardly change it.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.speed import Comparison, Row, Setup, busy_seconds, in_turn
from benchmarks.speed._photographs import as_split, described, photographs
from benchmarks.speed.views import without_lightly

_WORKERS = 1


def against_the_network(setup: Setup) -> Comparison:
    """Images a second of our extraction and of the network alone."""
    return _compare(setup, "network alone", _bare)


def against_lightly(setup: Setup) -> Comparison:
    """Images a second of our extraction and of lightly's loop."""
    return _compare(setup, "lightly", _lightly)


def _compare(setup: Setup, name: str, other: Callable[[Setup, list[Path]], Callable[[], object]]) -> Comparison:
    count = 2 if setup.quick else 2048 if setup.device != "cpu" else 256
    setup = (
        setup if setup.device != "cpu" else dataclasses.replace(setup, rounds=min(setup.rounds, 3))
    )  # half a minute each
    with photographs(setup, count) as paths, _ours(setup, paths) as ours:
        theirs = other(setup, paths)
        pairs = in_turn(
            setup, *(lambda run=run: len(paths) / busy_seconds(run, setup.device) for run in (ours, theirs))
        )
        setting = f"resnet50, 224 px, {described(setup, paths)}, {_WORKERS} worker, {setup.device}"
    unit = "images per second" if setup.device != "cpu" else "images per processor second"
    return Comparison(unit, setting, "features", name, pairs, "times as many")


@contextmanager
def _ours(setup: Setup, paths: list[Path]) -> Iterator[Callable[[], object]]:
    import torch

    from backbench.data.splits import ImageSplit
    from model_zoo.architecture import Architecture, InputSpec
    from model_zoo.resnet import build
    from transfer.features import compute
    from transfer.protocol import RunContext

    split = as_split(paths)
    network = build(Architecture(name="resnet50"), seed=0)
    with tempfile.TemporaryDirectory(prefix="backbench-speed-") as folder:
        device = torch.device(setup.device)
        ctx: RunContext[ImageSplit] = RunContext(splits={}, seed=0, device=device, cache=Path(folder), workers=_WORKERS)
        yield lambda: compute(network, InputSpec(size=224), split, ctx)


def _bare(setup: Setup, paths: list[Path]) -> Callable[[], object]:
    import torch

    from model_zoo.architecture import Architecture
    from model_zoo.resnet import build

    network = build(Architecture(name="resnet50"), seed=0).eval().to(setup.device).to(memory_format=torch.channels_last)
    batches = torch.randn(min(128, len(paths)), 3, 224, 224, device=setup.device)
    batches = batches.to(memory_format=torch.channels_last)

    def run() -> None:
        with torch.no_grad():
            for start in range(0, len(paths), 128):
                network(batches[: min(128, len(paths) - start)])

    return run


def _lightly(setup: Setup, paths: list[Path]) -> Callable[[], object]:
    import torch
    import torchvision
    from lightly.data import LightlyDataset
    from torchvision import transforms

    steps = [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor()]
    steps.append(transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    data = LightlyDataset.from_torch_dataset(_Listed(paths, transforms.Compose(steps)))
    network = torchvision.models.resnet50()
    network.fc = torch.nn.Identity()
    network.eval().to(setup.device)

    def run() -> object:
        loader = torch.utils.data.DataLoader(data, batch_size=128, num_workers=_WORKERS)
        with torch.no_grad():
            return torch.cat([network(images.to(setup.device)).flatten(1).cpu() for images, _, _ in loader])

    return run


class _Listed:
    """Images by path, as torchvision's ImageFolder opens them; with a label."""

    def __init__(self, paths: list[Path], transform: Callable[[object], object]) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[object, int]:
        from PIL import Image

        return self.transform(Image.open(self.paths[index]).convert("RGB")), 0


ROWS = (
    Row(
        "features",
        "features of JPEGs, ResNet-50 at 224 px, against the bare network",
        against_the_network,
        at_least=0.9,
    ),
    Row("features_lightly", "the same against lightly's loop", against_lightly, at_least=1.3, missing=without_lightly),
)
