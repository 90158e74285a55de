"""The 200 nearest of 100,000 rows beside faiss's flat index (`pip install backbench[speed]`).

faiss has its bank normalised and copied beforehand; ours normalises within the measured time. `limit` is what the product of
queries and bank alone takes by torch, in units of faiss's search.
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.speed import Comparison, Row, Setup, busy_seconds, in_turn

K = 200


def neighbours(setup: Setup) -> Comparison:
    """Seconds for 2,048 queries on the CPU."""
    import faiss
    import torch
    import torch.nn.functional as F

    rows, queries, features = (5_000, 64, 32) if setup.quick else (100_000, 2_048, 2_048)
    faiss.omp_set_num_threads(torch.get_num_threads())
    generator = torch.Generator().manual_seed(0)
    bank, query = (torch.randn(n, features, generator=generator) for n in (rows, queries))
    index = faiss.IndexFlatIP(features)
    index.add(F.normalize(bank).numpy())
    asked = F.normalize(query).numpy()

    def theirs() -> float:
        return busy_seconds(lambda: index.search(asked, K), "cpu")

    pairs = in_turn(setup, ours(bank, query), theirs)
    room = torch.empty(queries, 4096)

    def product() -> None:
        for part in bank.split(4096):
            torch.mm(query, part.T, out=room[:, : len(part)] if len(part) < 4096 else room)

    limits = sorted(a / b for a, b in in_turn(setup, lambda: busy_seconds(product, "cpu"), theirs))
    setting = f"{queries:,} queries, bank {rows:,} x {features}, k={K}, {torch.get_num_threads()} threads"
    limit = limits[len(limits) // 2]
    return Comparison("busy seconds", setting, "backbench", "faiss flat", pairs, "times as long", limit=limit)


def ours(bank: object, query: object) -> Callable[[], float]:
    """Seconds of the kNN protocol's search, with its default chunks."""
    from backbench import embeddings
    from transfer.tasks import knn

    chunk = knn.Config().chunk
    find = embeddings.neighbours
    return lambda: busy_seconds(lambda: find(query, bank, K, metric="cosine", chunk=chunk), "cpu")  # type: ignore[arg-type]


def without_faiss(_setup: Setup) -> str | None:
    """Why faiss cannot be compared with here, or None."""
    from importlib.util import find_spec

    return None if find_spec("faiss") else "faiss-cpu is absent; `pip install 'backbench[speed]'` installs it"


ROWS = (Row("neighbours", "kNN on the CPU against faiss's flat index", neighbours, at_most=1.0, missing=without_faiss),)
