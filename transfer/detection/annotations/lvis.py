"""Read a split of LVIS v1's layout: objects as in COCO's, and what each image's annotators did not look for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from backbench.data.layouts import lvis
from transfer.detection.annotations.faults import Bad
from transfer.detection.annotations.layouts import of_instances
from transfer.detection.annotations.split import DetectionSplit


def read_lvis(
    root: Path, split: str, *, bad: Bad = "error", masks: bool = False, dataset: str = "lvis"
) -> DetectionSplit:
    """Read a split: images by id, below COCO's folders, with their federated annotations.

    Args:
        bad: whether faults in the annotations raise an error or are left out; see `Faults`.
        masks: every object needs a mask.

    Raises:
        DataError: not LVIS v1's format, faults with `bad="error"`, or no image is left.
    """
    file = lvis.annotation_file(root, split)
    known = lvis.federated(file)
    found = of_instances(known.instances, file, Path(root), split, bad=bad, masks=masks, dataset=dataset)
    labels = {category["id"]: row for row, category in enumerate(known.instances.categories)}
    absent, partly = _by_name(known.absent, labels), _by_name(known.partly, labels)
    pictures = tuple(replace(p, absent=absent[p.id], partly=partly[p.id]) for p in found.pictures)
    return replace(found, pictures=pictures, frequencies=known.frequencies)


def _by_name(lists: Mapping[Any, Iterable[int]], labels: Mapping[int, int]) -> dict[str, tuple[int, ...]]:
    """Return the lists of categories as rows of the classes, by the picture's id."""
    return {str(image): tuple(labels[category] for category in categories) for image, categories in lists.items()}
