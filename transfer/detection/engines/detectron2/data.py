"""Give annotated images to Detectron2, and skip the beginning of their order on resume."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from transfer.detection.annotations.split import DetectionSplit


def records(split: DetectionSplit) -> list[dict[str, Any]]:
    """Return the split as Detectron2's records."""
    from detectron2.structures import BoxMode

    return [
        {
            "file_name": str(split.file(i)),
            "image_id": picture.id,
            "width": picture.width,
            "height": picture.height,
            "annotations": [
                {
                    "bbox": list(o.box),
                    "bbox_mode": BoxMode.XYXY_ABS,
                    "category_id": o.label,
                    "iscrowd": int(o.crowd),
                    **({"segmentation": _packed(o.mask)} if o.mask is not None else {}),
                }
                for o in picture.instances
            ],
        }
        for i, picture in enumerate(split.pictures)
    ]


def _packed(mask: Any) -> Any:
    """Return polygons unchanged and a run-length mask packed, as Detectron2 expects."""
    if isinstance(mask, dict) and isinstance(mask["counts"], list):
        from pycocotools import mask as coco_mask

        return coco_mask.frPyObjects(mask, *mask["size"])
    return mask


def skipped(split: DetectionSplit, sampler: Iterable[int], batch: int, count: int) -> set[int]:
    """Return the places in the sampler's order of the first `count` batches. A batch has only wide or only other images."""
    waiting: tuple[list[int], list[int]] = ([], [])
    places: set[int] = set()
    for place, row in enumerate(sampler if count else ()):
        picture = split.pictures[row]
        group = waiting[picture.width <= picture.height]
        group.append(place)
        if len(group) == batch:
            places |= set(group)
            group.clear()
            if len(places) == count * batch:
                break
    return places


def skipping(sampler: Any, places: set[int]) -> Any:
    """Return the sampler, with -1 - row at skipped places."""
    from torch.utils.data import Sampler

    class Skipping(Sampler[int]):
        def __iter__(self) -> Iterator[int]:
            return (-1 - row if place in places else row for place, row in enumerate(sampler))

    return Skipping() if places else sampler


def mapped(known: list[dict[str, Any]], mapper: Any) -> Any:
    """Return a data set of mapped records by row. For -1 - row it only draws the random numbers."""
    from detectron2.data import DatasetFromList

    packed = DatasetFromList(known, copy=False)

    class Mapped(torch.utils.data.Dataset[Any]):
        def __getitem__(self, row: int) -> dict[str, Any]:
            return mapper(packed[row]) if row >= 0 else mapper.draw(packed[-1 - row])

        def __len__(self) -> int:
            return len(packed)

    return Mapped()
