"""kNN and an 11-rate linear probe on features of ImageNet's size: 1.28 M x 2048 in the bank, 50 k queries, 1000 classes.

Features are synthetic. On a GPU the limit is ten minutes for both. On the CPU the row is a five-hundredth of that size with
three epochs, and the other side is the bare matrix products of the same sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from benchmarks.speed import Comparison, Row, Setup, seconds

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from transfer.tasks.linear_probe import Config

_LIMIT = 600.0
_CLASSES = 1000


def both(setup: Setup) -> Comparison:
    """Seconds of both protocols, as their tasks compute them from cached features."""
    import torch

    from transfer.resident import resident
    from transfer.tasks import linear_probe

    gpu = setup.device != "cpu"
    share = 1.0 if gpu and not setup.quick else 0.002 if not setup.quick else 0.0005
    epochs = 100 if gpu and not setup.quick else 3
    device = torch.device(setup.device)
    train, test, width = round(1_281_167 * share), round(50_000 * share), 2048
    generator = torch.Generator().manual_seed(0)
    x, query = (torch.randn(rows, width, generator=generator) for rows in (train, test))
    y = torch.randint(_CLASSES, (train,), generator=generator)
    config = linear_probe.Config(epochs=epochs)
    bare = _bare(train, test, width, len(config.rates), epochs, config.batch, device)

    def whole() -> None:
        near = resident(x, device)
        _knn(near, y, query, device)
        _probe(near, y, config, device)

    pairs = []
    for _ in range(1 if gpu or setup.quick else min(3, setup.rounds)):
        taken = seconds(whole, setup.device)
        pairs.append((taken, _LIMIT if gpu else seconds(bare, setup.device)))
    setting = f"{train:,} x {width}, {test:,} queries, {len(config.rates)} rates, {epochs} epochs, {setup.device}"
    setting += "" if gpu and not setup.quick else "; scaled down from 1,281,167 and 50,000, 100 epochs"
    return Comparison("seconds of kNN and probe", setting, "both", "limit" if gpu else "products alone", pairs,
                      "of the limit" if gpu else "times as long")  # fmt: skip


def _knn(x: Tensor, y: Tensor, query: Tensor, device: torch.device) -> None:
    from backbench.embeddings import knn_scores, neighbours

    labels = y.to(device)
    similarity, index = neighbours(query.to(device), x, 200, metric="cosine", chunk=65536)
    for found, near in zip(similarity.split(2048), index.split(2048), strict=True):
        knn_scores(found, labels[near], k=20, classes=_CLASSES, temperature=0.07).argmax(dim=1).cpu()


def _probe(x: Tensor, y: Tensor, config: Config, device: torch.device) -> None:
    from transfer.heads import Classifier
    from transfer.supervised import Order, batches_of, fit
    from transfer.tasks import linear_probe

    order = Order(len(x), config.batch, config.epochs, seed=0)
    heads = linear_probe.new_heads(x.shape[1], _CLASSES, config, 0)
    fit(Classifier(None, heads), batches_of(x, y.to(x.device), order), config, order, device=device)


def _bare(
    train: int, test: int, width: int, rates: int, epochs: int, batch: int, device: torch.device
) -> Callable[[], object]:
    """The matrix products alone: queries by bank, and two products a step of the probe."""
    import torch

    bank, queries = torch.randn(train, width, device=device), torch.randn(test, width, device=device)
    rows = torch.randn(min(batch, train), width, device=device)
    weights = torch.randn(rates * _CLASSES, width, device=device)

    def run() -> None:
        for part in queries.split(2048):
            (part @ bank.T).topk(min(200, train))
        for _ in range(epochs * -(-train // batch)):
            logits = rows @ weights.T
            logits.T @ rows

    return run


ROWS = (
    Row(
        "imagenet_size",
        "kNN and an 11-rate linear probe on features of ImageNet's size, against ten minutes",
        both,
        at_most=1,
        judged_on="cuda",
    ),
)
