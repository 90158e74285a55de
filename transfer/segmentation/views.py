"""Augmented pairs of image and mask, seeded per image: a view depends only on (seed, epoch, index)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from model_zoo.architecture import InputSpec
from transfer.draws import draws_of
from transfer.features import normalise
from transfer.protocol import RunContext
from transfer.segmentation.annotations.split import IGNORE, SegmentationSplit
from transfer.supervised import Batches, Order
from transfer.workers import Told

PairView = Callable[[Image.Image, np.ndarray], tuple[np.ndarray, np.ndarray]]
Range = tuple[float, float]
_MOST_OF_ONE_CLASS, _DRAWS = 0.75, 10  # of a crop; a crop with more is drawn again


def resized_crop(size: int, area: Range) -> PairView:
    """Return RandomResizedCrop (bilinear; masks: nearest) and flip (Leopart src/linear_finetuning_transforms.py)."""
    return partial(_resized_crop, size=size, area=area)


def _resized_crop(
    image: Image.Image, labels_HW: np.ndarray, *, size: int, area: Range
) -> tuple[np.ndarray, np.ndarray]:
    from torchvision.transforms import InterpolationMode, RandomResizedCrop  # takes seconds to import
    from torchvision.transforms import functional as TF

    box = RandomResizedCrop.get_params(image, list(area), [3 / 4, 4 / 3])
    mask = TF.resized_crop(Image.fromarray(labels_HW), *box, [size, size], InterpolationMode.NEAREST)
    image = TF.resized_crop(image, *box, [size, size], InterpolationMode.BILINEAR)
    if _chance() < 0.5:
        image, mask = TF.hflip(image), TF.hflip(mask)
    return np.array(image), np.array(mask)


def scaled_crop(size: int, ratio: Range, spec: InputSpec, *, photometric: bool) -> PairView:
    """Return MMSegmentation's usual augmentation as DINOv3's eval/segmentation/transforms.py writes it.

    The shorter side is resized to `size` times a random ratio (masks: nearest, of torch), a square of at most 75% of one
    class is cropped, flipped and its colours distorted. What the square lacks is the mean colour, to 8 bits, and ignored.
    """
    mean = [round(255 * value) for value in (spec.mean if spec.order == "rgb" else spec.mean[::-1])]
    return partial(_scaled_crop, size=size, ratio=ratio, mean=mean, photometric=photometric)


def _scaled_crop(
    image: Image.Image, labels_HW: np.ndarray, *, size: int, ratio: Range, mean: list[int], photometric: bool
) -> tuple[np.ndarray, np.ndarray]:
    from torchvision.transforms import functional as TF

    height, width = scaled_size(image.height, image.width, int(size * _between(*ratio)))
    pixels = torch.from_numpy(np.array(TF.resize(image, [height, width]))).permute(2, 0, 1)
    mask = F.interpolate(torch.from_numpy(labels_HW)[None, None].float(), size=(height, width))[0, 0].to(torch.uint8)
    top, left = _place(mask, size)
    pixels, mask = pixels[:, top : top + size, left : left + size], mask[top : top + size, left : left + size]
    if _chance() < 0.5:
        pixels, mask = pixels.flip(-1), mask.flip(-1)
    if photometric:
        pixels = distorted(pixels)
    whole = np.full((size, size, 3), mean, np.uint8)
    whole[: mask.shape[0], : mask.shape[1]] = pixels.permute(1, 2, 0).numpy()
    counted = np.full((size, size), IGNORE, np.uint8)
    counted[: mask.shape[0], : mask.shape[1]] = mask.numpy()
    return whole, counted


def scaled_size(height: int, width: int, shorter: int) -> tuple[int, int]:
    """Return (height, width) of an image whose shorter side becomes `shorter`; the other one is rounded."""
    if height > width:
        return int(shorter * height / width + 0.5), shorter
    return shorter, int(shorter * width / height + 0.5)


def _place(mask_HW: Tensor, size: int) -> tuple[int, int]:
    """Draw (top, left) of a crop; the last draw stands even if one class fills it."""
    margins = [max(side - size, 0) for side in mask_HW.shape]
    place = _drawn(margins)
    for _ in range(_DRAWS):
        cut = mask_HW[place[0] : place[0] + size, place[1] : place[1] + size]
        counts = torch.bincount(cut[cut != IGNORE].long())
        if int((counts > 0).sum()) > 1 and float(counts.max() / counts.sum()) < _MOST_OF_ONE_CLASS:
            break
        place = _drawn(margins)
    return place


def _drawn(margins: list[int]) -> tuple[int, int]:
    top, left = (int(torch.randint(margin + 1, ())) for margin in margins)
    return top, left


def distorted(pixels_3HW: Tensor) -> Tensor:
    """Change brightness (32 of 255), contrast, saturation (0.5 to 1.5) and hue (half a turn), each with probability 0.5.

    The contrast comes second or last, with equal probability. uint8 in and out; PhotoMetricDistortion of DINOv3's
    eval/segmentation/transforms.py.
    """
    from torchvision.transforms import functional as TF

    x = pixels_3HW
    if _chance() < 0.5:
        x = _linear(x, 1.0, _between(-32.0, 32.0))
    early = _chance() < 0.5
    x = _contrast(x) if early else x
    if _chance() < 0.5:
        x = TF.adjust_saturation(x, _between(0.5, 1.5))
    if _chance() < 0.5:
        x = TF.adjust_hue(x, _between(-0.5, 0.5))
    return x if early else _contrast(x)


def _contrast(x: Tensor) -> Tensor:
    return _linear(x, _between(0.5, 1.5), 0.0) if _chance() < 0.5 else x


def _linear(x: Tensor, factor: float, offset: float) -> Tensor:
    return (x.float() * factor + offset).clamp(0, 255).to(torch.uint8)


def _chance() -> float:
    return float(torch.rand(()))


def _between(low: float, high: float) -> float:
    return low + (high - low) * _chance()


class SeededPairs(Dataset[tuple[np.ndarray, np.ndarray]]):
    """Data set of (S, S, 3) uint8 views and their labels (S, S) uint8 with keys (epoch, index)."""

    def __init__(self, split: SegmentationSplit, view: PairView, seed: int) -> None:
        self.split, self.view, self.seed = split, view, seed

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        epoch, index = key
        image, labels = self.split.source.pil(index), self.split.label(index)
        with draws_of(self.seed, epoch, index):
            return self.view(image, labels)


def pair_batches(
    split: SegmentationSplit,
    view: PairView,
    spec: InputSpec,
    order: Order,
    ctx: RunContext[SegmentationSplit],
    size: int,
) -> Batches:
    """Return batches of normalised images (B, 3, S, S) and labels (B, S, S) int64, IGNORE where none counts, on the device.

    An unreadable image or mask fails the run with its name (CorruptImage, DataError).
    """

    def keys(start: int) -> Iterator[list[tuple[int, int]]]:
        for epoch, chosen in order.rows(start):
            yield [(epoch, int(index)) for index in chosen]

    def from_step(start: int) -> Iterator[tuple[Tensor, Tensor]]:
        loader = DataLoader(
            SeededPairs(split, view, ctx.seed),
            batch_sampler=keys(start),
            num_workers=ctx.workers,
            collate_fn=partial(_collate, size=size),
            pin_memory=ctx.device.type == "cuda",
        )
        for images, labels in Told(loader):
            yield normalise(images, spec, ctx.device), labels.to(ctx.device, non_blocking=True).long()

    return from_step


def _collate(items: list[tuple[np.ndarray, np.ndarray]], size: int) -> tuple[Tensor, Tensor]:
    """Return (B, S, S, 3) and (B, S, S) uint8; B may be 0."""
    if not items:
        return torch.empty(0, size, size, 3, dtype=torch.uint8), torch.empty(0, size, size, dtype=torch.uint8)
    pixels, labels = (np.stack(parts) for parts in zip(*items, strict=True))
    return torch.from_numpy(pixels), torch.from_numpy(labels)
