"""Ranks meet in a store that holds the keys of ranks that have ended."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch.distributed import HashStore, PrefixStore

from backbench.rendezvous import fresh


def meet(store: HashStore, size: int) -> list[PrefixStore]:
    """What each rank of one start gets, rank 0 last to come."""
    with ThreadPoolExecutor(size) as ranks:
        return list(ranks.map(lambda rank: fresh(store, rank, size, 20), range(size)[::-1]))[::-1]


def test_a_restart_reads_nothing_of_the_start_before():
    store = HashStore()
    store.set_timeout(timedelta(seconds=20))
    fresh_before = meet(store, 3)
    for rank, part in enumerate(fresh_before):
        part.set(f"address/{rank}", f"before{rank}")
    parts = meet(store, 3)
    assert not any(part.check([f"address/{rank}"]) for part in parts for rank in range(3))
    parts[1].set("address/1", "now")
    assert [part.get("address/1") for part in parts] == [b"now"] * 3  # one part for all
    assert fresh_before[0].get("address/1") == b"before1"


def test_a_restart_may_be_of_fewer_or_more_ranks():
    store = HashStore()
    store.set_timeout(timedelta(seconds=20))
    for size in (3, 2, 4):
        parts = meet(store, size)
        parts[-1].set("key", str(size))
        assert {part.get("key") for part in parts} == {str(size).encode()}


def test_a_rank_that_does_not_come_is_waited_for_no_longer_than_said():
    store = HashStore()
    store.set("hello/1", "of a rank that has ended")
    with pytest.raises(RuntimeError, match=r"not all of the 2 ranks came within 0\.2 s"):
        fresh(store, 0, 2, 0.2)
