"""Records of earlier versions, read as this version would write them: today's name of a preset, today's identity.

A file stays as it is. Also the engine in a cell's name, which records have.
"""

from __future__ import annotations

from typing import Any

from backbench.config import digest

# (task, name in the record, a field that tells the two apart, its value) -> name today. `obow` of voc07_svm cropped its images
# until it became what OBoW runs, which squashes them; both names share the identity (`voc07_svm.Config.identity`).
_RENAMED = {("voc07_svm", "obow", "transform", "crop"): "gap_crop"}
# The fields that each task marks `CHANGES_NO_NUMBER`, known here without loading the tasks, with the defaults that stand for
# them in every identity. The first records were hashed with whatever values they had.
_JOBS: dict[str, Any] = {"jobs": None}
_COURSE: dict[str, Any] = {"checkpoint_every": 5000, "log_every": 20}
INDIFFERENT: dict[str, dict[str, Any]] = {
    "knn": {"chunk": 65536},
    "voc07_svm": _JOBS,
    "voc07_lowshot": _JOBS,
    "voc_detection": _COURSE,
    "coco_instance_segmentation": _COURSE,
}


def as_called_now(record: dict[str, Any]) -> dict[str, Any]:
    """A record's plain values with today's preset and identity; the same object where nothing is to be changed."""
    task = record.get("task")
    config = task.get("config") if isinstance(task, dict) else None
    if not isinstance(task, dict) or not isinstance(config, dict):
        return record
    now = _renamed(_rehashed(task, config), config)
    return record if now is task else record | {"task": now}


def _rehashed(task: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """With the identity of the defaults, where the record's is of other values of fields that change no number."""
    known = INDIFFERENT.get(str(task.get("name")), {})
    defaults = {name: value for name, value in known.items() if name in config}
    if all(config[name] == value for name, value in defaults.items()):
        return task
    for (name, first, field, value), today in _RENAMED.items():  # hashed under the preset's first name
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


# A cell's usual engine is not in its name. Records have said so since each engine had a cell file of its own.
_USUAL = "detectron2"
_OTHERS = ("mmdet",)


def base_and_engine(cell: str) -> tuple[str, str | None]:
    """`voc0712_detection` and `mmdet` of `voc0712_detection_mmdet`; None where the name holds no engine."""
    for engine in _OTHERS:
        if cell.endswith(f"_{engine}"):
            return cell.removesuffix(f"_{engine}"), engine
    return cell, None


def with_engine(cell: str, engine: str | None) -> str:
    """The name that a record of the cell has: `voc0712_detection_mmdet` where it runs on another engine than usual."""
    return cell if engine in (None, _USUAL) else f"{cell}_{engine}"
