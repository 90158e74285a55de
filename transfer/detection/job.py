"""The context of a detection run besides its protocol: its folder, its seed, iterations between checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from transfer.detection.annotations.split import DetectionSplit


@dataclass
class Job:
    """Where an engine works and what it leaves there: its native configuration, checkpoints, `losses.jsonl`."""

    folder: Path
    seed: int
    device: torch.device
    workers: int = 0
    checkpoint_every: int = 5000  # iterations
    log_every: int = 20
    notes: list[str] = field(default_factory=list)
    resumed_at: list[int] = field(default_factory=list)  # iterations done, each time that the training was resumed
    test: DetectionSplit | None = None  # for native configurations, so that their own tools can measure
    accumulate: int = 1  # parts of a rank's batch, processed one after the other
