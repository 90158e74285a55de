"""Repeat training images of rare classes, as LVIS's detectors are trained."""

from __future__ import annotations

import math
from collections import Counter

from transfer.detection.annotations.split import DetectionSplit, of_rows, trainable


def repeat_factors(split: DetectionSplit, threshold: float) -> list[float]:
    """Return r(I) = max over the image's classes c of max(1, sqrt(threshold / f(c))); 1 for an image without an object.

    f(c) is the share of images that have class c (Gupta et al. 2019, LVIS, appendix on training; detectron2
    data/samplers/distributed_sampler.py RepeatFactorTrainingSampler).
    """
    classes = [{item.label for item in picture.instances} for picture in split.pictures]
    images = Counter(label for found in classes for label in found)
    factor = {label: max(1.0, math.sqrt(threshold * len(split) / count)) for label, count in images.items()}
    return [max((factor[label] for label in found), default=1.0) for found in classes]


def repeated(split: DetectionSplit, threshold: float) -> DetectionSplit:
    """Return the images that have objects, each ceil(r(I)) times, as mmdet's ClassBalancedDataset does on both engines.

    Detectron2's sampler rounds r(I) up or down at random in each pass instead. Raises DataError: no image has an object.
    """
    usable = trainable(split)
    factors = repeat_factors(usable, threshold)
    return of_rows(usable, [row for row, factor in enumerate(factors) for _ in range(math.ceil(factor))])
