"""How the ranks of a job agree on a part of its store that no rank of an earlier start has written to."""

from __future__ import annotations

import time
import uuid

from torch.distributed import PrefixStore, Store

_POLL_S = 0.02


def fresh(store: Store, rank: int, size: int, patience: float) -> Store:
    """A part of the store for this start of the job's ranks.

    torchrun's agent keeps one store while it restarts its ranks. In it are still the addresses of ranks that have ended
    (https://github.com/pytorch/pytorch/issues/135712).
    Every rank therefore writes a word of its own, and rank 0 answers it with the word that prefixes all further keys.

    Raises:
        RuntimeError: a rank did not write, or rank 0 did not answer, within `patience` seconds.
    """
    own = uuid.uuid4().hex
    if rank:
        store.set(f"hello/{rank}", own)
        common = store.get(f"answer/{own}").decode()  # waits, as long as the store's own timeout
        store.set(f"{common}/met/{rank}", "")
        return PrefixStore(common, store)
    answered: set[str] = set()
    deadline = time.monotonic() + patience
    while not all(store.check([f"{own}/met/{other}"]) for other in range(1, size)):
        for other in range(1, size):
            if store.check([f"hello/{other}"]):
                word = store.get(f"hello/{other}").decode()
                if word not in answered:  # perhaps of a rank that has ended: the one that replaces it comes later
                    store.set(f"answer/{word}", own)
                    answered.add(word)
        if time.monotonic() > deadline:
            raise RuntimeError(f"not all of the {size} ranks came within {patience} s")
        time.sleep(_POLL_S)
    return PrefixStore(own, store)
