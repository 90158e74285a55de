"""Read records of earlier versions as this version would write them: new names of presets, new identities.

Files are never changed. Also splits and builds cell names with an engine at the end.
"""

from __future__ import annotations

from typing import Any

from backbench.config import digest

# (task, name in the record, a field that tells the two apart, its value) -> new name. `obow` of voc07_svm cropped its images
# until it did what OBoW does, which squashes them; both names share the identity (`voc07_svm.Config.identity`).
_RENAMED = {("voc07_svm", "obow", "transform", "crop"): "gap_crop"}
# The fields that each task marks `CHANGES_NO_NUMBER`, listed here to avoid loading the tasks, with the defaults that
# every identity uses. The first records were hashed with whatever values they had.
_JOBS: dict[str, Any] = {"jobs": None}
_COURSE: dict[str, Any] = {"checkpoint_every": 5000, "log_every": 20}
INDIFFERENT: dict[str, dict[str, Any]] = {
    "knn": {"chunk": 65536},
    "voc07_svm": _JOBS,
    "voc07_lowshot": _JOBS,
    "voc_detection": _COURSE,
    "coco_instance_segmentation": _COURSE,
    "semantic_segmentation": _COURSE,
}


def as_called_now(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record's plain values with the new preset name and identity; the same object if nothing changes."""
    task = record.get("task")
    config = task.get("config") if isinstance(task, dict) else None
    if not isinstance(task, dict) or not isinstance(config, dict):
        return record
    now = _renamed(_rehashed(task, config), config)
    return record if now is task else record | {"task": now}


def _rehashed(task: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """Return the values with the identity of the defaults, if other values of fields that change no number were hashed."""
    known = INDIFFERENT.get(str(task.get("name")), {})
    defaults = {name: value for name, value in known.items() if name in config}
    if all(config[name] == value for name, value in defaults.items()):
        return task
    for (name, first, field, value), today in _RENAMED.items():  # hashed under the preset's old name
        if (task.get("name"), config.get("preset"), config.get(field)) == (name, today, value):
            config = config | {"preset": first}
    if digest(config) != task.get("config_sha256"):
        return task
    return task | {"config_sha256": digest(config | defaults)}


def _renamed(task: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    for (name, preset, field, value), today in _RENAMED.items():
        if (task.get("name"), config.get("preset"), config.get(field)) == (name, preset, value):
            return task | {"config": config | {"preset": today}}
    return task


# A cell's usual engine is not in its name: the rule dates from when each engine had its own cell file.
_USUAL = "detectron2"
_OTHERS = ("mmdet",)


def base_and_engine(cell: str) -> tuple[str, str | None]:
    """Split `voc0712_detection_mmdet` into `voc0712_detection` and `mmdet`; None if the name has no engine."""
    for engine in _OTHERS:
        if cell.endswith(f"_{engine}"):
            return cell.removesuffix(f"_{engine}"), engine
    return cell, None


def with_engine(cell: str, engine: str | None) -> str:
    """Return the cell's name in records: `voc0712_detection_mmdet` on an engine other than its usual one."""
    return cell if engine in (None, _USUAL) else f"{cell}_{engine}"
