"""Use mmcv-lite 2.x instead of a compiled mmcv: torchvision serves the three operators of R-CNN models.

mmdet imports `mmcv.ops`, which imports the compiled `mmcv._ext`. mmcv-lite lacks it, and the full mmcv does not compile
against current PyTorch. torchvision has `nms` and ROIAlign with the same meaning. Any other operator raises when it is
called. A compiled mmcv stays untouched. Remove this when mmcv publishes wheels for the PyTorch versions supported here.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_NAME = "mmcv._ext"


def is_compiled() -> bool:
    """True if mmcv has its own operators."""
    if _NAME in sys.modules:
        return not isinstance(sys.modules[_NAME], _Served)
    return importlib.util.find_spec("mmcv") is not None and importlib.util.find_spec(_NAME) is not None


def apply() -> None:
    """Install the module `mmcv._ext` unless mmcv has its own. Idempotent."""
    if not is_compiled():
        sys.modules.setdefault(_NAME, _Served(_NAME))


def nms(boxes: Any, scores: Any, iou_threshold: float, offset: int = 0) -> Any:
    """Return the kept rows by falling score. Boxes (N, 4) x0 y0 x1 y1; `offset` 1 includes the last pixel, as in mmcv."""
    import torch
    import torchvision

    if offset:  # an area of (x1 - x0 + 1)(y1 - y0 + 1)
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    if boxes.dtype not in (torch.float32, torch.float64):  # torchvision does not support half on the CPU
        boxes, scores = boxes.float(), scores.float()
    return torchvision.ops.nms(boxes, scores.to(boxes.dtype), float(iou_threshold))


def roi_align_forward(
    input: Any,
    rois: Any,
    output: Any,
    argmax_y: Any,
    argmax_x: Any,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write average-pooled ROIAlign to `output`."""
    import torch
    import torchvision  # noqa: F401 (registers its operators)

    _only_average(pool_mode)
    ratio = sampling_ratio if sampling_ratio > 0 else -1
    pooled = torch.ops.torchvision.roi_align(
        input, rois, spatial_scale, aligned_height, aligned_width, ratio, bool(aligned)
    )
    output.copy_(pooled)


def roi_align_backward(
    grad_output: Any,
    rois: Any,
    argmax_y: Any,
    argmax_x: Any,
    grad_input: Any,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write the gradient of `roi_align_forward` with respect to its input to `grad_input`."""
    import torch
    import torchvision  # noqa: F401 (registers its operators)

    _only_average(pool_mode)
    ratio = sampling_ratio if sampling_ratio > 0 else -1
    batch, channels, height, width = grad_input.shape
    gradient = torch.ops.torchvision._roi_align_backward(
        grad_output, rois, spatial_scale, aligned_height, aligned_width, batch, channels, height, width, ratio,
        bool(aligned),
    )  # fmt: skip
    grad_input.copy_(gradient)


def _only_average(pool_mode: int) -> None:
    if pool_mode != 1:
        raise NotImplementedError("ROIAlign with maximum pooling needs a compiled mmcv; mmcv-lite has none")


class _Served(ModuleType):
    """The part of the module `mmcv._ext` that R-CNN models need. Any other operator raises when it is called.

    Its spec has no loader, so that mmengine does not take mmcv for the full one (mmcv_full_available).
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, loader=None)

    nms = staticmethod(nms)
    roi_align_forward = staticmethod(roi_align_forward)
    roi_align_backward = staticmethod(roi_align_backward)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def refuse(*_args: Any, **_fields: Any) -> None:
            raise NotImplementedError(f"mmcv's operator '{name}' needs a compiled mmcv; mmcv-lite has none")

        return refuse
