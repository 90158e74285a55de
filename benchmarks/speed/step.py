"""The whole pretraining step beside the bare network time: K x forward and backward online, K x forward target.

Both run on the same views in the same memory format, in turn; the step adds normalisation, losses, LARS and the moving
average. Reading and augmenting images is `views.py`'s matter.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":  # as a plain script: the repository's root in place of this folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent.parent)

from backbench.errors import run_cli
from benchmarks import speed


def main(argv: list[str] | None = None) -> int:
    """Print seconds of both sides and the overhead of each pair of rounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="photos_r18_cpu", help="recipe (its data are not read)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("override", nargs="*", metavar="key=value")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to a file")
    args = parser.parse_intermixed_args(argv)

    import torch

    from pretrain import precision, train
    from pretrain.config import load
    from pretrain.data import to_device

    config = load(args.config, args.override)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
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

    def whole() -> None:
        batch = to_device(pixels, config.data, device, torch.float32)
        train.train_step(online, target, optimizer, scaler, batch, config, step=1, lr=1e-3)
        if target is not None:
            target.follow(online, 0.99)

    bare()  # warm-up
    whole()
    rows = [(_seconds(whole, device), _seconds(bare, device)) for _ in range(args.rounds)]
    setting = f"{config.model.backbone}, {config.optim.batch} x {views} views of {size} px, {device.type}"
    speed.report(
        speed.Comparison("seconds per step", setting, "whole step", "network alone", rows, "times as long"), args.json
    )
    return 0


def _seconds(run: Callable[[], None], device: object) -> float:
    import torch

    start = time.perf_counter()
    run()
    if str(device).startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    run_cli(main, single=True)
