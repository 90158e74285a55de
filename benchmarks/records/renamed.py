"""Presets that bear another name than when their records were made: a file stays as it is, and is read under today's name."""

from __future__ import annotations

from typing import Any

# (task, name in the record, a field that tells the two apart, its value) -> name today. `obow` of voc07_svm cropped its images
# until it became what OBoW runs, which squashes them; both names share the identity (`voc07_svm.Config.identity`).
_RENAMED = {("voc07_svm", "obow", "transform", "crop"): "gap_crop"}


def as_called_now(record: dict[str, Any]) -> dict[str, Any]:
    """A record's plain values with today's name of its preset; the same object where nothing is to be changed."""
    task = record.get("task")
    config = task.get("config") if isinstance(task, dict) else None
    if not isinstance(config, dict):
        return record
    for (name, preset, field, value), today in _RENAMED.items():
        if (task.get("name"), config.get("preset"), config.get(field)) == (name, preset, value):
            return record | {"task": task | {"config": config | {"preset": today}}}
    return record
