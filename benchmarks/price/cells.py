"""The work of a cell, by its task."""

from __future__ import annotations

from collections.abc import Callable

from backbench.data import catalogue
from backbench.data.catalogue import DataPlaces
from backbench.errors import BackbenchError
from benchmarks.plan import Cell
from benchmarks.price import detection, frozen, segmentation, trained
from benchmarks.price.work import Work
from model_zoo.backbone import Backbone

_COUNTED: dict[str, Callable[..., tuple[Work, Work]]] = {
    "knn": frozen.knn,
    "linear_probe": frozen.linear,
    "robustness": frozen.robustness,
    "attentive": frozen.attentive,
    "logistic": frozen.logistic,
    "fewshot": frozen.fewshot,
    "uniformity": frozen.uniformity,
    "diagnostics": frozen.diagnostics,
    "voc07_svm": frozen.svm,
    "voc07_lowshot": frozen.svm,
    "semi_supervised": trained.semi_supervised,
    "finetune": trained.finetune,
    "voc_detection": detection.detection,
    "coco_instance_segmentation": detection.detection,
    "semantic_segmentation": segmentation.semantic,
    "linear_segmentation": segmentation.linear,
}


def images_of(cell: Cell, places: DataPlaces) -> tuple[int, int, int]:
    """(training images, test images, classes): of the data where they are, else as published.

    Raises:
        BackbenchError: the data are absent, and no numbers are published.
    """
    if cell.task.missing(cell.config, places) is None:
        splits = cell.task.splits(cell.config, places)
        return len(splits["train"]), len(splits["test"]), len(splits["train"].classes)
    name = cell.config.data.name
    info = catalogue.info(name)
    train, test = (getattr(cell.config, role, None) or getattr(info, role) for role in ("train", "test"))
    if not {train, test, "classes"} <= set(info.counts):
        raise BackbenchError(f"{cell.name}: '{name}' has no published numbers of images; give its folder by --data")
    share = float(getattr(cell.config, "share", "100%").rstrip("%")) / 100
    limit = cell.config.data.limit or 10**12
    return min(round(info.counts[train] * share), limit), min(info.counts[test], limit), info.counts["classes"]


def work_of(cell: Cell, backbone: Backbone, places: DataPlaces) -> tuple[Work, Work]:
    """(the work that all seeds of a backbone share: its cached features; the work of each seed).

    Raises:
        BackbenchError: the protocol is one that cannot be estimated, or the numbers of images are unknown.
    """
    if cell.task_name not in _COUNTED:
        raise BackbenchError(f"{cell.name}: the work of protocol '{cell.task_name}' is not known")
    return _COUNTED[cell.task_name](cell.config, backbone, images_of(cell, places))
