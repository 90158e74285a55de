"""The specification of a detection protocol, independent of the engine; engines translate its fields."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, model_validator

from backbench.config import Config


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
    sides_train: Annotated[
        tuple[Annotated[int, Field(ge=32)], ...], Field(min_length=1)
    ]  # shorter side, one drawn for each image
    side_test: Annotated[int, Field(ge=32)] = 800
    side_max: Annotated[int, Field(ge=32)] = 1333  # longer side
    rois: Annotated[int, Field(gt=0)] = 512  # sampled proposals an image
    proposals_train: tuple[int, int] = (12000, 2000)  # kept before and after NMS (of each FPN level before)
    proposals_test: tuple[int, int] = (6000, 1000)
    detections: Annotated[int, Field(gt=0)] = 100  # an image at most
    score_threshold: Annotated[float, Field(ge=0, lt=1)] = 0.05

    @property
    def estimates(self) -> bool:
        """Whether BatchNorm's statistics are recomputed after the last iteration; frozen ones stay."""
        return self.precise_bn > 0 and self.norm == "sync"

    @model_validator(mode="after")
    def _fits(self) -> DetectionSpec:
        longest = max(self.side_test, *self.sides_train)
        if self.side_max < longest:
            raise ValueError(f"side_max={self.side_max} is shorter than a shorter side, {longest}; raise it")
        if any(later <= earlier for earlier, later in pairwise(self.milestones)):
            raise ValueError(f"milestones={list(self.milestones)} do not rise; give each iteration once, in order")
        return self  # milestones past the end are never reached, so that iterations alone can be set


def scaled(spec: DetectionSpec, batch: int) -> DetectionSpec:
    """The same course with another batch: rate x k, iterations, milestones and warm-up / k (k = batch / spec.batch).

    The linear rule (Goyal et al. 2017; Detectron2's SOLVER.REFERENCE_WORLD_SIZE): as many images are seen. BatchNorm is
    over the new batch, and PreciseBN keeps its iterations, as with Detectron2's rule.
    """
    if batch == spec.batch:
        return spec
    k, milestones = batch / spec.batch, [0]
    for m in spec.milestones:  # those that fall together by rounding follow each other: every drop stays
        milestones.append(max(milestones[-1] + 1, round(m / k)))
    return DetectionSpec.model_validate(
        spec.model_dump()
        | {
            "batch": batch,
            "lr": spec.lr * k,
            "iterations": max(1, round(spec.iterations / k)),
            "milestones": tuple(milestones[1:]),
            "warmup": round(spec.warmup / k),
        }
    )
