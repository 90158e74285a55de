"""A frozen backbone: proof that training left it as it was exported.

The engines freeze the trunk by their own fields: Detectron2's `FREEZE_AT`, which also makes its BatchNorms constant
(detectron2/modeling/backbone/resnet.py), and MMDetection's `frozen_stages`, which keeps them in evaluation mode
(mmdet/models/backbones/resnet.py). PreciseBN skips both kinds.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from backbench.errors import BackbenchError
from model_zoo.backbone import Backbone
from model_zoo.export import ExportError
from transfer.detection.job import Job
from transfer.detection.spec import DetectionSpec


def confirm(model: Any, exporter: ModuleType, backbone: Backbone, spec: DetectionSpec, job: Job) -> None:
    """Compare the trained detector's trunk with the exported backbone, and note its hash.

    Args:
        exporter: the engine's module in `model_zoo.export`.

    Raises:
        BackbenchError: a tensor of the trunk changed.
    """
    try:
        digest = exporter.trunk_sha256(backbone, model.state_dict())
    except ExportError as error:
        raise BackbenchError(f"{error}; remove {job.folder} and train again") from None
    trained = "; its last stage is the head of C4 and was trained" if spec.head == "c4" else ""
    job.notes.append(f"frozen backbone: unchanged after training, SHA-256 {digest[:12]}{trained}")
