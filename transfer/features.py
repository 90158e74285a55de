"""Frozen features of every image of a split, in the split's order, cached under all that changes a feature."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import PIL
import torch
import torch.nn.functional as F
import torchvision
from filelock import FileLock
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from core.artifacts import atomic_write, make_folder, tensors_sha256
from core.config import digest
from core.datasets import ImageSplit
from core.errors import ConfigError
from core.progress import track
from core.transforms import evaluation_view, resize_side, squashed_view
from model_zoo.architecture import InputSpec
from model_zoo.backbone import Backbone, identity_tensors
from transfer.protocol import RunContext

Pooling = Literal["gap", "res5_2x2"]

_VERSION = 1  # raised whenever the same key would give other features
_BATCH = 128


class FrozenMoved(AssertionError):
    """A backbone that should be frozen changed."""


class _EvaluationViews(Dataset):
    def __init__(self, split: ImageSplit, size: int, resize: int, squash: bool) -> None:
        self.split, self.size, self.resize = split, size, resize
        self.view = squashed_view if squash else evaluation_view

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.view(self.split.source.pil(index), self.size, resize=self.resize)


def normalise(images_NSS3: Tensor, spec: InputSpec, device: torch.device) -> Tensor:
    """(N, S, S, 3) uint8 RGB -> what the backbone wants: (N, 3, S, S) float32, channels last in memory."""
    x = images_NSS3.to(device, non_blocking=True).float().div_(255)
    mean, std = (torch.tensor(v, device=device) for v in (spec.mean, spec.std))
    if spec.order == "bgr":  # mean and std are given in the order the backbone sees
        x = x.flip(-1)
    return x.sub_(mean).div_(std).permute(0, 3, 1, 2)


def pooled(module: nn.Module, x_N3SS: Tensor, pooling: Pooling) -> Tensor:
    """`gap`: the module's own output (N, C); `res5_2x2`: C5 averaged in overlapping windows to 2x2, flattened (N, 4C).

    A window's side is one less than C5's: AvgPool2d(6, stride 1) on the 7x7 of 224 pixels, as in VISSL's and FAIR's VOC07.

    Raises:
        ConfigError: C5 is a single cell.
    """
    if pooling == "gap":
        return module(x_N3SS)
    c5 = module.stages(x_N3SS)[-1]
    height, width = c5.shape[-2:]
    if min(height, width) < 2:
        raise ConfigError(f"feature res5_2x2 needs a C5 of 2x2 cells or more, not {height}x{width}: set a larger size")
    return F.avg_pool2d(c5, (height - 1, width - 1), stride=1).flatten(1)


def extract(
    backbone: Backbone,
    split: ImageSplit,
    ctx: RunContext,
    *,
    size: int | None = None,
    resize: int | None = None,
    pooling: Pooling = "gap",
    squash: bool = False,
) -> Tensor:
    """Pooled features (N, C), float32 on the CPU; every image once, in order.

    Args:
        size: pixels of the centre crop; the backbone's own input size unless given.
        resize: of the shorter side before it; 256/224 of the size unless given.
        pooling: see `pooled`.
        squash: no crop, both sides to `size` whatever the proportions.

    Raises:
        CorruptImage: an image cannot be read; evaluation never passes over one.
    """
    size = size or backbone.input.size
    resize = resize or resize_side(size)
    key = digest(
        {
            "version": _VERSION,
            "weights": backbone.weights_sha256,
            "arch": backbone.arch.model_dump(mode="json"),
            "input": backbone.input.model_dump(mode="json"),
            "manifest": split.manifest_sha256(),
            "split": split.split,
            "size": size,
            "resize": resize,
            "pooling": pooling,
            "squash": squash,
            "packages": [str(p.__version__) for p in (torch, torchvision, PIL)],
            "device": ctx.device.type,
        }
    )
    file = make_folder(ctx.cache) / f"{key}.npy"
    with FileLock(str(file) + ".lock"):
        cached = _read(file, len(split))
        if cached is not None:
            return cached
        options = {"size": size, "resize": resize, "pooling": pooling, "squash": squash}
        features = compute(backbone.build(), backbone.input, split, ctx, **options)
        array = features.numpy()
        atomic_write(file, lambda handle: np.save(handle, array))
    return features


def compute(
    module: nn.Module,
    spec: InputSpec,
    split: ImageSplit,
    ctx: RunContext,
    *,
    size: int,
    resize: int,
    pooling: Pooling = "gap",
    squash: bool = False,
) -> Tensor:
    """Features without the cache. The module is put into eval mode, and must not change."""
    module = module.eval().requires_grad_(False).to(ctx.device, memory_format=torch.channels_last)
    before = tensors_sha256(identity_tensors(module.state_dict()))
    loader = DataLoader(
        _EvaluationViews(split, size, resize, squash),
        batch_size=_BATCH,
        num_workers=ctx.workers,
        pin_memory=ctx.device.type == "cuda",
    )
    features = torch.empty(0)
    done = 0
    with torch.no_grad():
        for images in track(loader, total=len(loader), label=f"features of {split.dataset} {split.split}"):
            part = pooled(module, normalise(images, spec, ctx.device), pooling).float().cpu()
            features = features if done else torch.empty(len(split), part.shape[1])  # once: at 1.28 M x 2048, 10 GB
            features[done : done + len(part)] = part
            done += len(part)
    if tensors_sha256(identity_tensors(module.state_dict())) != before:
        raise FrozenMoved("the frozen backbone changed while its features were computed")
    assert done == len(split), "every image is counted once"
    if not bool(torch.isfinite(features).all()):
        raise FloatingPointError(f"features of {split.dataset} {split.split} hold NaN or infinite values")
    return features


def _read(file: Path, rows: int) -> Tensor | None:
    """The cached features; None when there are none, or the file is not whole."""
    if not file.exists():
        return None
    try:
        array = np.load(file, allow_pickle=False)
    except (ValueError, EOFError, OSError):
        return None
    return torch.from_numpy(array) if array.ndim == 2 and len(array) == rows else None
