"""Features and probes on image folders and shards: every image once on 1 to 4 ranks and 0 to 3 workers."""

from __future__ import annotations

import collections
import copy
import functools
import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import shards
import torch

from backbench import distributed
from backbench.data import layouts
from backbench.data.splits import ImageSplit
from model_zoo.architecture import Architecture, InputSpec
from model_zoo.resnet import build
from transfer import features
from transfer.augment import crop_and_flip, image_batches
from transfer.protocol import RunContext
from transfer.supervised import Order

IMAGES, BATCH = 37, 12  # the last batch has one image
RANKS, WORKERS = (1, 2, 3, 4), (0, 1, 2, 3)
SPEC = InputSpec(size=16)
ARCH = Architecture(name="resnet18", width=0.25)


@pytest.fixture(scope="module")
def split_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ImageSplit]:
    place = tmp_path_factory.mktemp("shards")

    @functools.cache
    def of(layout: str) -> ImageSplit:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("BACKBENCH_CACHE", str(place / "cache"))
            return layouts.get(layout).read(shards.write(place / layout, layout, IMAGES), "train", dataset="trees")

    return of


def context(cache: Path, workers: int = 0) -> RunContext[ImageSplit]:
    return RunContext(splits={}, seed=0, device=torch.device("cpu"), cache=cache, workers=workers)


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("start", [0, 2, 5])
def test_ranks_share_every_row_of_an_epoch_once(monkeypatch, ranks, start):
    order = Order(IMAGES, BATCH, 3, seed=1)
    alone = list(order.rows())[start:]
    shares = []
    monkeypatch.setattr(distributed, "world_size", lambda: ranks)
    for rank in range(ranks):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append([rows.tolist() for _, rows in order.rows(start)])
    together = [list(itertools.chain(*parts)) for parts in zip(*shares, strict=True)]
    assert together == [rows.tolist() for _, rows in alone]
    last = [row for (epoch, _), rows in zip(alone, together, strict=True) if epoch == 2 for row in rows]
    assert sorted(last) == list(range(IMAGES))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
@pytest.mark.parametrize("layout", shards.LAYOUTS)
def test_a_probes_batches_do_not_depend_on_workers_and_layout(split_of, tmp_path, layout):
    def batches(layout: str, workers: int, start: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        order, ctx = Order(IMAGES, BATCH, 2, 0), context(tmp_path, workers)
        return list(image_batches(split_of(layout), crop_and_flip(16), SPEC, order, ctx, 16)(start))

    whole = batches("imagefolder", 0, 0)
    assert len(whole) == 8
    for workers in WORKERS:
        for (x, y), (other, labels) in zip(whole[2:], batches(layout, workers, 2), strict=True):
            assert torch.equal(x, other) and torch.equal(y, labels)


class _Ranks:
    """A job of threads that replaces `backbench.distributed`."""

    def __init__(self, ranks: int) -> None:
        self.ranks, self.mine = ranks, threading.local()
        self.meeting = threading.Barrier(ranks, timeout=60)
        self.words: list[list[str]] = [[]] * ranks

    def rank(self) -> int:
        return self.mine.rank

    def gather_words(self, words: list[str]) -> list[str]:
        self.words[self.rank()] = words
        self.meeting.wait()
        found = list(itertools.chain(*self.words))
        self.meeting.wait()
        return found

    def run(self, work: Callable[[], torch.Tensor]) -> list[torch.Tensor]:
        def of(rank: int) -> torch.Tensor:
            self.mine.rank = rank
            try:
                return work()
            except BaseException:
                self.meeting.abort()
                raise

        with ThreadPoolExecutor(self.ranks) as pool:
            return list(pool.map(of, range(self.ranks)))


class _Counted:
    """A source that counts how often each image is decoded."""

    def __init__(self, source: object) -> None:
        self.source, self.decoded = source, collections.Counter[int]()

    def __len__(self) -> int:
        return len(self.source)

    def __getattr__(self, name: str) -> object:
        return getattr(self.source, name)

    def pil(self, index: int) -> object:
        self.decoded[index] += 1
        return self.source.pil(index)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("layout", shards.LAYOUTS)
def test_ranks_compute_the_features_of_every_image_once(split_of, tmp_path, monkeypatch, layout, ranks):
    split = split_of(layout)
    module = build(ARCH, seed=0)
    alone = features.compute(module, SPEC, split_of("imagefolder"), context(tmp_path / "alone"))
    assert len(alone.unique(dim=0)) == IMAGES, "rows differ, so the order is seen"
    source = _Counted(split.source)
    counted = ImageSplit(split.dataset, split.split, source, split.labels, split.classes)
    job = _Ranks(ranks)
    monkeypatch.setattr(features, "rank", job.rank)
    monkeypatch.setattr(features, "world_size", lambda: ranks)
    monkeypatch.setattr(features, "is_main", lambda: job.rank() == 0)
    monkeypatch.setattr(features, "barrier", job.meeting.wait)
    monkeypatch.setattr(features, "gather_words", job.gather_words)
    ctx = context(tmp_path / "job")
    for found in job.run(lambda: features.compute(copy.deepcopy(module), SPEC, counted, ctx)):
        torch.testing.assert_close(found, alone, rtol=1e-5, atol=1e-6)
    assert source.decoded == dict.fromkeys(range(IMAGES), 1)
