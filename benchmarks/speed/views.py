"""Views per core-second at 224 px on JPEG photographs, beside lightly's BYOL transform; normalisation counted on both sides.

Both sides read the same files, one process, one thread, in turn; the CPU time of the process is what is counted. lightly
(`pip install backbench[speed]`) decodes once and makes its views one by one, as its own loader does.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":  # as a plain script: the repository's root in place of this folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent.parent)

from backbench.data.decode import EXTENSIONS
from backbench.errors import BackbenchError, run_cli
from benchmarks import speed


def main(argv: list[str] | None = None) -> int:
    """Print views per core-second of both sides and the ratio of each pair of rounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, required=True, help="a folder of photographs, searched through")
    parser.add_argument("--count", type=int, default=60, help="images per round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--views", type=int, default=4, metavar="K")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to a file")
    args = parser.parse_args(argv)
    paths = sorted(p for p in args.images.rglob("*") if p.suffix.lower() in EXTENSIONS)[: args.count]
    if not paths:
        raise BackbenchError(f"{args.images}: no images in it")

    import cv2
    import torch

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    ours, theirs = our_side(paths, args.views, args.size), lightly_side(paths, args.views, args.size)
    ours(0), theirs(0)  # warm-up: files into the page cache, code paths compiled
    rows = [(_rate(ours, r, paths, args.views), _rate(theirs, r, paths, args.views)) for r in range(1, args.rounds + 1)]
    setting = f"{len(paths)} images, K={args.views}, {args.size} px"
    speed.report(
        speed.Comparison("views per core-second", setting, "backbench", "lightly", rows, "times as many"), args.json
    )
    return 0


def our_side(paths: list[Path], views: int, size: int) -> Callable[[int], object]:
    """Decode, K views, collate and normalise a round of images, as a worker and the device do."""
    import numpy as np
    import torch

    from backbench.data.decode import decode_rgb, read_bytes
    from pretrain.config import DataConfig, ViewsConfig
    from pretrain.data import to_device
    from pretrain.views import make_views

    config, data = ViewsConfig(), DataConfig(size=size)

    def run(epoch: int) -> object:
        batch = []
        for index, path in enumerate(paths):
            image = decode_rgb(read_bytes(path), str(path))
            batch.append(make_views(image, config, views=views, size=size, seed=0, epoch=epoch, index=index))
        return to_device(torch.from_numpy(np.stack(batch)), data, torch.device("cpu"), torch.float32)

    return run


def lightly_side(paths: list[Path], views: int, size: int) -> Callable[[int], object]:
    """Decode, K views by BYOLView1Transform (crop, flip, jitter, grey, blur, to tensor, normalise), stack."""
    import torch
    from lightly.transforms.byol_transform import BYOLView1Transform
    from PIL import Image

    transform = BYOLView1Transform(input_size=size)

    def run(epoch: int) -> object:
        torch.manual_seed(epoch)
        batch = []
        for path in paths:
            image = Image.open(path).convert("RGB")
            batch.append(torch.stack([transform(image) for _ in range(views)]))
        return torch.stack(batch)

    return run


def _rate(side: Callable[[int], object], epoch: int, paths: list[Path], views: int) -> float:
    start = time.process_time()
    side(epoch)
    return len(paths) * views / (time.process_time() - start)


if __name__ == "__main__":
    run_cli(main, single=True)
