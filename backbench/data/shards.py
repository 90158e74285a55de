"""Splits in numbered files: `train-00000-of-00005.parquet`, `imagenet-val-000001.tar`, `train/0000.parquet`."""

from __future__ import annotations

import os
import re
from pathlib import Path

from backbench.errors import DataError
from backbench.printable import some

SPLITS = ("train", "test", "validation", "valid", "val")
_DEEPEST = 2  # folders below the root: `<configuration>/<split>/0000.parquet`
_MOST_FOLDERS = 20


def shards(root: Path, ending: str) -> dict[str, list[Path]]:
    """Return the files of each split in the order of their names; empty where there are none.

    Raises:
        DataError: several configurations side by side, or parts of a numbered series that are missing.
    """
    found: dict[str, list[Path]] = {}
    for path in sorted(_below(Path(root), ending, _DEEPEST)):
        split = split_of(path, Path(root))
        if split is not None:
            found.setdefault(split, []).append(path)
    for split, files in found.items():
        folders = sorted({str(file.parent.relative_to(root)) for file in files})
        if len(folders) > 1:
            raise DataError(f"{root}: the files of '{split}' lie in several folders ({some(folders)}); give one of them, "
                            "with the other splits beside it")  # fmt: skip
        _check_series(split, files)
    return found


def test_split(found: dict[str, list[Path]]) -> str | None:
    """Return the split to test on: the first of test, validation, valid and val that exists."""
    return next((split for split in SPLITS[1:] if split in found), None)


def split_of(path: Path, root: Path) -> str | None:
    """Return the split named in a file's name, else in its folder's name."""
    words = re.split(r"[-_.]", path.name)
    parents = [] if path.parent == Path(root) else [path.parent.name]
    return next((word for word in (*words, *parents) if word in SPLITS), None)


def _below(folder: Path, ending: str, depth: int) -> list[Path]:
    """Yield files of an ending in a folder and below it. Folders beside many others are classes and are not entered."""
    try:
        with os.scandir(folder) as entries:
            seen = [(entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        if depth < _DEEPEST:  # an unreadable folder does not belong to this layout
            return []
        raise DataError(f"{folder}: cannot be read ({error.strerror})") from None
    found = [folder / name for name, is_folder in seen if name.endswith(ending) and not is_folder]
    below = [name for name, is_folder in seen if is_folder]
    if depth and len(below) <= _MOST_FOLDERS:
        found += [file for name in below for file in _below(folder / name, ending, depth - 1)]
    return found


def _check_series(split: str, files: list[Path]) -> None:
    """Raise DataError if `-of-00005` or gaps between the numbers show that parts are missing."""
    numbers = [re.findall(r"\d+", file.stem) for file in files]
    stated = {int(found[1]) for file in files if (found := re.search(r"-(\d+)-of-(\d+)", file.name)) and int(found[2])}
    whole = {int(found[1]) for file in files if (found := re.search(r"-of-(\d+)", file.name))}
    if whole:
        (count, *others) = sorted(whole)
        missing = sorted(set(range(count)) - stated)
        if others or missing:
            why = f"missing: {some([str(n) for n in missing])}" if missing else "series of several lengths are mixed"
            raise DataError(f"{files[0].parent}: of '{split}' {len(files)} of {count} parts are there; {why}")
    elif len(files) > 1 and all(numbers):
        last = sorted({int(found[-1]) for found in numbers})
        gaps = sorted(set(range(last[0], last[-1] + 1)) - set(last))
        if gaps and last[0] in (0, 1) and len(last) == len(files):
            raise DataError(f"{files[0].parent}: of '{split}' parts are missing: {some([str(n) for n in gaps])}; is the "
                            "data set whole?")  # fmt: skip
