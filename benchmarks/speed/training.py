"""Pretraining of a ResNet-50 at 224 px: our step beside its networks, beside lightly's BYOL, and the data beside the decoder.

On the CPU all are scaled down to a ResNet-18 at 64 px, and say so.
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.speed import Comparison, Row, Setup, busy_seconds, in_turn
from benchmarks.speed._photographs import as_split, described, photographs
from benchmarks.speed.step import beside_the_network, sides
from benchmarks.speed.views import without_lightly

_SMALL = ["model.backbone=resnet18", "data.size=64", "run.amp=none"]
_NOTE = "; scaled down from resnet50, 224 px, batch 64, bf16"


def _sizes(setup: Setup) -> tuple[list[str], str]:
    if setup.device != "cpu":
        return ["optim.batch=64"], ""
    return [*_SMALL, f"optim.batch={4 if setup.quick else 16}"], _NOTE


def msbreg(setup: Setup) -> Comparison:
    """MSBReg with K=4, the whole step against K forward and backward passes and K passes of the target."""
    words, note = _sizes(setup)
    return beside_the_network(setup, "imagenet_r50_300ep", words, note)


def byol(setup: Setup) -> Comparison:
    """BYOL with K=2 against lightly's: the same network, heads of 4096 and 256, number type and views."""
    words, note = _sizes(setup)
    words += ["method.name=byol", "method.views=2", "method.lambda_s=0", "method.lambda_b=0", "model.hidden=4096"]
    words += ["model.outputs=256"]
    ours, _, setting = sides(setup, "imagenet_r50_300ep", words)
    theirs = _lightly(setup, words)
    pairs = in_turn(setup, *(lambda run=run: busy_seconds(run, setup.device) for run in (ours, theirs)))
    unit = "seconds per BYOL step" if setup.device != "cpu" else "processor seconds per BYOL step"
    return Comparison(unit, setting + note, "backbench", "lightly", pairs, "times as long")


def _lightly(setup: Setup, words: list[str]) -> Callable[[], object]:
    """A step of lightly's BYOL example: two networks, symmetric loss, SGD, momentum update."""
    import copy

    import torch
    import torchvision
    from lightly.loss import NegativeCosineSimilarity
    from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
    from lightly.models.utils import deactivate_requires_grad, update_momentum

    from pretrain import precision
    from pretrain.config import load
    from pretrain.data import to_device

    config = load("imagenet_r50_300ep", words)
    device, batch, size = torch.device(setup.device), config.optim.batch, config.data.size
    network = getattr(torchvision.models, config.model.backbone)()
    width = network.fc.in_features
    backbone = torch.nn.Sequential(*list(network.children())[:-1]).to(device)
    projector = BYOLProjectionHead(width, 4096, 256).to(device)
    predictor = BYOLPredictionHead(256, 4096, 256).to(device)
    slow = [copy.deepcopy(part) for part in (backbone, projector)]
    for part in slow:
        deactivate_requires_grad(part)
    loss_of = NegativeCosineSimilarity()
    learned = [p for part in (backbone, projector, predictor) for p in part.parameters()]
    optimizer = torch.optim.SGD(learned, lr=0.06)
    pixels = torch.randint(0, 256, (batch, 2, size, size, 3), dtype=torch.uint8)

    def step() -> None:
        views = to_device(pixels, config.data, device, torch.float32).contiguous()
        for fast, following in zip((backbone, projector), slow, strict=True):
            update_momentum(fast, following, m=0.99)
        with torch.autocast(device.type, **precision.autocast_fields(config)):
            p = [predictor(projector(backbone(view).flatten(1))) for view in views]
            with torch.no_grad():
                z = [slow[1](slow[0](view).flatten(1)) for view in views]
            loss = 0.5 * (loss_of(p[0], z[1]) + loss_of(p[1], z[0]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def pipeline(setup: Setup) -> Comparison:
    """Images a second of the training loader with one worker, against the same work in one process.

    A worker's start takes seconds and is left out: what twelve batches take more than four is eight batches' time.
    """
    import torch

    from pretrain.config import load
    from pretrain.data import Views, make_loader

    count = 8 if setup.quick else 128
    batch = count // 4
    words = [f"optim.batch={batch}", "data.workers=1", "data.name=imagefolder", "run.amp=none"]
    torch.set_num_threads(1)
    with photographs(setup, count) as paths:
        config = load("imagenet_r50_300ep", words)
        split = as_split(paths)
        views = Views(split, config)

        def loaded(stop: int) -> float:
            return busy_seconds(lambda: list(make_loader(split, config, start=0, stop=stop, pin=False)), "cpu")

        def made() -> list[object]:
            return [views[epoch, i] for epoch in (0, 1) for i in range(len(paths))]

        def ours() -> float:
            return 8 * batch / (loaded(12) - loaded(4))

        pairs = in_turn(setup, ours, lambda: 2 * len(paths) / busy_seconds(made, "cpu"))
        setting = f"{described(setup, paths)}, K=4, 224 px, 1 worker"
    return Comparison("images per processor second", setting, "loader", "views in one process", pairs, "times as many")


ROWS = (
    Row("step_r50", "MSBReg K=4 step, ResNet-50 at 224 px, against its networks alone", msbreg, at_most=1.05),
    Row(
        "step_byol",
        "BYOL K=2 step, ResNet-50 at 224 px, against lightly's",
        byol,
        at_most=0.85,
        missing=without_lightly,
    ),
    Row("pipeline", "the data loader with one worker, against the same work in one process", pipeline, at_least=0.9),
)
