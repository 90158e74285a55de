"""A run's images and masks as `train.json` and `test.json`: what native configurations name instead of a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from backbench.data.splits import Files
from backbench.files.atomic import atomic_write_text
from transfer.segmentation.annotations.split import SegmentationSplit

# Engines pass only a list's path to the processes that they fork. Its split stays as it was checked: a file that changes
# from then on is an error.
_held: dict[str, SegmentationSplit] = {}


def write(split: SegmentationSplit, file: Path) -> None:
    """Write the list of a split and hold the split for `read`. An equal file stays."""
    values = {
        "dataset": split.dataset,
        "split": split.split,
        "classes": split.classes,
        "values": split.values,
        "images": _as_json(split.source),
        "masks": _as_json(split.masks),
    }
    text = json.dumps(values)
    if not (file.is_file() and file.read_bytes() == text.encode()):
        atomic_write_text(file, text)
    hold(split, file)


def hold(split: SegmentationSplit, file: Path) -> None:
    """Make `read` return this split for the list in this process and those that it forks."""
    _held[str(file)] = split


def read(file: str) -> SegmentationSplit:
    """Return the split of a list."""
    if file not in _held:
        stored = json.loads(Path(file).read_text(encoding="utf-8"))
        _held[file] = SegmentationSplit(
            dataset=stored["dataset"],
            split=stored["split"],
            source=_files(stored["images"]),
            masks=_files(stored["masks"]),
            classes=tuple(stored["classes"]),
            values=None if stored["values"] is None else tuple(stored["values"]),
        )
    return _held[file]


def _as_json(files: Files) -> dict[str, Any]:
    return {"root": str(files.root.resolve()), "paths": files.paths}


def _files(stored: dict[str, Any]) -> Files:
    return Files(Path(stored["root"]), tuple(stored["paths"]))
