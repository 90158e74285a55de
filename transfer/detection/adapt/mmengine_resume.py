"""mmengine 0.10 resuming its own checkpoints on torch >= 2.6, where `torch.load` reads with weights_only unless told.

Its checkpoints hold `HistoryBuffer` objects (mmengine/logging/history_buffer.py) and what NumPy needs to rebuild their
arrays. Exactly these are allowed; nothing is read without weights_only. Can go when mmengine does this itself.
"""

from __future__ import annotations


def apply() -> None:
    """Allow the classes that mmengine's own checkpoints name. Idempotent."""
    import numpy as np
    import torch
    from mmengine.logging.history_buffer import HistoryBuffer

    reconstruct = np._core.multiarray._reconstruct
    kinds = [np.dtype, np.ndarray, reconstruct, *(type(np.dtype(k)) for k in ("f8", "f4", "i8", "i4", "bool"))]
    torch.serialization.add_safe_globals([HistoryBuffer, *kinds])
