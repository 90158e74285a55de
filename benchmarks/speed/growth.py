"""How cost grows with images, views, classes, rates and workers: the largest size against the smallest, and all between.

Synthetic inputs, one thread. CPU seconds of the process; wall seconds for workers, whose gain ends with the free cores.
`plots.py` draws the points; `report.py` has the result files.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.speed import Comparison, Growth, Row, Setup, in_turn
from benchmarks.speed._photographs import described, photographs

if TYPE_CHECKING:
    import numpy as np

_WIDTH = 512  # features of an image


def knn(setup: Setup) -> Comparison:
    """20 nearest neighbours of 500 queries in banks of 512 features."""
    import torch

    from backbench.embeddings import neighbours

    def run(size: int) -> Callable[[], object]:
        generator = torch.Generator().manual_seed(0)
        bank, query = (torch.randn(n, _WIDTH, generator=generator) for n in (size, 500))
        return partial(neighbours, query, bank, 20, metric="cosine")

    sizes = [100, 200] if setup.quick else [2_500, 5_000, 10_000, 20_000, 40_000]
    return _growing(setup, f"20-NN of 500 queries, {_WIDTH} features", "images", sizes, run)


def views(setup: Setup) -> Comparison:
    """Views of 224 px of one decoded image."""
    import numpy as np

    from pretrain.config import ViewsConfig
    from pretrain.views import make_views

    image = np.random.default_rng(0).integers(0, 256, (375, 500, 3), dtype=np.uint8)

    def run(count: int) -> Callable[[], object]:
        def several() -> None:
            for index in range(1 if setup.quick else 10):
                make_views(image, ViewsConfig(), views=count, size=224, seed=0, epoch=0, index=index)

        return several

    sizes = [1, 2] if setup.quick else [1, 2, 4, 8, 16]
    return _growing(setup, "views of 224 px of 10 images of 500 x 375 px", "views", sizes, run)


def classes(setup: Setup) -> Comparison:
    """A linear probe's epoch at one rate."""
    sizes = [2, 4] if setup.quick else [10, 30, 100, 300, 1_000]
    return _growing(setup, _probed(setup), "classes", sizes, lambda size: _probe(setup, size, 1))


def rates(setup: Setup) -> Comparison:
    """A linear probe's epoch on 100 classes."""
    sizes = [1, 2] if setup.quick else [1, 2, 4, 8, 16]
    return _growing(setup, f"{_probed(setup)}, 100 classes", "rates", sizes, lambda size: _probe(setup, 100, size))


def workers(setup: Setup) -> Comparison:
    """Decode JPEGs and make two views of each in worker processes that are already running."""
    from torch.utils.data import DataLoader

    with photographs(setup, 8 if setup.quick else 200) as paths:

        def run(count: int) -> Callable[[], object]:
            images: Any = _Views(paths)
            loader = DataLoader(images, batch_size=4, num_workers=count, persistent_workers=True)
            return lambda: sum(1 for _ in loader)

        sizes = [1, 2] if setup.quick else [1, 2, 4]
        setting = f"two views of 224 px of {described(setup, paths)}"
        return _growing(setup, setting, "workers", sizes, run, time.perf_counter)


class _Views:
    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        from backbench.data.decode import decode_rgb, read_bytes
        from pretrain.config import ViewsConfig
        from pretrain.views import make_views

        path = self.paths[index]
        image = decode_rgb(read_bytes(path), str(path))
        return make_views(image, ViewsConfig(), views=2, size=224, seed=0, epoch=0, index=index)


def _probed(setup: Setup) -> str:
    return f"one epoch of a linear probe on {_images(setup):,} x {_WIDTH} features"


def _images(setup: Setup) -> int:
    return 256 if setup.quick else 10_000


def _probe(setup: Setup, count: int, heads: int) -> Callable[[], object]:
    import torch

    from transfer.heads import Classifier, Heads
    from transfer.supervised import Order, SgdConfig, batches_of, fit

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(_images(setup), _WIDTH, generator=generator)
    y = torch.randint(count, (len(x),), generator=generator)
    config = SgdConfig(epochs=1, batch=256)
    order = Order(len(x), config.batch, config.epochs, 0)

    def run() -> None:
        model = Classifier(None, Heads(_WIDTH, count, [0.1] * heads, 0))
        fit(model, batches_of(x, y, order), config, order, device=torch.device("cpu"))

    return run


def _growing(
    setup: Setup,
    setting: str,
    axis: str,
    sizes: Sequence[int],
    run: Callable[[int], Callable[[], object]],
    clock: Callable[[], float] = time.process_time,
) -> Comparison:
    """Compare the largest size with the smallest in turn; the points are medians of three runs."""
    import torch

    torch.set_num_threads(1)
    runs = {size: partial(_seconds, run(size), clock) for size in sizes}
    first, last = sizes[0], sizes[-1]
    pairs = in_turn(setup, runs[last], runs[first])
    points = [(float(size), statistics.median(once() for _ in range(3))) for size, once in runs.items()]
    quantity = "CPU seconds" if clock is time.process_time else "wall seconds"
    return Comparison(quantity, setting, f"{last:,} {axis}", f"{first:,}", pairs, "times as long", Growth(axis, points))


def _seconds(run: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    run()
    return clock() - start


ROWS = (
    Row("growth_images", "kNN by the images of the bank", knn),
    Row("growth_views", "views of an image by their number", views),
    Row("growth_classes", "a linear probe by its classes", classes),
    Row("growth_rates", "a linear probe by its learning rates", rates),
    Row("growth_workers", "views of JPEGs by the number of worker processes", workers),
)
