"""Features on the device they fit on. `tests/gpu/test_evaluation.py` has what a GPU is needed for."""

from __future__ import annotations

import torch

from transfer.resident import resident, to_host
from transfer.supervised import Order, batches_of


def test_on_the_cpu_nothing_is_copied():
    x = torch.randn(5, 2)
    assert resident(x, torch.device("cpu")) is x
    parts = [x[:2], x[2:]]
    assert all(found is part for found, part in zip(to_host(iter(parts)), parts, strict=True))


def test_features_that_do_not_fit_stay(monkeypatch):
    x = torch.randn(100, 4)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (3199, 10**9))
    assert resident(x, torch.device("cuda", 0)) is x, "1600 bytes are more than half of 3199"


def test_a_part_is_asked_for_when_the_one_before_is_taken():
    asked = []

    def parts():
        for i in range(3):
            asked.append(i)
            yield torch.zeros(1)

    found = to_host(parts())
    next(found)
    assert asked == [0]


def test_batches_take_the_rows_asked_for():
    x, y = torch.arange(10.0)[:, None], torch.arange(10)
    rows = torch.tensor([1, 3, 5, 7])
    seen = [(features[:, 0].long(), labels) for features, labels in batches_of(x, y, Order(4, 3, 1, seed=0), rows)(0)]
    assert [len(labels) for _, labels in seen] == [3, 1]
    assert all(torch.equal(features, labels) for features, labels in seen)
    assert torch.cat([labels for _, labels in seen]).sort().values.tolist() == rows.tolist()
