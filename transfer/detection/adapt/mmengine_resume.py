"""mmengine 0.10 resuming its own checkpoints on torch >= 2.6, where `torch.load` reads with weights_only unless told.

Its checkpoints hold `HistoryBuffer` objects (mmengine/logging/history_buffer.py), what NumPy needs to rebuild arrays and
numbers, and the buffers' four statistics, which pickle names as attributes of the class. Exactly these are allowed;
nothing is read without weights_only. Can go when mmengine does this itself.
"""

from __future__ import annotations

from typing import Any


def apply() -> None:
    """Allow what mmengine's own checkpoints name. Idempotent."""
    import numpy as np
    import torch
    from mmengine.logging.history_buffer import HistoryBuffer

    rebuild = [np.empty(0).__reduce__()[0], np.float64().__reduce__()[0]]  # their module has another name in NumPy 1
    numbers = [type(np.dtype(kind)) for kind in ("f8", "f4", "i8", "i4")]
    allowed = [HistoryBuffer, np.dtype, np.ndarray, *rebuild, *numbers, (statistic, "builtins.getattr")]
    torch.serialization.add_safe_globals(allowed)


def statistic(owner: Any, name: str) -> Any:
    """Replaces `getattr` while a checkpoint is read: returns HistoryBuffer's statistics, nothing else.

    Raises:
        AttributeError: anything else.
    """
    from mmengine.logging.history_buffer import HistoryBuffer

    if owner is not HistoryBuffer or name not in ("min", "max", "current", "mean"):
        raise AttributeError(f"a checkpoint asks for '{name}' of {owner!r}, which is not one of mmengine's statistics")
    return getattr(owner, name)
