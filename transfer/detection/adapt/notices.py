"""Silence warnings that users cannot act on: of parts of PyTorch that will change, and of protocols as published.

Remove an entry when the engine no longer causes it.
"""

from __future__ import annotations

import warnings

NOTICES: tuple[tuple[type[Warning], str], ...] = (
    (FutureWarning, r"`torch\.jit\.script` is deprecated"),  # detectron2/modeling and structures, at import
    (UserWarning, r"torch\.meshgrid: in an upcoming release"),  # anchor generators of both
    (UserWarning, r"The given NumPy array is not writable"),  # detectron2/data/detection_utils.py: masks, only read
    (UserWarning, r"When align_corners=True, the output would more aligned"),  # mmseg: test images of any size
    (UserWarning, r"``build_loss`` would be deprecated soon"),  # mmseg/models/builder.py
    (UserWarning, r"Default ``avg_non_ignore`` is False"),  # mmseg's mean over all pixels of a crop is the protocol
)


def apply() -> None:
    """Silence exactly these warnings. Idempotent."""
    for category, beginning in NOTICES:
        warnings.filterwarnings("ignore", message=beginning, category=category)
