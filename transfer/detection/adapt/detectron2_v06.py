"""Detectron2 v0.6 on Pillow >= 10 and NumPy >= 1.24, which dropped names that it uses.

`PIL.Image.LINEAR` (detectron2/data/transforms/transform.py, at import) is Pillow's old name of BILINEAR; `np.str`,
`np.bool`, ... (data/datasets/pascal_voc.py, evaluation/pascal_voc_evaluation.py) are NumPy's old names of Python's types.
Can go when a Detectron2 newer than v0.6 is the oldest one supported.
"""

from __future__ import annotations

from typing import Any


def apply() -> None:
    """Give the old names back where they are gone; nothing else is changed. Idempotent."""
    import numpy as np
    from PIL import Image

    pillow: Any = Image
    if not hasattr(pillow, "LINEAR"):
        pillow.LINEAR = pillow.BILINEAR
    for name, kind in {"str": str, "int": int, "float": float, "bool": bool, "object": object}.items():
        if name not in vars(np):
            setattr(np, name, kind)
