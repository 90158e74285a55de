"""Register parts that the protocols need and MMDetection lacks.

Call `engines.mmdet.prepare()` before importing this module; native configurations do so through
`transfer.detection.engines.mmdet.native`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv.cnn import build_norm_layer
from mmcv.transforms import BaseTransform
from mmdet.datasets import CocoDataset
from mmdet.datasets.samplers import AspectRatioBatchSampler
from mmdet.models.backbones import ResNet, ResNeXt
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.models.layers import ResLayer
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.models.task_modules.assigners import AssignResult, MaxIoUAssigner
from mmdet.registry import DATA_SAMPLERS, DATASETS, HOOKS, MODELS, TASK_UTILS, TRANSFORMS
from mmengine.hooks import Hook
from mmengine.model import BaseModule
from torch import Tensor, nn

from transfer.detection.annotations.pixels import read_image
from transfer.detection.training.steps import precise_statistics


@MODELS.register_module()
class ResLayerExtraNorm(BaseModule):
    """layer4 as the head of C4, followed by a norm (facebookresearch/moco detection/train_net.py); also with basic blocks."""

    def __init__(
        self,
        depth: int,
        base_channels: int,
        style: str,
        norm_cfg: dict[str, Any],
        norm_eval: bool,
        init_cfg: Any,
        groups: int = 1,
        base_width: int = 64,
        avg_down: bool = False,
    ) -> None:
        super().__init__(init_cfg)
        block, counts = (ResNeXt if groups > 1 else ResNet).arch_settings[depth]
        grouped = {"groups": groups, "base_width": base_width, "base_channels": base_channels} if groups > 1 else {}
        planes = base_channels * 8
        self.norm_eval = norm_eval
        self.layer4 = ResLayer(
            block, planes // 2 * block.expansion, planes, counts[3], stride=2, style=style, norm_cfg=norm_cfg,
            avg_down=avg_down, **grouped,
        )  # fmt: skip
        self.norm = build_norm_layer(norm_cfg, planes * block.expansion)[1]

    def forward(self, x: Tensor) -> Tensor:
        """Turn (R, C, 14, 14) of res4 into (R, 2C, 7, 7)."""
        return self.norm(self.layer4(x))

    def train(self, mode: bool = True) -> ResLayerExtraNorm:
        """Set train mode. Frozen norms stay in eval mode, as in mmdet's ResNet."""
        super().train(mode)
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self


@TASK_UTILS.register_module()
class LowQualityAssigner(MaxIoUAssigner):
    """Assign each box its best anchors, however small the overlap; an anchor keeps the box that it overlaps most.

    This is the rule of detectron2/modeling/matcher.py. MaxIoUAssigner's low-quality match has a minimum overlap and gives
    the anchor to the last box.
    """

    def assign_wrt_overlaps(self, overlaps: Tensor, gt_labels: Tensor) -> AssignResult:
        """Assign anchors from overlaps (K boxes, N anchors): 0 negative, -1 ignored, k + 1 box k."""
        result = super().assign_wrt_overlaps(overlaps, gt_labels)
        if overlaps.numel():
            best = overlaps.amax(dim=1, keepdim=True)
            low = ((overlaps == best) & (best > 0)).any(dim=0)  # an empty box overlaps no anchor and gets none
            box = overlaps.argmax(dim=0)[low]
            result.gt_inds[low] = box + 1
            result.labels[low] = gt_labels[box]
        return result


@MODELS.register_module()
class WholeBatchPreprocessor(DetDataPreprocessor):
    """Count anchors in the padding of a batch as background (detectron2/modeling/proposal_generator/rpn.py)."""

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """Use the batch's padded shape, as Detectron2 does; mmdet uses each image's own."""
        data = super().forward(data, training)
        for sample in data["data_samples"] or []:
            sample.set_metainfo({"pad_shape": sample.batch_input_shape})
        return data


@MODELS.register_module()
class SmallStartMaskHead(FCNMaskHead):
    """Mask head with a last layer of initial standard deviation 0.001 (detectron2/modeling/roi_heads/mask_head.py)."""

    def init_weights(self) -> None:
        """Initialise as mmdet does, except the last layer."""
        super().init_weights()
        nn.init.normal_(self.conv_logits.weight, std=0.001)


@TRANSFORMS.register_module()
class LoadNamedImage(BaseTransform):
    """Read an image with our reader. mmcv's rotates images by EXIF tag and does not name a file that it cannot decode."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Add `img` (H, W, 3) uint8 BGR and its shapes for `img_path`, `width` and `height`. Raises DataError."""
        pixels = read_image(Path(results["img_path"]), results["width"], results["height"])
        shape = pixels.shape[:2]
        return results | {"img": np.ascontiguousarray(pixels[:, :, ::-1]), "img_shape": shape, "ori_shape": shape}


@DATA_SAMPLERS.register_module()
class SkippingBatchSampler(AspectRatioBatchSampler):
    """Give -1 - row for the first `skip` batches; `DrawingDataset` only draws random numbers for them."""

    def __init__(self, sampler: Any, batch_size: int, skip: int) -> None:
        super().__init__(sampler, batch_size)
        self.skip = skip

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the rows of each batch."""
        for place, rows in enumerate(super().__iter__()):
            yield [-1 - row for row in rows] if place < self.skip else rows


@DATASETS.register_module()
class DrawingDataset(CocoDataset):
    """Data set that only draws the random numbers for index -1 - row. They do not depend on pixels."""

    def __getitem__(self, idx: int) -> dict[str, Any]:
        """Return a sample, or an empty dict for -1 - row."""
        if idx >= 0:
            return super().__getitem__(idx)
        for transform in self.pipeline.transforms:
            for name in getattr(transform, "_methods_with_randomness", ()):
                getattr(transform, name)()
        return {}


@HOOKS.register_module()
class PreciseStatisticsHook(Hook):
    """Recompute BatchNorm's statistics after the last iteration of a native run, before its last checkpoint."""

    priority = "VERY_HIGH"  # before the CheckpointHook, which also runs after the iteration

    def __init__(self, count: int) -> None:
        self.count = count

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Recompute over training batches in another order: the runner's own sampler cannot restart."""
        if not self.is_last_train_iter(runner):
            return
        model = getattr(runner.model, "module", runner.model)
        training = model.training
        batches = runner.build_dataloader(runner.cfg.train_dataloader, seed=runner.seed + 1)
        precise_statistics(model.train(), lambda batch: losses(model, batch), batches, self.count)
        model.train(training)


def losses(model: Any, batch: Mapping[str, Any], forward: nn.Module | None = None) -> dict[str, Tensor]:
    """Return the detector's losses for a collated batch. `forward` is the model, perhaps in its parallel wrapper."""
    data = model.data_preprocessor(batch, True)
    found = (forward or model)(**data, mode="loss")
    names = {"loss_bbox": "loss_box_reg", "loss_rpn_bbox": "loss_rpn_loc"}  # Detectron2's names for losses.jsonl
    summed = {name: torch.stack([v.mean() for v in value]).sum() if isinstance(value, list) else value.mean()
              for name, value in found.items() if "loss" in name}  # fmt: skip
    return {names.get(name, name): value for name, value in summed.items()}
