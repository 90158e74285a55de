"""Make Detectron2 v0.6 work with Pillow >= 10 and NumPy >= 1.24, which removed names that it uses.

`PIL.Image.LINEAR` (detectron2/data/transforms/transform.py, at import) is Pillow's old name for BILINEAR; `np.str`,
`np.bool`, ... (data/datasets/pascal_voc.py, evaluation/pascal_voc_evaluation.py) are NumPy's old names for Python's types.
Remove this when the oldest supported Detectron2 is newer than v0.6.
"""

from __future__ import annotations

from typing import Any


def apply() -> None:
    """Restore the old names if they are missing. Changes nothing else. Idempotent."""
    import numpy as np
    from PIL import Image

    pillow: Any = Image
    if not hasattr(pillow, "LINEAR"):
        pillow.LINEAR = pillow.BILINEAR
    for name, kind in {"str": str, "int": int, "float": float, "bool": bool, "object": object}.items():
        if name not in vars(np):
            setattr(np, name, kind)
