"""Find images that are in both the training and the test split: a number on them does not measure unseen images."""

from __future__ import annotations

import hashlib
from pathlib import Path

from backbench.data.splits import Files, ImageSource, ImageSplit, Split, Subset
from backbench.progress import track


def in_both(train: Split, test: Split) -> list[str]:
    """Return names of test images that are the same files as training images, compared by path.

    `duplicates` finds copies under another name by reading them.
    """
    ours, theirs = _places(train.source), _places(test.source)
    if not ours or not theirs or not (ours[0].is_relative_to(theirs[0]) or theirs[0].is_relative_to(ours[0])):
        return []
    known = {f"{ours[0]}/{name}" for name in ours[1]}
    return [name for name in theirs[1] if f"{theirs[0]}/{name}" in known]


def _places(source: ImageSource) -> tuple[Path, list[str]] | None:
    """Return the folder of a source's files and their names in it."""
    files = source.source if isinstance(source, Subset) else source
    return (files.root.resolve(), [source.name(i) for i in range(len(source))]) if isinstance(files, Files) else None


def duplicates(train: ImageSplit, test: ImageSplit) -> list[tuple[str, str]]:
    """Return (name in train, name in test) of images with the same bytes; only images of equal size are read.

    Raises:
        DataError: an image cannot be read.
    """
    by_size: dict[int, list[int]] = {}
    for index in range(len(test)):
        by_size.setdefault(test.source.size(index), []).append(index)
    hashes: dict[int, dict[bytes, list[int]]] = {}
    found = []
    label = f"{train.dataset} {train.split} images that are in {test.split} too"
    for index in track(range(len(train)), total=len(train), label=label):
        size = train.source.size(index)
        if size not in by_size:
            continue
        if size not in hashes:
            hashes[size] = {}
            for other in by_size[size]:
                hashes[size].setdefault(_digest(test, other), []).append(other)
        same = hashes[size].get(_digest(train, index), [])
        found += [(train.source.name(index), test.source.name(other)) for other in same]
    return found


def _digest(split: ImageSplit, index: int) -> bytes:
    return hashlib.sha256(split.source.stored(index)).digest()
