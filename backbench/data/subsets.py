"""ImageNet's 1% and 10% lists (SimCLR, google-research/simclr imagenet_subsets), or any list of file names.

Both lists are fetched once into `<cache>/lists` and verified; a list given by path needs no network.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from backbench import http
from backbench.data.catalogue import info
from backbench.data.names import spelled_otherwise
from backbench.data.splits import ImageSplit
from backbench.errors import BackbenchError, DataError, writing
from backbench.files import expanded, read_lines
from backbench.files.atomic import make_folder
from backbench.files.folders import cache_folder
from backbench.files.hashes import file_sha256
from backbench.files.locks import held
from backbench.http import partial
from backbench.printable import some
from backbench.progress import say


@dataclass(frozen=True)
class OfficialList:
    """An official list: its address, its checksum, and the allowed share of a training split."""

    file: str
    sha256: str
    count: int
    fractions: tuple[float, float]

    @property
    def url(self) -> str:
        """The official address."""
        return f"https://raw.githubusercontent.com/google-research/simclr/master/imagenet_subsets/{self.file}"


OFFICIAL = {
    "1%": OfficialList(
        "1percent.txt", "71e82a48ba78252683ae334c4d019ebd5c6e855b9599c1389fbe83eb9549cf17", 12_811, (0.0, 0.03)
    ),
    "10%": OfficialList(
        "10percent.txt", "6d09de11e7bdaf5b1f3b1f249b6183695f97310cdd20f0c03e7235b6b9392091", 128_116, (0.03, 0.3)
    ),
}


_LARGEST_LIST = 16 << 20  # bytes; the 10% list has 3 MB


def subset(split: ImageSplit, where: str, *, expected: str | None = None) -> ImageSplit:
    """Return the images of a list, in the split's order, with all of the split's classes.

    Args:
        where: `1%`, `10%`, or a text file of file names, one per line, with or without the class folder.
        expected: `1%` or `10%` if the file must be a list of that size.

    Raises:
        DataError: unknown, ambiguous or repeated names, a class without any image, or a list of the other size.
    """
    if expected is not None and expected not in OFFICIAL:
        raise DataError(f"expected list '{expected}' is neither of {', '.join(OFFICIAL)}")
    if where in OFFICIAL:
        if expected not in (None, where):
            raise DataError(f"the {where} list was given where the {expected} list is expected")
        file, expected = fetch(where), where
    else:
        file = expanded(where)
    names = _names(file)
    if expected is not None:
        _check_size(file, len(names), len(split), expected)
    chosen = np.sort(_indices(file, names, split))
    if split.labels is None or split.labels.ndim != 1:
        raise DataError(
            f"{file}: a list of images needs a split with one class per image; '{split.dataset}' is not one"
        )
    part = split.part(chosen)
    empty = np.setdiff1d(np.arange(len(split.classes)), split.labels[chosen])
    if len(empty):
        raise DataError(f"{file}: leaves classes without any image: {some([split.classes[i] for i in empty])}")
    official = expected is not None and (len(names), file_sha256(file)) == (
        OFFICIAL[expected].count,
        OFFICIAL[expected].sha256,
    )
    of_published = len(split) == info("imagenet").counts["train"]
    return replace(part, official_part=official and of_published)


def fetch(name: str) -> Path:
    """Return the path of the official list `1%` or `10%` in the cache, verified; fetches it if absent.

    Raises:
        DataError: no network, or the bytes differ from the published ones.
    """
    official = OFFICIAL[name]
    file = make_folder(cache_folder() / "lists") / official.file
    with writing(file), held(file.with_name(f"{file.name}.lock")):
        if not file.exists() or file_sha256(file) != official.sha256:
            say(f"fetching the {name} list from {official.url}")
            _download(official, file)
    return file


def _download(official: OfficialList, file: Path) -> None:
    arrived = file.with_name(f".{file.name}.part")
    try:
        http.retrieve(http.Request(official.url, arrived, official.file, largest=_LARGEST_LIST))
        if file_sha256(arrived) != official.sha256:
            raise BackbenchError("other bytes arrived than were published")
        arrived.replace(file)
    except BackbenchError as error:
        other = " (the file there now is not the published list)" if file.exists() else ""
        raise DataError(
            f"cannot fetch {official.url} ({error}): download it to {file}{other} by other means, "
            "or give the list by its path"
        ) from None
    finally:
        partial.forget(arrived)


def _names(file: Path) -> list[str]:
    try:
        names = [line for line in read_lines(file) if line]
    except DataError as error:
        reason = str(error).removeprefix(f"{file}: ")
        known = ", ".join(OFFICIAL)
        raise DataError(f"{file}: not a readable list of file names ({reason}); give {known} or a text file") from None
    if not names:
        raise DataError(f"{file}: names no image")
    return names


def _check_size(file: Path, names: int, images: int, expected: str) -> None:
    """Refuse the other official list by its checksum, and any list with the wrong share of the split."""
    digest = file_sha256(file)
    for other, official in OFFICIAL.items():
        if digest == official.sha256 and other != expected:
            raise DataError(f"{file}: is the official {other} list; the {expected} list was asked for")
    low, high = OFFICIAL[expected].fractions
    if not low < names / images <= high:
        raise DataError(
            f"{file}: names {names} of {images} training images, {100 * names / images:.3g}%: "
            f"not a {expected} list (more than {100 * low:g}%, up to {100 * high:g}%)"
        )


def check_official(share: str, images: int) -> None:
    """Raise DataError if the official list of a share cannot be one of `images` training images."""
    official = OFFICIAL[share]
    low, high = official.fractions
    if not low < official.count / max(1, images) <= high:
        raise DataError(
            f"the official {share} list names {official.count} images of ImageNet and there are {images} training images: "
            "draw a list with <cell>.list=drawn, or give one with <cell>.list=FILE"
        )


def _indices(file: Path, names: list[str], split: ImageSplit) -> np.ndarray:
    """Return the (N,) int64 rows of the split for the names."""
    whole = {split.source.name(i): i for i in range(len(split))}
    by_file: dict[str, list[int]] = {}
    for name, index in whole.items():
        by_file.setdefault(name.rpartition("/")[2], []).append(index)
    found = [[whole[name]] if name in whole else by_file.get(name, []) for name in names]
    unknown = [name for name, rows in zip(names, found, strict=True) if not rows]
    if unknown:
        raise DataError(
            f"{file}: names that '{split.dataset}' {split.split} does not have: {some(unknown)} (of {len(names)} names)"
            f"{spelled_otherwise(unknown, [*whole, *by_file])}"
        )
    ambiguous = [name for name, rows in zip(names, found, strict=True) if len(rows) > 1]
    if ambiguous:
        raise DataError(f"{file}: names of several images: {some(ambiguous)}; write them as <class>/<file>")
    chosen = np.array([rows[0] for rows in found], np.int64)
    rows, counts = np.unique(chosen, return_counts=True)
    if len(rows) != len(chosen):
        twice = [split.source.name(int(row)) for row in rows[counts > 1]]
        raise DataError(f"{file}: images that are there twice: {some(twice)}")
    return chosen
