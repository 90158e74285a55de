"""Count views per core-second at 224 px on JPEG photographs, ours and lightly's BYOL transform's, with normalisation.

Both sides read the same files in turn, in one process and one thread; the CPU time of the process counts. lightly
(`pip install backbench[speed]`) decodes once and makes its views one by one, as its own loader does.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

from benchmarks.speed import Comparison, Row, Setup, in_turn
from benchmarks.speed._photographs import described, photographs


def views(setup: Setup) -> Comparison:
    """K=4 views of 224 px of each of 60 images a round."""
    import cv2
    import torch

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    k, size = 4, 224
    with photographs(setup, 4 if setup.quick else 60) as paths:
        ours, theirs = our_side(paths, k, size), lightly_side(paths, k, size)
        pairs = in_turn(setup, _rate(ours, paths, k), _rate(theirs, paths, k))
        setting = f"{described(setup, paths)}, K={k}, {size} px"
    return Comparison("views per core-second", setting, "backbench", "lightly", pairs, "times as many")


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


def _rate(side: Callable[[int], object], paths: list[Path], views: int) -> Callable[[], float]:
    epochs = count()

    def rate() -> float:
        start = time.process_time()
        side(next(epochs))
        return len(paths) * views / (time.process_time() - start)

    return rate


def without_lightly(_setup: Setup) -> str | None:
    """Why lightly cannot be compared with here, or None."""
    from importlib.util import find_spec

    return None if find_spec("lightly") else "lightly is absent; `pip install 'backbench[speed]'` installs it"


ROWS = (Row("views", "K=4 views of 224 px a core-second, against lightly", views, at_least=4, missing=without_lightly),)
