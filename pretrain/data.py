"""Select the images of each step and rank, and load their views as one uint8 batch."""

from __future__ import annotations

import functools
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from backbench.data import catalogue, demo, layouts
from backbench.data.catalogue import DataPlaces
from backbench.data.decode import CorruptImage
from backbench.data.layouts import imagefolder
from backbench.data.listing import listed
from backbench.data.splits import ImageSplit
from backbench.distributed import rank, world_size
from backbench.errors import DataError, sentence, worker_death
from backbench.processes import STOP_SIGNALS
from backbench.progress import say
from pretrain.config import OWN_LAYOUTS, DataConfig, PretrainConfig
from pretrain.views import Sizes, ViewPlan

_GRACE = 20  # seconds that a worker continues after SIGTERM


def open_split(config: DataConfig) -> ImageSplit:
    """Return a recipe's training split. A message counts the files passed over.

    Raises:
        DataError: no folder is given, or it is absent, incomplete or empty.
    """
    split = _read_split(config)
    if split.passed_over:
        say(f"{split.dataset} {split.split}: {len(split)} images; passed over: {listed(split.passed_over)}")
    return split


def _read_split(config: DataConfig) -> ImageSplit:
    if config.name == "demo":
        return imagefolder.read(demo.root() / "imagenet", config.split, dataset="demo")
    if config.root is None:
        raise DataError(f"data.root is not set: where is '{config.name}'? Give data.root=DIR")
    root = Path(config.root)
    if not root.is_dir():
        raise DataError(f"data.root: no folder {root}")
    if config.name == "imagefolder" and config.split == "all":
        return imagefolder.read_unlabelled(root, dataset=root.name)
    if config.name in OWN_LAYOUTS:
        return layouts.get(config.name).read(root, config.split, dataset=root.name)
    return catalogue.load(config.name, config.split, DataPlaces(named={config.name: root}))


class EpochSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, sample index) for this rank, from a given step on.

    The order of an epoch is a permutation seeded by (seed, epoch). A global batch is a contiguous part of it, and each rank
    takes a slice of the batch. The incomplete last batch of an epoch is left out (its images come in other epochs).
    """

    def __init__(self, length: int, batch: int, seed: int, start: int, stop: int) -> None:
        self.length, self.batch, self.seed, self.start, self.stop = length, batch, seed, start, stop
        if batch % world_size():
            raise DataError(
                f"optim.batch {batch} does not divide among {world_size()} processes: set a multiple of {world_size()}"
            )
        if length < batch:
            raise DataError(f"only {length} images, fewer than one batch of {batch}: lower optim.batch")

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        per_epoch, local = self.length // self.batch, self.batch // world_size()
        order, order_epoch = np.empty(0, np.int64), -1
        for step in range(self.start, self.stop):
            epoch, position = divmod(step, per_epoch)
            if epoch != order_epoch:
                order = np.random.default_rng((self.seed, epoch)).permutation(self.length)
                order_epoch = epoch
            first = position * self.batch + rank() * local
            yield [(epoch, int(i)) for i in order[first : first + local]]


_Item = tuple[tuple[np.ndarray, np.ndarray], list[str], int]


class Views(Dataset):
    """Data set with keys (epoch, index): the views of each size, (K, S, S, 3) and (V, s, s, 3) uint8, the errors of images
    that had to be replaced, and the row of the image that the views are of."""

    def __init__(self, split: ImageSplit, config: PretrainConfig) -> None:
        self.split, self.config = split, config

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: tuple[int, int]) -> _Item:
        epoch, index = key
        c = self.config
        sizes = Sizes(c.method.views, c.data.size, c.method.small_views, c.data.small_size)
        plan = ViewPlan(c.views, sizes, seed=c.run.seed, epoch=epoch, index=index)
        pixels, corrupt = self._decode(index, plan)
        return plan.make(pixels), corrupt, (index + len(corrupt)) % len(self.split)

    def _decode(self, index: int, plan: ViewPlan) -> tuple[np.ndarray, list[str]]:
        """Return the image, or the next readable one, and the errors of the unreadable ones."""
        corrupt: list[str] = []
        for offset in range(len(self.split)):
            try:
                return self.split.source.rgb((index + offset) % len(self.split), plan.reduction), corrupt
            except CorruptImage as error:
                corrupt.append(str(error))
                if len(corrupt) > self.config.data.max_corrupt:
                    break
        raise DataError(f"{len(corrupt)} unreadable images in a row, the first: {corrupt[0]}")


class Batch(NamedTuple):
    """This rank's part of a step."""

    views: tuple[Tensor, Tensor]  # (B, K, S, S, 3) and (B, V, s, s, 3) uint8
    unreadable: list[str]  # errors of images that were replaced
    rows: Tensor  # (B,) the images' rows in the split


