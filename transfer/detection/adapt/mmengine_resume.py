"""Let mmengine 0.10 resume its own checkpoints on torch >= 2.6, where `torch.load` defaults to weights_only.

Its checkpoints contain `HistoryBuffer` objects (mmengine/logging/history_buffer.py), NumPy's functions that rebuild arrays
and numbers, and the buffers' four statistics, which pickle names as attributes of the class. Exactly these are allowed;
nothing is read without weights_only. Remove this when mmengine does it itself.
"""

from __future__ import annotations

from typing import Any


def apply() -> None:
    """Allow the classes and functions that mmengine's own checkpoints name. Idempotent."""
    import numpy as np
    import torch
    from mmengine.logging.history_buffer import HistoryBuffer

    rebuild = [np.empty(0).__reduce__()[0], np.float64().__reduce__()[0]]  # NumPy 1 has another name for their module
    numbers = [type(np.dtype(kind)) for kind in ("f8", "f4", "i8", "i4")]
    allowed = [HistoryBuffer, np.dtype, np.ndarray, *rebuild, *numbers, (statistic, "builtins.getattr")]
    torch.serialization.add_safe_globals(allowed)


def statistic(owner: Any, name: str) -> Any:
    """Return a statistic of HistoryBuffer. Replaces `getattr` while a checkpoint is read.

    Raises:
        AttributeError: the owner or the name is anything else.
    """
    from mmengine.logging.history_buffer import HistoryBuffer

    if owner is not HistoryBuffer or name not in ("min", "max", "current", "mean"):
        raise AttributeError(f"a checkpoint asks for '{name}' of {owner!r}, which is not one of mmengine's statistics")
    return getattr(owner, name)
