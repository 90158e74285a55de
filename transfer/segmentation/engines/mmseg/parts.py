"""Register parts that the protocols need and MMSegmentation lacks: lists of images and masks, and draws that can be resumed.

Call `engines.mmseg.prepare()` before importing this module; native configurations do so through
`transfer.segmentation.engines.mmseg.native`.
"""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Iterator, Mapping, Sized
from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.dist import get_dist_info, sync_random_seed
from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATA_SAMPLERS, DATASETS, TRANSFORMS
from torch import Tensor, nn
from torch.utils.data import Sampler

from transfer.segmentation import lists


@DATA_SAMPLERS.register_module()
class NumberedSampler(Sampler[int]):
    """Endless rows in a new order per epoch. A row is given as `draw * len(dataset) + row`; draws count over all processes.

    The rows of `n` processes are those of one process, dealt out in turn. Starting later costs nothing.
    """

    def __init__(self, dataset: Sized, seed: int | None = None, start: int = 0) -> None:
        """Take the seed that all processes share, and the number of the first draw."""
        self.size, self.start = len(dataset), start
        self.seed = sync_random_seed() if seed is None else seed
        self.rank, self.ranks = get_dist_info()

    def __iter__(self) -> Iterator[int]:
        """Yield this process's draws."""
        epoch, order = -1, torch.empty(0)
        for draw in itertools.count(self.start + self.rank, self.ranks):
            if draw // self.size != epoch:
                epoch = draw // self.size
                generator = torch.Generator().manual_seed((self.seed + 7919 * epoch) % 2**31)
                order = torch.randperm(self.size, generator=generator)
            yield draw * self.size + int(order[draw % self.size])

    def __len__(self) -> int:
        """Return the number of images, as MMEngine's InfiniteSampler does."""
        return self.size


@DATASETS.register_module()
class ListedDataset(BaseSegDataset):
    """The images and masks of a list (`transfer.segmentation.lists`).

    In training, the random numbers of the pipeline depend only on the seed and the number of the draw: not on the data
    workers, the processes or earlier images. The generators of the process stay as they are.
    """

    def __init__(self, seed: int = 0, **fields: Any) -> None:
        self.seed = seed
        super().__init__(**fields)

    def load_data_list(self) -> list[dict[str, Any]]:
        """Return the list's rows."""
        split = lists.read(self.ann_file)
        return [
            {
                "list": self.ann_file,
                "row": row,
                "img_path": str(split.file(row)),
                "seg_map_path": str(split.mask_file(row)),
                "label_map": None,
                "reduce_zero_label": False,
                "seg_fields": [],
            }
            for row in range(len(split))
        ]

    def __getitem__(self, idx: int) -> dict[str, Any]:
        """Return a sample: `draw * len(self) + row` in training, a row in a test."""
        if self.test_mode:
            return super().__getitem__(idx)
        draw, row = divmod(idx, len(self))
        with _seeded(self.seed, draw):
            return super().__getitem__(row)


@contextlib.contextmanager
def _seeded(*key: int) -> Iterator[None]:
    """Seed NumPy's and Python's generators, which the transforms use, within the block."""
    words = np.random.SeedSequence(key).generate_state(4)
    before = np.random.get_state(), random.getstate()
    np.random.seed(words)
    random.seed(int(words[0]))
    try:
        yield
    finally:
        np.random.set_state(before[0])
        random.setstate(before[1])


@TRANSFORMS.register_module()
class LoadListedImage(BaseTransform):
    """Read an image with our reader. mmcv's rotates images by EXIF tag, which masks do not follow."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Add `img` (H, W, 3) uint8 BGR and its shapes for `list` and `row`. Raises DataError."""
        pixels = np.asarray(lists.read(results["list"]).source.pil(results["row"]))
        shape = pixels.shape[:2]
        return results | {"img": np.ascontiguousarray(pixels[:, :, ::-1]), "img_shape": shape, "ori_shape": shape}


@TRANSFORMS.register_module()
class LoadListedMask(BaseTransform):
    """Read a mask as labels with our reader. MMSegmentation's has no map of stored values to labels."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Add `gt_seg_map` (H, W) uint8 for `list` and `row`; 255 is ignored. Raises DataError."""
        labels = lists.read(results["list"]).label(results["row"])
        return results | {"gt_seg_map": labels, "seg_fields": [*results.get("seg_fields", []), "gt_seg_map"]}


def losses(model: Any, batch: Mapping[str, Any], forward: nn.Module | None = None) -> dict[str, Tensor]:
    """Return the losses of a collated batch. `forward` is the model, perhaps in its parallel wrapper."""
    data = model.data_preprocessor(batch, True)
    found = (forward or model)(**data, mode="loss")
    return {name: value for name, value in found.items() if "loss" in name}
