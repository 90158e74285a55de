"""Silence warnings that users cannot act on: Detectron2 v0.6 and MMDetection 3 call parts of PyTorch that will change.

Remove an entry when the engine no longer causes it.
"""

from __future__ import annotations

import warnings

NOTICES: tuple[tuple[type[Warning], str], ...] = (
    (FutureWarning, r"`torch\.jit\.script` is deprecated"),  # detectron2/modeling and structures, at import
    (UserWarning, r"torch\.meshgrid: in an upcoming release"),  # anchor generators of both
    (UserWarning, r"The given NumPy array is not writable"),  # detectron2/data/detection_utils.py: masks, only read
)


def apply() -> None:
    """Silence exactly these warnings. Idempotent."""
    for category, beginning in NOTICES:
        warnings.filterwarnings("ignore", message=beginning, category=category)
