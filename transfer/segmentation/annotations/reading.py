"""Read the splits of a segmentation data set in any layout whose masks hold one class per pixel."""

from __future__ import annotations

from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

import numpy as np

from backbench.data import catalogue, layouts
from backbench.data.catalogue import DataPlaces
from backbench.data.masks import Masks, faults
from backbench.data.splits import Files
from backbench.distributed import gather_words, rank, world_size
from backbench.errors import DataError
from transfer.protocol import DataSpec
from transfer.segmentation.annotations.split import SegmentationSplit, of_rows


def read(layout: str, root: Path, split: str, *, dataset: str) -> SegmentationSplit:
    """Read the images and masks of a split, as the layout names it.

    Raises:
        ConfigError: unknown layout.
        DataError: the layout has no masks with one class per pixel; as its `read` and `masks`.
    """
    module = layouts.get(layout)
    if not hasattr(module, "masks"):
        raise DataError(f"'{dataset}' is of layout '{layout}', which has no masks with a class for each pixel")
    images, masks = module.read(root, split, dataset=dataset), module.masks(root, split)
    assert isinstance(images.source, Files) and len(images.source) == len(masks.source)
    return SegmentationSplit(
        dataset, split, images.source, masks.source, masks.classes, masks.values, passed_over=images.passed_over
    )


def read_splits(data: DataSpec, names: tuple[str, str], places: DataPlaces) -> dict[str, SegmentationSplit]:
    """Return the training and the test split, at most `data.limit` images of each.

    Args:
        names: of the splits, as the layout names them.

    Raises:
        DataError: the data are incomplete, or not the published images although `data.expect` asks for them.
    """
    root = places.of(data.name)
    assert root is not None, "`missing` was asked"
    layout = catalogue.info(data.name).layout
    found = {
        role: read(layout, root, name, dataset=data.name) for role, name in zip(("train", "test"), names, strict=True)
    }
    _check(data, found)
    return {role: limited(split, data.limit) for role, split in found.items()}


def _check(data: DataSpec, found: dict[str, SegmentationSplit]) -> None:
    """Raise DataError if the classes differ, or the images are not the published ones that `expect` asks for."""
    train, test = found["train"], found["test"]
    if train.classes != test.classes:
        pairs = enumerate(zip_longest(train.classes, test.classes))
        label, (one, other) = next((i, pair) for i, pair in pairs if pair[0] != pair[1])
        raise DataError(f"'{data.name}': class {label} is {one!r} in {train.split} and {other!r} in {test.split}")
    if data.expect == "published" and not catalogue.is_published(data.name, found):
        counts = catalogue.info(data.name).counts
        have = ", ".join(f"{split.split} {len(split)}" for split in found.values())
        want = ", ".join(f"{split.split} {counts.get(split.split)}" for split in found.values())
        raise DataError(
            f"'{data.name}' has {have}, {len(train.classes)} classes; published: {want}, {counts.get('classes')} classes. "
            "Is the data set incomplete? If it is another data set, set <cell>.data.expect=any; its numbers are then not "
            "marked as published"
        )


def limited(split: SegmentationSplit, limit: int) -> SegmentationSplit:
    """Return at most `limit` images, always the same ones."""
    if not limit or limit >= len(split):
        return split
    rows = np.sort(np.random.default_rng(0).permutation(len(split))[:limit]).tolist()
    return replace(of_rows(split, rows), split=f"{split.split}[{limit}]")


def confirm(split: SegmentationSplit) -> None:
    """Raise DataError if a mask is not one of its image, with the first sentence. Each rank reads a share of the masks."""
    own = faults(split.source, Masks(split.masks, split.classes, split.values), range(rank(), len(split), world_size()))
    if found := gather_words(list(own)):
        more = f" ({len(found)} such masks)" if len(found) > 1 else ""
        raise DataError(f"{split.dataset} {split.split}: {found[0]}{more}")
