"""Specification of a detection protocol, independent of the engine. Engines translate its fields."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from backbench.config import Config
from transfer.linear_rule import refuse_unsorted, scaled_fields


class DetectionSpec(Config):
    """A detector and its training. Iterations and rates are for `batch` images per step over all processes."""

    head: Literal[
        "c4", "fpn"
    ]  # Faster R-CNN on res4 with res5 as the head and an extra norm after it, or FPN with 2 FC layers
    masks: bool = False
    iterations: Annotated[int, Field(gt=0)]
    batch: Annotated[int, Field(gt=0)] = 16
    lr: Annotated[float, Field(gt=0)] = 0.02
    milestones: tuple[Annotated[int, Field(gt=0)], ...] = ()  # iterations after which the rate falls tenfold
    warmup: Annotated[int, Field(ge=0)] = 100  # iterations, linear from a thousandth
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4  # not for norms
    norm: Literal["sync", "frozen"] = "sync"  # of backbone and FPN; frozen only to study untrained statistics
    precise_bn: Annotated[int, Field(ge=0)] = (
        200  # iterations that re-estimate BatchNorm's statistics at the end; 0: none
    )
    sides_train: Annotated[
        tuple[Annotated[int, Field(ge=32)], ...], Field(min_length=1)
    ]  # shorter sides; one is drawn per image
    side_test: Annotated[int, Field(ge=32)] = 800
    side_max: Annotated[int, Field(ge=32)] = 1333  # longer side
    rois: Annotated[int, Field(gt=0)] = 512  # sampled proposals per image
    proposals_train: tuple[int, int] = (12000, 2000)  # kept before NMS (per FPN level) and after it
    proposals_test: tuple[int, int] = (6000, 1000)
    detections: Annotated[int, Field(gt=0)] = 100  # at most, per image
    score_threshold: Annotated[float, Field(ge=0, lt=1)] = 0.05

    @property
    def estimates(self) -> bool:
        """True if BatchNorm's statistics are recomputed after the last iteration; frozen ones stay."""
        return self.precise_bn > 0 and self.norm == "sync"

    @model_validator(mode="after")
    def _fits(self) -> DetectionSpec:
        longest = max(self.side_test, *self.sides_train)
        if self.side_max < longest:
            raise ValueError(f"side_max={self.side_max} is less than a shorter side, {longest}; raise it")
        refuse_unsorted(self.milestones)
        return self  # milestones after the last iteration are allowed, so that `iterations` can be set alone


def scaled(spec: DetectionSpec, batch: int) -> DetectionSpec:
    """Scale a spec to another batch: rate x k; iterations, milestones and warm-up / k (k = batch / spec.batch).

    This is the linear rule (Goyal et al. 2017; Detectron2's SOLVER.REFERENCE_WORLD_SIZE): the number of images seen stays.
    BatchNorm is over the new batch, and PreciseBN keeps its iterations, as in Detectron2's rule.
    """
    if batch == spec.batch:
        return spec
    warmup = round(spec.warmup / (batch / spec.batch))
    return DetectionSpec.model_validate(spec.model_dump() | scaled_fields(spec, batch) | {"warmup": warmup})
