"""Make splits from lists of (image, class): what the layouts of published data sets share."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from backbench.data.names import check_paths
from backbench.data.splits import Files, ImageSplit
from backbench.errors import DataError
from backbench.files import Unreadable, read_bytes, read_lines
from backbench.printable import printable

_MATLAB_LIMIT = 2**20  # bytes: the largest published file of labels has a fifth of it


def base(root: Path, folder: str, needed: str) -> Path:
    """Return `<root>/<folder>`, or the root itself if that contains `needed`.

    Raises:
        DataError: neither contains `needed`.
    """
    for place in (Path(root) / folder, Path(root)):
        if (place / needed).exists():
            return place
    raise DataError(f"{root}: no {folder}/{needed} in it; unpack the published archives there")


def contains(root: Path, folder: str, *needed: str) -> bool:
    """Return whether `<root>/<folder>`, or the root itself, contains every file or folder of `needed`."""
    return any(all((place / name).exists() for name in needed) for place in (Path(root) / folder, Path(root)))


def lines(file: Path) -> list[str]:
    """Return the lines of a list without empty ones. Raises DataError: it cannot be read, or is empty."""
    try:
        found = [line for line in read_lines(file) if line]
    except Unreadable as error:
        raise DataError(f"{error}; is the data set whole?") from None
    if not found:
        raise DataError(f"{file}: names no image; is the data set whole?")
    return found


def fields(file: Path, separator: str | None = None, *, count: int) -> list[list[str]]:
    """Return each line of a list as its first `count` fields, the last one with the rest of the line.

    Raises:
        DataError: the list cannot be read, or a line has fewer fields.
    """
    rows = [line.split(separator, count - 1) for line in lines(file)]
    for number, row in enumerate(rows, start=1):
        if len(row) < count:
            raise DataError(f"{file}:{number}: '{printable(' '.join(row))}' has {len(row)} fields, not {count}")
    return rows


def split_of(
    dataset: str, split: str, folder: Path, file: Path, rows: Sequence[tuple[str, str]], classes: Sequence[str]
) -> ImageSplit:
    """Return the split of a list.

    Args:
        folder: what the paths are relative to.
        file: the list, for errors.
        rows: (path of the image, name of its class), in the list's order.
        classes: in the order of their numbers.

    Raises:
        DataError: a class is unknown or there twice, or a path is there twice or leads out of the folder.
    """
    number = {name: i for i, name in enumerate(classes)}
    if len(number) != len(classes):
        raise DataError(f"{file}: classes of the data set have the same name; is its list of classes whole?")
    if unknown := [name for _, name in rows if name not in number]:
        raise DataError(f"{file}: class '{printable(unknown[0])}' is not one of the {len(classes)} of the data set")
    paths = tuple(path for path, _ in rows)
    check_paths(file, paths)
    labels = np.array([number[name] for _, name in rows], np.int64)
    return ImageSplit(dataset, split, Files(folder, paths), labels, tuple(classes))


def with_validation(whole: ImageSplit, validation: ImageSplit) -> ImageSplit:
    """Return a split that knows which of its images are the published validation part."""
    names = {validation.source.name(i) for i in range(len(validation))}
    return replace(whole, validation=np.array([whole.source.name(i) in names for i in range(len(whole))]))


def joined(train: ImageSplit, validation: ImageSplit, split: str) -> ImageSplit:
    """Return both parts as one split, the training images first."""
    assert isinstance(train.source, Files) and isinstance(validation.source, Files)
    assert train.labels is not None and validation.labels is not None
    paths = (*train.source.paths, *validation.source.paths)
    if twice := set(train.source.paths) & set(validation.source.paths):
        raise DataError(
            f"{train.source.root / min(twice)}: is in the lists of train and of val; download the lists again"
        )
    return replace(
        train,
        split=split,
        source=Files(train.source.root, paths),
        labels=np.concatenate([train.labels, validation.labels]),
        validation=np.arange(len(paths)) >= len(train),
    )


def matlab(file: Path) -> dict[str, Any]:
    """Return the variables of a MATLAB file (`.mat`, version 5).

    Raises:
        DataError: it cannot be read.
    """
    from scipy.io import loadmat

    try:
        return loadmat(io.BytesIO(read_bytes(file, limit=_MATLAB_LIMIT)), squeeze_me=True)
    except Unreadable as error:
        raise DataError(f"{error}; is the data set whole?") from None
    except Exception as error:  # scipy's reader raises whatever a damaged file leads it to
        raise DataError(f"{file}: not a whole MATLAB file ({printable(error)}); download it again") from None
