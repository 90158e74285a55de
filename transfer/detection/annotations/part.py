"""A share of a split's images, drawn by a seed as the semi-supervised detection literature draws COCO's 1, 5 and 10%."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from backbench.errors import DataError


@dataclass(frozen=True)
class Part:
    """A draw of `percent` of the images of a list by the seed `fold` (microsoft/SoftTeacher tools/dataset/semi_coco.py).

    NumPy's legacy generator, seeded with the fold, chooses int(percent / 100 * N) of N images without replacement. Images
    count in the order of the annotation file, which in COCO's is not that of their ids. SoftTeacher's prepare_coco_data.sh
    adds one random offset to all seeds; the lists here are those without it. MMDetection's tools/misc/split_coco.py draws
    with replacement, so its lists are others.
    """

    percent: int
    fold: int

    def rows(self, count: int, where: Path) -> set[int]:
        """Return the rows of a list of `count` images. Raises DataError: the part has no image."""
        size = int(self.percent / 100.0 * count)
        if size == 0:
            raise DataError(f"{where}: {self.percent}% of {count} images are none; give a larger share")
        return set(np.random.RandomState(self.fold).choice(count, size=size, replace=False).tolist())

    def named(self, split: str) -> str:
        """Return the part's name in SoftTeacher's files: `train2017.1@10` is 10% of train2017, drawn by fold 1."""
        return f"{split}.{self.fold}@{self.percent}"
