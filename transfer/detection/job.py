"""Context of a detection or segmentation run besides its protocol: folder, seed, iterations between checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import torch

from backbench.data.splits import Split

S = TypeVar("S", bound=Split)


@dataclass
class Job(Generic[S]):
    """An engine's working folder (native configuration, checkpoints, `losses.jsonl`) and settings of the run."""

    folder: Path
    seed: int
    device: torch.device
    workers: int = 0
    checkpoint_every: int = 5000  # iterations
    log_every: int = 20
    notes: list[str] = field(default_factory=list)
    resumed_at: list[int] = field(default_factory=list)  # iterations done at each resume
    test: S | None = None  # named in native configurations, so that the engine's own tools can evaluate
    accumulate: int = 1  # parts of a rank's batch, processed one after the other
    frozen: bool = False  # the trunk is not trained
