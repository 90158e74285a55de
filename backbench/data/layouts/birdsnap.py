"""Birdsnap 1.1: `<root>/images/<species>/<image>.jpg`, tab-separated `species.txt`, `images.txt` and `test_images.txt`.

The archive has lists of addresses; its script loads the images into `download/images`, which is read too. All images of
`images.txt` that `test_images.txt` does not name are for training. Many addresses are gone: what is left is another data set,
and its numbers are comparable only with those on the same images.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from backbench.data.image_lists import base, contains, lines, split_of
from backbench.data.splits import ImageSplit
from backbench.errors import DataError
from backbench.printable import printable

LABELS = frozenset({"class"})
GONE = "images that are listed and not there"
_FOLDERS = ("images", "download/images")


def recognise(root: Path) -> tuple[str, str] | None:
    """Return `train` and `test` when the three lists exist."""
    there = contains(root, "birdsnap", "species.txt", "images.txt", "test_images.txt")
    return ("train", "test") if there else None


def read(root: Path, split: str, *, dataset: str = "birdsnap") -> ImageSplit:
    """List the images that exist, in the order of `images.txt`; the classes are numbered as `species.txt` lists them.

    Raises:
        DataError: an unknown split, a list is missing or malformed, or no image exists.
    """
    if split not in ("train", "test"):
        raise DataError(f"{root}: no split '{split}'; Birdsnap has train and test")
    folder = base(root, "birdsnap", "images.txt")
    species = {row["id"]: row["dir"] for row in _rows(folder / "species.txt", "id", "dir")}
    tests = {row["path"] for row in _rows(folder / "test_images.txt", "path")}
    images = next((folder / name for name in _FOLDERS if (folder / name).is_dir()), folder / _FOLDERS[0])
    file = folder / "images.txt"
    listed = [row for row in _rows(file, "path", "species_id") if (row["path"] in tests) == (split == "test")]
    if unknown := [row["species_id"] for row in listed if row["species_id"] not in species]:
        raise DataError(f"{file}: species {printable(unknown[0])} is not in species.txt; download the lists again")
    rows = [(row["path"], species[row["species_id"]]) for row in listed if (images / row["path"]).is_file()]
    if not rows:
        raise DataError(
            f"{images}: none of the {len(listed)} {split} images is there; run the archive's get_birdsnap.py"
        )
    found = split_of(dataset, split, images, file, rows, list(species.values()))
    there = {path for path, _ in rows}
    absent = [row["path"] for row in listed if row["path"] not in there]
    return replace(found, passed_over={GONE: (len(absent), absent[0])}) if absent else found


def _rows(file: Path, *columns: str) -> list[dict[str, str]]:
    """Return the given columns of a tab-separated list whose first line names its columns."""
    names, *rows = [line.split("\t") for line in lines(file)]
    if missing := [column for column in columns if column not in names]:
        raise DataError(f"{file}: has no column '{missing[0]}' in its first line; download the lists again")
    places = [names.index(column) for column in columns]
    for number, row in enumerate(rows, start=2):
        if len(row) <= max(places):
            raise DataError(f"{file}:{number}: '{printable(' '.join(row), 80)}' has {len(row)} of {len(names)} columns")
    return [{column: row[place] for column, place in zip(columns, places, strict=True)} for row in rows]
