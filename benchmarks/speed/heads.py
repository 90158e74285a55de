"""An epoch of the linear probe on cached features: all rates of the sweep beside one rate, and beside the bare products.

A step cannot be cheaper than its two matrix products, and eleven heads have eleven times the columns of one: `limit` is what
the products alone cost for all rates, in units of those for one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.speed import Comparison, Row, Setup, busy_seconds, in_turn

IMAGES, FEATURES, CLASSES, BATCH = 20_000, 2048, 100, 1024


def rates(setup: Setup) -> Comparison:
    """Eleven rates against one."""
    images, features, classes = sizes(setup)
    many = sweep()
    whole, one = (epoch(setup, images, features, classes, each) for each in (many, many[:1]))
    pairs = in_turn(setup, whole, one)
    bare, bare_one = (products(setup, images, features, classes * n) for n in (len(many), 1))
    limits = sorted(a / b for a, b in in_turn(setup, bare, bare_one))
    setting = f"{images:,} x {features}, {classes} classes, batch {BATCH}, {setup.device}"
    what, limit = f"{len(many)} rates", limits[len(limits) // 2]
    return Comparison("busy seconds per epoch", setting, what, "1 rate", pairs, "times as long", limit=limit)


def beside_products(setup: Setup) -> Comparison:
    """Eleven rates against the two products of their steps."""
    images, features, classes = sizes(setup)
    many = sweep()
    whole = epoch(setup, images, features, classes, many)
    pairs = in_turn(setup, whole, products(setup, images, features, classes * len(many)))
    setting = f"{images:,} x {features}, {classes} classes, {len(many)} rates, batch {BATCH}, {setup.device}"
    return Comparison("busy seconds per epoch", setting, "probe", "bare products", pairs, "times as long")


def sweep() -> tuple[float, ...]:
    """The rates of the preset `sweep`."""
    from transfer.tasks import linear_probe

    return linear_probe.Config().rates


def sizes(setup: Setup) -> tuple[int, int, int]:
    """Images, features, classes."""
    return (2 * BATCH, 64, 4) if setup.quick else (IMAGES, FEATURES, CLASSES)


def epoch(setup: Setup, images: int, features: int, classes: int, rates: Sequence[float]) -> Callable[[], float]:
    """Busy seconds of an epoch, from cached features on the CPU to trained heads."""
    import torch

    from transfer.heads import Classifier, Heads
    from transfer.supervised import Order, SgdConfig, batches_of, fit

    device = torch.device(setup.device)
    x = torch.randn(images, features, generator=torch.Generator().manual_seed(0))
    y = torch.arange(images) % classes
    order = Order(images, BATCH, 1, seed=0)

    def run() -> float:
        model = Classifier(None, Heads(features, classes, rates, seed=0))
        config = SgdConfig(batch=BATCH, epochs=1)
        return busy_seconds(lambda: fit(model, batches_of(x, y, order), config, order, device=device), setup.device)

    return run


def products(setup: Setup, images: int, features: int, columns: int) -> Callable[[], float]:
    """Busy seconds of x W^T and E^T x for every batch of an epoch, and nothing else."""
    import torch

    device = torch.device(setup.device)
    x, w, error = (
        torch.randn(*shape, device=device) for shape in ((BATCH, features), (columns, features), (BATCH, columns))
    )
    batches, last = divmod(images, BATCH)

    def run() -> None:
        for size in [BATCH] * batches + [last] * (last > 0):
            x[:size] @ w.T
            error[:size].T @ x[:size]

    return lambda: busy_seconds(run, setup.device)


ROWS = (
    Row("heads_rates", "linear probe, 11 rates against 1", rates, at_most=1.3),
    Row(
        "heads_products", "linear probe, 11 rates against the bare products of its steps", beside_products, at_most=1.1
    ),
)
