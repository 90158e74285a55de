"""What a detection protocol fixes, whichever engine runs it. Fields are the protocol's; engines translate them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from core.config import Config


class DetectionSpec(Config):
    """A detector and its training course. Iterations and rates are for `batch` images a step over all processes."""

    head: Literal[
        "c4", "fpn"
    ]  # Faster R-CNN on res4 with res5 as the head (extra norm behind it), or FPN with 2 FC layers
    masks: bool = False
    iterations: Annotated[int, Field(gt=0)]
    batch: Annotated[int, Field(gt=0)] = 16
    lr: Annotated[float, Field(gt=0)] = 0.02
    milestones: tuple[Annotated[int, Field(gt=0)], ...] = ()  # iterations after which the rate falls tenfold
    warmup: Annotated[int, Field(ge=0)] = 100  # iterations, linear from a thousandth
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4  # not of norms
    norm: Literal["sync", "frozen"] = "sync"  # of backbone and FPN; frozen only to look at untrained statistics
    precise_bn: Annotated[int, Field(ge=0)] = (
        200  # iterations that re-estimate BatchNorm's statistics at the end; 0: none
    )
    sides_train: tuple[Annotated[int, Field(ge=32)], ...]  # shorter side, one drawn for each image
    side_test: Annotated[int, Field(ge=32)] = 800
    side_max: Annotated[int, Field(ge=32)] = 1333  # longer side
    rois: Annotated[int, Field(gt=0)] = 512  # sampled proposals an image
    proposals_train: tuple[int, int] = (12000, 2000)  # kept before and after NMS (of each FPN level before)
    proposals_test: tuple[int, int] = (6000, 1000)
    detections: Annotated[int, Field(gt=0)] = 100  # an image at most
    score_threshold: Annotated[float, Field(ge=0, lt=1)] = 0.05


def scaled(spec: DetectionSpec, batch: int) -> DetectionSpec:
    """The same course with another batch: rate x k, iterations, milestones and warm-up / k (k = batch / spec.batch).

    The linear rule (Goyal et al. 2017; Detectron2's SOLVER.REFERENCE_WORLD_SIZE): as many images are seen.
    """
    if batch == spec.batch:
        return spec
    k = batch / spec.batch
    return spec.model_copy(
        update={
            "batch": batch,
            "lr": spec.lr * k,
            "iterations": max(1, round(spec.iterations / k)),
            "milestones": tuple(max(1, round(m / k)) for m in spec.milestones),
            "warmup": round(spec.warmup / k),
        }
    )