def _collate(items: list[_Item]) -> Batch:
    views, names, rows = zip(*items, strict=True)
    large, small = (torch.from_numpy(np.stack(part)) for part in zip(*views, strict=True))
    return Batch((large, small), [name for part in names for name in part], torch.tensor(rows))


def _worker(_number: int) -> None:
    # Stop signals reach the whole process group. The main process then writes a checkpoint and needs its workers a while
    # longer. At its exit it also sends SIGTERM to remaining workers, so SIGTERM must end a worker after some time.
    for number in set(STOP_SIGNALS) - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda _number, _frame: signal.alarm(_GRACE))
    cv2.setNumThreads(0)  # sequential; 1 would wait forever for threads of a pool that the fork did not copy
    torch.set_num_threads(1)


def make_loader(split: ImageSplit, config: PretrainConfig, *, start: int, stop: int, pin: bool) -> DataLoader:
    """Return batches for steps `start` to `stop`, in order, independent of the number of workers."""
    sampler = EpochSampler(len(split), config.optim.batch, config.run.seed, start, stop)
    workers = config.data.workers
    return DataLoader(
        Views(split, config),
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=pin,
        worker_init_fn=_worker,
        prefetch_factor=4 if workers else None,
    )


def batches(loader: DataLoader) -> Iterator[Batch]:
    """Yield the loader's batches. A worker's error becomes one sentence instead of a traceback."""
    try:
        yield from loader
        return
    except DataError as error:
        reason = sentence(error)
        error.with_traceback(None)
    except RuntimeError as error:
        if not (death := worker_death(error)):
            raise
        reason = death
    raise DataError(reason)  # raised outside: the traceback is a cycle that would keep the loader's processes alive


def prepare(
    batch: Batch, config: PretrainConfig, device: torch.device, dtype: torch.dtype
) -> Sequence[Tensor] | Tensor:
    """Return a batch's views, each (B, 3, S, S), normalised on the device: one tensor, or a list of two sizes."""
    sizes = [to_device(views, config.data, device, dtype) for views in batch.views if views.shape[1]]
    if not config.run.channels_last:
        sizes = [views.contiguous() for views in sizes]
    return sizes[0] if len(sizes) == 1 else [view for views in sizes for view in views]


def to_device(views_BKSS3: Tensor, config: DataConfig, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Turn (B, K, S, S, 3) uint8 into normalised (K, B, 3, S, S) on the device; channels stay last in memory."""
    views = views_BKSS3.to(device, non_blocking=True).permute(1, 0, 2, 3, 4).contiguous().to(dtype)
    # Whole rows at once: a loop over the three channels takes twice as long.
    mean, std = (_row(v, views.shape[3], device, dtype) for v in (config.mean, config.std))
    views.flatten(3).sub_(mean).div_(std)
    return views.permute(0, 1, 4, 2, 3)


@functools.lru_cache(maxsize=8)
def _row(channels: tuple[float, float, float], width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A row of pixels that all have these values, times 255; made once, because the copy to a GPU waits for it."""
    return torch.tensor(channels, dtype=dtype, device=device).mul(255).repeat(width)
