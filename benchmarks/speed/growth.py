"""How cost grows with images, views, classes and learning rates: the largest size against the smallest, and all between.

Synthetic inputs, one thread, CPU seconds of the process. `plots.py` draws the points; `report.py` has the result files.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

from benchmarks.speed import Comparison, Growth, Row, Setup, in_turn

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
    setup: Setup, setting: str, axis: str, sizes: Sequence[int], run: Callable[[int], Callable[[], object]]
) -> Comparison:
    """Compare the largest size with the smallest in turn; the points are medians of three runs."""
    import torch

    torch.set_num_threads(1)
    runs = {size: partial(_cpu_seconds, run(size)) for size in sizes}
    first, last = sizes[0], sizes[-1]
    pairs = in_turn(setup, runs[last], runs[first])
    points = [(float(size), statistics.median(once() for _ in range(3))) for size, once in runs.items()]
    return Comparison(
        "CPU seconds", setting, f"{last:,} {axis}", f"{first:,}", pairs, "times as long", Growth(axis, points)
    )


def _cpu_seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


ROWS = (
    Row("growth_images", "kNN by the images of the bank", knn),
    Row("growth_views", "views of an image by their number", views),
    Row("growth_classes", "a linear probe by its classes", classes),
    Row("growth_rates", "a linear probe by its learning rates", rates),
)
