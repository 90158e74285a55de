"""Segment test images with a linear head on a frozen backbone's map, and count the pixels of each class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.data import Subset as TorchSubset

from backbench import distributed
from backbench.progress import track
from model_zoo.architecture import InputSpec
from transfer.features import normalise
from transfer.protocol import RunContext
from transfer.segmentation.annotations.split import SegmentationSplit
from transfer.segmentation.scoring.confusion import Confusion, areas_of
from transfer.segmentation.views import scaled_size
from transfer.workers import Told

Inference = Literal["slide", "squash"]


@dataclass(frozen=True)
class Looking:
    """How a test image is shown to the network.

    `slide`: the shorter side is resized to `side`, windows of `side` pixels at every `stride` are segmented, their logits
    averaged and interpolated to the image's own size, where they are scored (MMSegmentation's slide inference, DINOv3
    eval/segmentation/inference.py). `squash`: both sides are resized to `side`, the mask too (nearest), and scored there
    (Leopart experiments/linear_probing/eval_linear.py).
    """

    inference: Inference
    side: int
    stride: int
    batch: int = 16  # windows per forward pass; changes no number but by rounding


@dataclass
class Segmented:
    """Results on the test images."""

    confusion: Confusion
    areas: dict[str, np.ndarray]  # of every image, in the split's order; see `areas_of`
    shown: dict[int, np.ndarray]  # predicted classes (H, W) uint8 of the chosen rows


class _Pairs(Dataset[tuple[np.ndarray, np.ndarray]]):
    """Resized image (h, w, 3) uint8 and the labels (H, W) uint8 to score it with."""

    def __init__(self, split: SegmentationSplit, looking: Looking) -> None:
        self.split, self.looking = split, looking

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        from torchvision.transforms import InterpolationMode  # takes seconds to import
        from torchvision.transforms import functional as TF

        image, labels, side = self.split.source.pil(index), self.split.label(index), self.looking.side
        if self.looking.inference == "slide":
            return np.array(TF.resize(image, list(scaled_size(image.height, image.width, side)))), labels
        mask = TF.resize(Image.fromarray(labels), [side, side], InterpolationMode.NEAREST)
        return np.array(TF.resize(image, [side, side])), np.array(mask)


def segment(
    head: nn.Module,
    encoder: nn.Module,
    split: SegmentationSplit,
    looking: Looking,
    spec: InputSpec,
    ctx: RunContext[SegmentationSplit],
    shown: Sequence[int] = (),
) -> Segmented:
    """Segment every image once; the ranks share them, and all get the same results.

    Args:
        encoder: frozen, on the device: (B, 3, side, side) -> (B, C, h, w).
        spec: the input that the encoder expects.
        shown: rows whose predicted classes are kept.
    """
    rows = range(distributed.rank(), len(split), distributed.world_size())
    confusion = Confusion(len(split.classes))
    own: list[dict[str, np.ndarray]] = []
    kept: dict[int, np.ndarray] = {}
    head.eval()
    for row, (pixels, labels) in zip(rows, _loaded(split, looking, rows, ctx), strict=True):
        predicted = predict(head, encoder, pixels, labels.shape, looking, spec, ctx.device)
        own.append(areas_of(confusion.add(predicted, labels)[None]))
        if row in shown:
            kept[row] = predicted
    whole = Confusion(len(split.classes))
    pictures: dict[int, np.ndarray] = {}
    areas = {name: np.zeros((len(split), len(split.classes)), np.int64) for name in areas_of(confusion.counts[None])}
    for rank, (counts, found, drawn) in enumerate(distributed.gather((confusion.counts, own, kept))):
        whole.counts += counts
        pictures |= drawn
        for place, one in enumerate(found):
            for name, values in one.items():
                areas[name][rank + place * distributed.world_size()] = values[0]
    return Segmented(whole, areas, pictures)


def _loaded(
    split: SegmentationSplit, looking: Looking, rows: range, ctx: RunContext[SegmentationSplit]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    chosen = TorchSubset(_Pairs(split, looking), rows)
    loader = DataLoader(chosen, batch_size=None, num_workers=ctx.workers, collate_fn=_as_they_are)
    return iter(track(Told(loader), total=len(rows), label=f"segmenting {split.dataset} {split.split}, images"))


def _as_they_are(item: Any) -> Any:
    return item


@torch.no_grad()
def predict(
    head: nn.Module,
    encoder: nn.Module,
    pixels_hw3: np.ndarray,
    size: tuple[int, ...],
    looking: Looking,
    spec: InputSpec,
    device: torch.device,
) -> np.ndarray:
    """Return the classes (H, W) uint8 of a resized image.

    Args:
        size: (H, W) of the result.
    """
    x = normalise(torch.from_numpy(pixels_hw3)[None], spec, device)
    side = min(looking.side, *x.shape[-2:])
    places = list(windows(x.shape[-2], x.shape[-1], side, looking.stride))
    crops = torch.cat([x[..., top : top + side, left : left + side] for top, left in places])
    parts = [_logits(head, encoder, part) for part in crops.split(looking.batch)]
    total, times = x.new_zeros(1, parts[0].shape[1], *x.shape[-2:]), x.new_zeros(1, 1, *x.shape[-2:])
    for (top, left), logits in zip(places, torch.cat(parts), strict=True):
        total[..., top : top + side, left : left + side] += logits
        times[..., top : top + side, left : left + side] += 1
    averaged = F.interpolate(total / times, size=tuple(size), mode="bilinear", align_corners=False)
    return averaged[0].argmax(0).to(torch.uint8).cpu().numpy()


def _logits(head: nn.Module, encoder: nn.Module, x: Tensor) -> Tensor:
    """Return logits at the images' size. The head is affine, so interpolating its outputs or its inputs is the same."""
    logits: Tensor = head(encoder(x).float())
    return F.interpolate(logits, size=x.shape[-2:], mode="bilinear", align_corners=False)


def windows(height: int, width: int, side: int, stride: int) -> Iterator[tuple[int, int]]:
    """Yield (top, left) of windows that cover an image; the last ones end at its border."""
    for top in _starts(height, side, stride):
        for left in _starts(width, side, stride):
            yield top, left


def _starts(length: int, side: int, stride: int) -> list[int]:
    count = max(length - side + stride - 1, 0) // stride + 1
    return [max(min(i * stride + side, length) - side, 0) for i in range(count)]
