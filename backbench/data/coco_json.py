"""Annotation files in COCO's format."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from backbench import files
from backbench.errors import DataError


def read_json(file: Path, keys: Collection[str]) -> dict[str, list[dict[str, Any]]]:
    """Read an annotation file in COCO's format: lists of records under `keys`.

    Raises:
        DataError: the file is missing, cut short, not JSON or lacks one of the lists.
    """
    try:
        record = files.read_json(Path(file))
    except files.Unreadable as error:
        raise DataError(f"{error}; is the data set whole?") from None
    lacking = [key for key in keys if not isinstance(record, dict) or not isinstance(record.get(key), list)]
    if lacking:
        raise DataError(f"{file}: no list '{lacking[0]}' in it; expected an annotation file in COCO's format")
    return record
