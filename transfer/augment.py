"""Augment training images for the supervised protocols: torchvision's transforms on Pillow images, seeded per image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from backbench.data.splits import ImageSplit
from backbench.data.transforms import Interpolation
from model_zoo.architecture import InputSpec
from transfer.draws import draws_of
from transfer.features import normalise
from transfer.protocol import RunContext
from transfer.supervised import Batches, Order
from transfer.workers import Told

View = Callable[[Image.Image], Image.Image]


def crop_and_flip(size: int, interpolation: Interpolation = "bilinear") -> View:
    """Return RandomResizedCrop (area 0.08 to 1) and flip, as in all linear probes of the literature (bilinear)."""
    from torchvision import transforms  # takes seconds to import

    crop = transforms.RandomResizedCrop(size, interpolation=transforms.InterpolationMode(interpolation))
    return transforms.Compose([crop, transforms.RandomHorizontalFlip()])


def ssl_view(size: int, *, blur: float, solarize: float, bicubic: bool = False) -> View:
    """Return BYOL's augmentations: colour 0.4, 0.4, 0.2, 0.1 with probability 0.8, grey 0.2.

    `blur` and `solarize` are probabilities.
    """
    from torchvision import transforms
    from torchvision.transforms import InterpolationMode

    kernel = max(3, size // 10 // 2 * 2 + 1)
    colour = transforms.ColorJitter(0.4, 0.4, 0.2, 0.1)
    mode = InterpolationMode.BICUBIC if bicubic else InterpolationMode.BILINEAR
    steps = [
        transforms.RandomResizedCrop(size, interpolation=mode),
        transforms.RandomHorizontalFlip(),
        transforms.RandomApply([colour], p=0.8),
        transforms.RandomGrayscale(0.2),
    ]
    gaussian = transforms.GaussianBlur(kernel, (0.1, 2.0))
    if blur:
        steps.append(gaussian if blur == 1 else transforms.RandomApply([gaussian], p=blur))
    if solarize:
        steps.append(transforms.RandomSolarize(128, p=solarize))
    return transforms.Compose(steps)


class SeededViews(Dataset):
    """Data set of (S, S, 3) uint8 views and labels with keys (epoch, index). A view depends only on (seed, epoch, index).

    Several `views` take turns, one per epoch.
    """

    def __init__(self, split: ImageSplit, views: View | Sequence[View], seed: int) -> None:
        self.split, self.seed = split, seed
        self.views = views if isinstance(views, Sequence) else (views,)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: tuple[int, int]) -> tuple[np.ndarray, int]:
        epoch, index = key
        image = self.split.source.pil(index)
        with draws_of(self.seed, epoch, index):
            pixels = np.array(self.views[epoch % len(self.views)](image))
        label = -1 if self.split.labels is None else int(self.split.labels[index])
        return pixels, label


def image_batches(
    split: ImageSplit,
    view: View | Sequence[View],
    spec: InputSpec,
    order: Order,
    ctx: RunContext[ImageSplit],
    size: int,
    rows: Tensor | None = None,
) -> Batches:
    """Return batches of augmented, normalised images (B, 3, S, S) on the device, of all rows or of the given `rows` only.

    An unreadable image fails the run with its name (CorruptImage).
    """

    def keys(start: int) -> Iterator[list[tuple[int, int]]]:
        for epoch, chosen in order.rows(start):
            chosen = chosen if rows is None else rows[chosen]
            yield [(epoch, int(index)) for index in chosen]

    def from_step(start: int) -> Iterator[tuple[Tensor, Tensor]]:
        loader = DataLoader(
            SeededViews(split, view, ctx.seed),
            batch_sampler=keys(start),
            num_workers=ctx.workers,
            collate_fn=partial(_collate, size=size),
            pin_memory=ctx.device.type == "cuda",
        )
        for images, labels in Told(loader):
            yield normalise(images, spec, ctx.device), labels

    return from_step


def _collate(items: list[tuple[np.ndarray, int]], size: int) -> tuple[Tensor, Tensor]:
    """Return (B, S, S, 3) uint8 and labels (B,); B may be 0."""
    images = np.stack([pixels for pixels, _ in items]) if items else np.empty((0, size, size, 3), np.uint8)
    return torch.from_numpy(images), torch.tensor([label for _, label in items], dtype=torch.long)
